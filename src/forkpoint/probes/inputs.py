"""The inputs probe: is what goes in the same: token ids, labels, parameters, buffers?"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.capture.entry import intake
from forkpoint.explain.session import Session
from forkpoint.match.align import gap, pair_elements
from forkpoint.match.distance import spacing, unit_at
from forkpoint.probes.columns import name_the_same_tokens
from forkpoint.probes.quantized import are_quantized
from forkpoint.result import ProbeResult
from forkpoint.runs.layout import DECODER, MAIN
from forkpoint.runs.masks import states_layout
from forkpoint.runs.modules import attribute_of, predicts_next, unwrapped, wrappings
from forkpoint.runs.pairing import read_content
from forkpoint.runs.returned import ALL_CACHES, entries_of
from forkpoint.runs.run import Run
from forkpoint.support.equality import same_bits

_TOKENS = ("input_ids", "decoder_input_ids")
_ONE = {"parameters": "1 parameter differs", "buffers": "1 buffer differs", "weights": "1 weight differs"}


@dataclass(frozen=True)
class Inputs:
    """What differs of what goes in.

    Attributes:
        mechanism: `token_ids`, `labels`, `parameters`, `buffers`, `quantization`; None where nothing differs
            or for other inputs, which have no slug.
        differs: whether anything does.
        rounded: parameters that are the other run's, rounded to a narrower dtype, or merged with adapters.
        names: of inputs that have no slug and differ.
        alone: parameters that one of the models has and the other has not, where the rest is the same.
    """

    differs: bool
    mechanism: str | None
    result: ProbeResult
    rounded: tuple[Weight, ...] = ()
    names: tuple[str, ...] = ()
    alone: tuple[Alone, ...] = ()


@dataclass(frozen=True, eq=False)
class Weight:
    """One tensor of the models that differs only by rounding: where it is, and what both runs should use."""

    modules: tuple[nn.Module, ...]
    name: str
    exact: Tensor
    table: str
    """`_parameters` or `_buffers`."""


@dataclass(frozen=True)
class Alone:
    """A parameter of one model that the other has not, at least not as such.

    Attributes:
        side: the run whose model has it, `a` or `b`.
        path: of its module, as both runs name it.
    """

    side: str
    path: str
    name: str
    module: nn.Module

    @property
    def title(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name


@dataclass
class _WeightDifferences:
    """What differs of the weights of two models.

    Attributes:
        rounded: by rounding alone.
        different: otherwise, by mechanism.
        narrowed: what to say of buffers that were rounded in one of two models of one dtype.
        alone: parameters that one of the models has and the other has not, at least not as such.
        one_dtype: whether the parameters of both models have the same dtypes: then no rounding is to be expected.
    """

    rounded: list[Weight] = field(default_factory=list[Weight])
    different: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    narrowed: list[str] = field(default_factory=list[str])
    alone: list[Alone] = field(default_factory=list[Alone])
    one_dtype: bool = False


def differing_weights(what: str, names: Sequence[str]) -> str:
    """How many `parameters`, `buffers` or `weights` differ, with the first name of one or more."""
    return f"{_ONE[what]}, {names[0]}" if len(names) == 1 else f"{len(names)} {what} differ, {names[0]} first"


def inputs(session: Session) -> Inputs:
    """Compare what went into both runs, at shared coordinates."""
    a, b = session.a.run, session.b.run
    names = _different_tensors(session)
    tokens = [n for n in names if n in _TOKENS]
    others = tuple(n for n in names if n not in tokens)
    pairs_a, pairs_b = _label_pairs(session, a, "a"), _label_pairs(session, b, "b")
    differences = _WeightDifferences()
    for root_a, root_b in zip(a.roots, b.roots, strict=False):
        _compare_weights(differences, root_a, root_b)
    if tokens:
        return _differs("token_ids", float(len(tokens)), _differing(tokens))
    if pairs_a != pairs_b:
        count = sum(((pairs_a - pairs_b) + (pairs_b - pairs_a)).values())
        text = f"the labels that enter the loss differ in {count} (predicting position, label) pairs"
        return _differs("labels", float(count), text)
    if others:
        return replace(_differs(None, float(len(others)), _differing(others)), names=others)
    for mechanism, tensors in differences.different.items():
        what = mechanism if mechanism != "quantization" else "weights"
        text = differing_weights(what, tensors)
        if mechanism == "buffers" and differences.narrowed:
            text += f"; {differences.narrowed[0]}"
        return _differs(mechanism, float(len(tensors)), text)
    if differences.rounded:
        text = f"{len(differences.rounded)} weights of one run are the other's, rounded to a narrower dtype"
        return Inputs(
            False,
            None,
            ProbeResult("inputs", "rounded", float(len(differences.rounded)), text),
            tuple(differences.rounded),
            alone=tuple(differences.alone),
        )
    unseen = [name for name, run in (("A", a), ("B", b)) if not run.roots]
    if unseen or len(a.roots) != len(b.roots):
        why = (
            f"no module was found behind run {unseen[0]}"
            if unseen
            else "the runs use different numbers of models"
        )
        text = f"token ids and labels are the same in both runs; whether parameters and buffers are is not known: {why}"
        return Inputs(False, None, ProbeResult("inputs", "unknown", None, text))
    if differences.alone:
        text = (
            "token ids and labels are the same in both runs, as are the parameters and buffers that both models have; "
            f"{len(differences.alone)} parameters of one model alone were not compared, {differences.alone[0].title} first"
        )
        result = ProbeResult("inputs", "some", float(len(differences.alone)), text)
        return Inputs(False, None, result, alone=tuple(differences.alone))
    text = "token ids, labels, parameters and buffers are the same in both runs"
    return Inputs(False, None, ProbeResult("inputs", "same", 0.0, text))


def _differing(names: Sequence[str]) -> str:
    return f"what goes in differs at shared coordinates: {', '.join(names)}"


def _differs(mechanism: str | None, figure: float, text: str) -> Inputs:
    return Inputs(True, mechanism, ProbeResult("inputs", "differs", figure, text))


def _different_tensors(session: Session) -> list[str]:
    """Names of the model's tensor inputs that differ at shared coordinates."""
    a, b = session.a, session.b
    names: list[str] = []
    for row in session.join.rows:
        if row.op.is_input and session.a.trace.plain(row.op.module) == "" and row.differing:
            name = row.op.function.removeprefix("input:")
            expected = states_layout(name) or name in ("labels", "decoder_labels") or name in names
            same = (name == "pixel_values" and _same_pixels(session)) or _same_values(session, name)
            same = same or name_the_same_tokens(session, name)
            if not expected and not same:
                names.append(name)
    for call_a, call_b in zip(session.a.run.calls, session.b.run.calls, strict=False):
        types = [c.get("token_type_ids") for c in (call_a, call_b)]
        if sum(t is None for t in types) == 1 and any(isinstance(t, Tensor) and bool(t.any()) for t in types):
            names.append("token_type_ids")
    if session.join.same_layout:
        names += [name for name in _different_within(a.run.calls, b.run.calls) if name not in names]
    return names


def _different_within(
    calls_a: Sequence[Mapping[str, Any]], calls_b: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Names of the tensors in containers, dataclasses and objects that go in, but for caches, of which the values differ."""
    names: list[str] = []
    for call_a, call_b in zip(calls_a, calls_b, strict=False):
        for name, value in call_a.items():
            if isinstance(value, Tensor) or name in ALL_CACHES:
                continue
            others = dict(_tensors_within(call_b.get(name), name))
            for where, x in _tensors_within(value, name):
                y = others.get(where)
                if y is not None and x.dtype == y.dtype and x.device == y.device and not same_bits(x, y):
                    names.append(where)
    return names


def _tensors_within(value: Any, name: str, deep: int = 5) -> Iterator[tuple[str, Tensor]]:
    """The tensors in a container or an object, each by where it is."""
    if isinstance(value, Tensor):
        yield name, value
    elif deep and isinstance(value, (list, tuple)):
        for index, item in enumerate(value):  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            yield from _tensors_within(item, f"{name}[{index}]", deep - 1)
    elif deep and (entries := entries_of(value)) is not None:
        for key, item in entries.items():
            yield from _tensors_within(item, f"{name}.{key}", deep - 1)


def _same_values(session: Session, name: str) -> bool:
    """Whether an input of another dtype in each run, which has other digests, holds the same values."""
    a, b = session.a, session.b
    if len(a.run.calls) != len(b.run.calls):
        return False
    for index, calls in enumerate(zip(a.run.calls, b.run.calls, strict=True)):
        x, y = (call.get(name) for call in calls)
        if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or x.dtype == y.dtype:
            return False
        label_x, label_y = (
            intake(traced.recorder.labels, index, call).labels[name]
            for traced, call in zip((a, b), calls, strict=True)
        )
        pairs = pair_elements(x, label_x, y, label_y, session.shared)
        if not len(pairs) or gap(x, y, pairs).differing:
            return False
    return True


def _same_pixels(session: Session) -> bool:
    """Whether images that are padded to another size are the same where their masks say that they are."""
    a, b = session.a.run, session.b.run
    if not any("pixel_mask" in call for call in (*a.calls, *b.calls)):
        return False
    content_a, content_b = read_content(a.layout, a.calls), read_content(b.layout, b.calls)
    return all(content_a[mine] == content_b[theirs] for mine, theirs in session.pairing.pairs)


# ---------------------------------------------------------------------- labels


def _label_pairs(session: Session, run: Run, which: str) -> Counter[Any]:
    """The (predicting coordinate, label) pairs that enter the loss; -100 does not."""
    pairs: Counter[Any] = Counter()
    to_a = (
        {s: s for s, _ in session.pairing.pairs} if which == "a" else {b: a for a, b in session.pairing.pairs}
    )
    shift = predicts_next(run.modules)
    for call, (entry, inputs_) in enumerate(zip(run.layout.calls, run.calls, strict=True)):
        labels = inputs_.get("labels")
        coordinates = entry.get(DECODER, entry.get(MAIN))
        if not isinstance(labels, Tensor) or coordinates is None:
            continue
        if labels.dim() == 1 and coordinates.sample.dim() == 2 and len(labels) == coordinates.shape[0]:
            for row, label in enumerate(labels.tolist()):
                sample = int(coordinates.sample[row].max())
                pairs[(to_a.get(sample, ("mate", sample)), None, label)] += 1
            continue
        if tuple(labels.shape) != coordinates.shape or labels.dim() != 2 or labels.is_floating_point():
            continue
        rows = labels.detach().cpu()
        for row, column in (rows != -100).nonzero().tolist():
            at = column - 1 if shift else column
            if at < 0:
                continue
            sample, position = int(coordinates.sample[row, at]), int(coordinates.position[row, at])
            if sample < 0:
                place: Any = ("padding", call)
            else:
                place = (to_a.get(sample, ("mate", sample)), position)
            pairs[(place, int(rows[row, column]))] += 1
    return pairs


# ---------------------------------------------------------------------- weights


def _compare_weights(differences: _WeightDifferences, a: nn.Module, b: nn.Module) -> None:
    if a is b:
        return
    dtypes = _dtypes_of(a)
    differences.one_dtype = bool(dtypes) and dtypes == _dtypes_of(b)
    modules_a, modules_b = map(_by_path, (a, b), wrappings(a, b))
    for path, mine in modules_a.items():
        theirs = modules_b.get(path)
        if theirs is None:
            continue
        for table, slug in (("_parameters", "parameters"), ("_buffers", "buffers")):
            for name in _names(mine, table) & _names(theirs, table):
                _compare_weight(differences, path, name, table, slug, mine, theirs)
    _compare_alone(differences, modules_a, modules_b)


def _compare_alone(differences: _WeightDifferences, a: dict[str, nn.Module], b: dict[str, nn.Module]) -> None:
    """Parameters of one model that the other keeps otherwise, as quantised modules do, or has not at all."""
    for side, mine, theirs in (("a", a, b), ("b", b, a)):
        for path, module in mine.items():
            other = theirs.get(path)
            for name in sorted(_names(module, "_parameters")):
                if other is not None and name in _names(other, "_parameters"):
                    continue
                one = Alone(side, path, name, _base(module))
                quantized = None if other is None else _kept_quantized(other, name)
                weight = _base(module)._parameters[name]
                if other is not None and quantized is not None and weight is not None:
                    same = are_quantized(other, quantized, weight)
                    differences.different.setdefault("quantization" if same else "parameters", []).append(
                        one.title
                    )
                else:
                    differences.alone.append(one)


def _kept_quantized(module: nn.Module, name: str) -> Tensor | None:
    """A parameter that a module keeps in quantised form and gives when asked, as those of `torch.ao` do."""
    ask = getattr(module, name, None)
    if isinstance(ask, Tensor) or not callable(ask):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = ask()
    except Exception:  # noqa: BLE001 - a method of that name that does something else
        return None
    return value if isinstance(value, Tensor) and value.is_quantized else None


def _dtypes_of(model: nn.Module) -> set[torch.dtype]:
    return {weight.dtype for weight in model.parameters() if weight.dtype.is_floating_point}


def _by_path(model: nn.Module, wrapping: str) -> dict[str, nn.Module]:
    """Modules by the paths that both runs have, adapters' layers under the name of what they wrap."""
    modules: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if "lora_" in path:
            continue
        plain = unwrapped(path, wrapping).replace(".base_layer", "")
        if plain not in modules or not hasattr(modules[plain], "base_layer"):
            modules[plain] = module
    return modules


def _base(module: nn.Module) -> nn.Module:
    base = attribute_of(module, "base_layer")
    return base if isinstance(base, nn.Module) else module


def _names(module: nn.Module, table: str) -> set[str]:
    return {name for name, value in getattr(_base(module), table).items() if value is not None}


def _compare_weight(
    differences: _WeightDifferences,
    path: str,
    name: str,
    table: str,
    slug: str,
    mine: nn.Module,
    theirs: nn.Module,
) -> None:
    x: Tensor = getattr(_base(mine), table)[name]
    y: Tensor = getattr(_base(theirs), table)[name]
    delta_x, delta_y = _adapters(mine, name), _adapters(theirs, name)
    if delta_x is not None and delta_y is not None:
        delta_x = delta_y = None  # their own weights are compared by themselves, and a scale is none
    if x.device != y.device:
        x, y, delta_x, delta_y = x.cpu(), y.cpu(), _on_cpu(delta_x), _on_cpu(delta_y)
    title = f"{path}.{name}" if path else name
    if delta_x is None and delta_y is None and (x is y or same_bits(x.detach(), y.detach())):
        return
    if x.shape != y.shape or _quantized(x) != _quantized(y):
        ways = ((theirs, y, x), (mine, x, y)) if _quantized(x) != _quantized(y) else ()
        same = any(are_quantized(_base(module), weight, other) for module, weight, other in ways)
        differences.different.setdefault("quantization" if same else slug, []).append(title)
        return
    exact_x, exact_y = _effective(x, delta_x), _effective(y, delta_y)
    if delta_x is None and delta_y is None and same_bits(exact_x, exact_y):
        wide = x if x.dtype.itemsize >= y.dtype.itemsize else y
        differences.rounded.append(Weight((_base(mine), _base(theirs)), name, wide.detach(), table))
        return
    if _is_rounded(x, y, exact_x, exact_y, delta_x, delta_y):
        if table == "_buffers" and differences.one_dtype:
            differences.different.setdefault(slug, []).append(title)
            differences.narrowed.append(_narrowing(title, x, y))
            return
        wide = exact_x if delta_x is not None or (delta_y is None and _eps(x) <= _eps(y)) else exact_y
        if delta_x is None and delta_y is None and _eps(x) == _eps(y):
            wide = exact_x if not _representable(exact_x) else exact_y
        # Adapters that are not merged are added by the run itself: that side keeps its own weight.
        sides = tuple(_base(m) for m, delta in ((mine, delta_x), (theirs, delta_y)) if delta is None)
        differences.rounded.append(Weight(sides, name, wide, table))
        return
    differences.different.setdefault(slug, []).append(title)


def _on_cpu(delta: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if delta is None else (delta[0].cpu(), delta[1].cpu())


def _quantized(weight: Tensor) -> bool:
    return not weight.dtype.is_floating_point and weight.dtype in (torch.int8, torch.uint8)


def _eps(weight: Tensor) -> float:
    return spacing(weight.dtype)[0] if weight.dtype.is_floating_point else 0.0


def _adapters(module: nn.Module, name: str) -> tuple[Tensor, Tensor] | None:
    """What unmerged adapters add to a weight in exact arithmetic, and the sizes of its terms; None without any."""
    if name != "weight" or attribute_of(module, "base_layer") is None or getattr(module, "merged", False):
        return None
    lora_a, lora_b = getattr(module, "lora_A", {}), getattr(module, "lora_B", {})
    total: tuple[Tensor, Tensor] | None = None
    for adapter in getattr(module, "active_adapters", ()):
        if adapter in lora_a:
            left, right = lora_b[adapter].weight.detach().double(), lora_a[adapter].weight.detach().double()
            scale = float(module.scaling[adapter])  # type: ignore[index]
            added, size = scale * (left @ right), abs(scale) * (left.abs() @ right.abs())
            total = (added, size) if total is None else (total[0] + added, total[1] + size)
    return total


def _effective(weight: Tensor, delta: tuple[Tensor, Tensor] | None) -> Tensor:
    exact = weight.detach().double() if weight.dtype.is_floating_point else weight.detach()
    return exact if delta is None else exact + delta[0]


def _is_rounded(
    x: Tensor, y: Tensor, exact_x: Tensor, exact_y: Tensor,
    delta_x: tuple[Tensor, Tensor] | None, delta_y: tuple[Tensor, Tensor] | None,
) -> bool:  # fmt: skip
    """Whether two weights are one, rounded: within half an ULP of the narrower dtype.

    Merged adapters are added in the dtype of the weight, term by term: a few ULP of the largest term.
    """
    if not (x.dtype.is_floating_point and y.dtype.is_floating_point):
        return False
    gap = (exact_x - exact_y).abs()
    size = torch.maximum(exact_x.abs(), exact_y.abs())
    if delta_x is not None or delta_y is not None:
        for weight, delta in ((x, delta_x), (y, delta_y)):
            if delta is not None:
                size = torch.maximum(size, torch.maximum(weight.detach().double().abs(), delta[1]))
        return bool((gap <= 4 * max(_eps(x), _eps(y)) * size + 1e-300).all())
    if x.dtype != y.dtype:
        narrow = x.dtype if _eps(x) > _eps(y) else y.dtype
        return bool((gap <= 0.5 * unit_at(size, narrow)).all())
    for narrow in (torch.bfloat16, torch.float16):
        if spacing(narrow)[0] > _eps(x) and (
            same_bits(exact_x.to(x.dtype).to(narrow).double(), exact_y)
            or same_bits(exact_y.to(y.dtype).to(narrow).double(), exact_x)
        ):
            return True
    return False


def _narrowing(title: str, x: Tensor, y: Tensor) -> str:
    """What to say of a buffer that was rounded in one model, x of run A and y of run B."""
    counts = [len(value.detach().double().unique()) for value in (x, y)]
    dtypes = " and ".join(str(value.dtype).removeprefix("torch.") for value in (x, y))
    told = dtypes if x.dtype != y.dtype else f"{dtypes} in both, rounded in one"
    return (
        f"{title} is rounded: {told}, with {counts[0]:,} distinct values in run A and {counts[1]:,} in run B"
    )


def _representable(exact: Tensor) -> bool:
    return same_bits(exact.to(torch.bfloat16).double(), exact) or same_bits(
        exact.to(torch.float16).double(), exact
    )


@contextmanager
def same_weights(weights: tuple[Weight, ...]) -> Generator[None]:
    """Give both runs the same weights, where one has the other's rounded ones."""
    saved: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for weight in weights:
            for module in weight.modules:
                table: dict[str, Any] = getattr(module, weight.table)
                saved.append((table, weight.name, table[weight.name]))
                now = table[weight.name]
                exact = weight.exact.to(now.device)
                is_parameter = weight.table == "_parameters"
                table[weight.name] = nn.Parameter(exact, now.requires_grad) if is_parameter else exact
        yield
    finally:
        for table, name, value in reversed(saved):
            table[name] = value
