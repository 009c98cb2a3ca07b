"""The NaN probe: which op is the first to make NaN or infinity of finite numbers, in each run?

A run is made again with every value looked at. From the results that are not finite the way leads back, through values
that are not finite either, to what made them. A mask of -inf is meant, and a softmax takes it away again; what is looked
for is the op that made NaN, or the infinity that it was made of if nobody wrote that by name. That op alone, repeated on
its own inputs in float64, tells an overflow from what exact arithmetic has as well.
"""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import CopiedCall, Look, Recorder, Watcher
from forkpoint.capture.trace import Event, Op
from forkpoint.capture.writes import INDEXED_WRITES
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.locate import Located, fetch_ops, named_inputs
from forkpoint.explain.results import ResultComparison, finite_parts
from forkpoint.explain.session import Session, Traced
from forkpoint.match.align import index_of
from forkpoint.match.finite import FinitePart, all_finite, is_finite
from forkpoint.probes.replay import in_float64
from forkpoint.result import NonFinite, ProbeResult

_FETCHED = 8
"""Infinities behind a NaN that are looked into, the earliest ones."""
_SOFTMAX = frozenset({"softmax", "_softmax", "log_softmax", "logsumexp"})
_ELEMENTWISE = frozenset({
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "true_divide", "pow", "pow_", "square", "exp", "exp_", "log",
    "log_", "log2", "log10", "log1p", "expm1", "sqrt", "sqrt_", "rsqrt", "reciprocal", "to", "half", "float", "type", "acos",
    "asin", "atanh", "tan", "addcmul", "addcdiv", "lerp", "neg", "where", "type_as", "bfloat16",
})  # fmt: skip
"""Functions whose output at an index is made of the inputs at that index."""


@dataclass(frozen=True)
class Unfinite:
    """NaN and infinities of both runs.

    Attributes:
        part: those of the results, at shared coordinates.
        a, b: what makes them, in each run; None where there are none, or where a mask was meant.
        results: the same as evidence.
    """

    part: FinitePart
    a: NonFinite | None = None
    b: NonFinite | None = None
    results: tuple[ProbeResult, ...] = ()
    places: Mapping[str, tuple[Op, Event]] = field(default_factory=dict[str, tuple[Op, Event]])
    """The op and the pass of `a` and `b`, by run."""
    calls: Mapping[str, tuple[CopiedCall, ...]] = field(default_factory=dict[str, tuple[CopiedCall, ...]])
    """Calls of each run that were kept by now."""

    def call(self, run: str, op: Op, event: Event) -> CopiedCall | None:
        """A call of run `A` or `B`, if it was kept."""
        wanted = _call_of(op, event)
        return next((call for call in self.calls.get(run, ()) if _call_of(call.op, call) == wanted), None)

    @property
    def alone(self) -> bool:
        """Whether NaN, or an infinity that nobody wrote by name, is in a result of one run and not of the other."""
        return self.part.apart > 0 and any(made is not None and _is_fault(made) for made in (self.a, self.b))

    @property
    def faults(self) -> tuple[tuple[str, NonFinite], ...]:
        """The ops that make them, by run, apart from what the code writes by name on purpose."""
        both = ("A", self.a), ("B", self.b)
        return tuple((run, made) for run, made in both if made is not None and _is_fault(made))

    @property
    def worst(self) -> tuple[str, NonFinite] | None:
        """The run and the op to speak of: where the results hold more of them."""
        first = "A" if self.part.nonfinite_a > self.part.nonfinite_b else "B"
        return min(self.faults, key=lambda fault: fault[0] != first, default=None)


def _is_fault(made: NonFinite) -> bool:
    return made.kind == "nan" or made.cause != "written"


def unfinite(session: Session, compared: ResultComparison, located: Located | None) -> Unfinite:
    """Find what makes NaN or infinity, if a result or the first divergence holds any that are not the same -inf in both."""
    part = finite_parts(compared)
    results = part.apart > 0 or any(_has_fault(g.a) or _has_fault(g.b) for g in compared.gaps)
    diverging = located is not None and any(_has_fault(v) for t in (located.a, located.b) for v in t.outputs)
    if not results and not diverging:
        return Unfinite(part)
    session.progress.begin("probe: what makes NaN or infinity")
    made: list[NonFinite | None] = []
    places: dict[str, tuple[Op, Event]] = {}
    calls_by_run: dict[str, tuple[CopiedCall, ...]] = {}
    for run, traced in (("A", session.a), ("B", session.b)):
        at = None if located is None else located.a if run == "A" else located.b
        calls = {} if at is None else {_call_of(at.op, at): at}
        onset = _first(traced, at if diverging else None, calls, session.look)
        calls_by_run[run] = tuple(calls.values())
        if onset is not None:
            places[run] = onset.op, onset.event
        made.append(None if onset is None else _describe(run, onset))
    counts = part.nonfinite_a, part.nonfinite_b
    evidence = tuple(
        ProbeResult("nan", onset.cause, float(count), onset.text)
        for onset, count in zip(made, counts, strict=True)
        if onset is not None and _is_fault(onset)
    )
    return Unfinite(part, made[0], made[1], evidence, places, calls_by_run)


def _has_fault(value: Tensor) -> bool:
    """NaN or plus infinity: minus infinity alone is a mask, as a rule."""
    return value.is_floating_point() and bool((value.isnan() | (value == math.inf)).any())


def advice(made: NonFinite, *, finite_in_float64: bool) -> str:
    """What to do about an op that makes NaN or infinity.

    Args:
        made: the op.
        finite_in_float64: whether the whole run, done in float64, is finite.
    """
    if made.cause == "overflow":
        return f"Do that op in a dtype of wider range than {made.dtype}, or scale down what goes into it."
    if made.cause == "masked":
        return "Keep at least one key in every row, or mask with the least finite number of the dtype in place of -inf."
    if made.cause == "exact" and finite_in_float64:
        return (
            "Rounding takes the op's input out of its domain: clamp it there, or compute it in a wider dtype."
        )
    if made.cause == "exact":
        return "Keep the op's input inside its domain: mask it, clamp it, or add an epsilon."
    if made.cause in ("weight", "input"):
        return "Look at where it comes from: it is there before the model computes anything."
    return "Look at the op named: what comes after it only passes it on."


# ---------------------------------------------------------------------- the way back


@dataclass
class Finiteness(Watcher):
    """Notes which values are NaN or infinite, and what they were made from.

    Attributes:
        holds_nan: by event that is not finite, whether it holds NaN.
        sources, ops: for every event, the events that it was made from, and what it is.
    """

    holds_nan: dict[int, bool] = field(default_factory=dict[int, bool])
    sources: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    ops: dict[int, tuple[Op, Event]] = field(default_factory=dict[int, tuple[Op, Event]])
    recorder: Recorder | None = None

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        self.recorder = recorder
        self.sources[event] = inputs
        self.ops[event] = recorder.trace.rows[event][0], recorder.trace.event(event)
        if value.layout == torch.strided and not value.is_meta and not all_finite(value):
            self.holds_nan[event] = bool(value.isnan().any())

    def behind(self, start: Iterable[int]) -> list[int]:
        """The events that are not finite, from some on back, as long as their sources aren't either.

        A write of some elements is passed: what it leaves alone may be what is looked for.
        """
        chain: set[int] = set()
        queue = [event for event in start if event >= 0]
        passed: set[int] = set()
        while queue:
            event = queue.pop()
            if event in passed:
                continue
            passed.add(event)
            if event in self.holds_nan:
                chain.add(event)
            elif self.ops[event][0].function not in INDEXED_WRITES:
                continue
            queue += self.sources.get(event, ())
        return sorted(chain)

    def makers(self, chain: list[int], *, nan: bool) -> Iterator[int]:
        """The events of a chain that hold what no source of theirs does: NaN, or anything that is not finite."""
        for event in chain:
            sources = [s for s in self.sources.get(event, ()) if s in self.holds_nan]
            if self.holds_nan[event] == nan and not any(self.holds_nan[s] or not nan for s in sources):
                yield event


def _first(
    traced: Traced, at: CopiedCall | None, calls: dict[Hashable, CopiedCall], look: Look | None
) -> _Onset | None:
    """What makes the NaN and infinities of a run's results; where they have none, of the value of a call.

    Args:
        at: the call.
        calls: those that were kept by now; more are added.
        look: what else is to be known of a call that is kept.
    """
    returned = [value for call in traced.results for value, _ in call.values()]
    if all(map(all_finite, (*returned, *(() if at is None else at.outputs)))):
        return None
    watcher = Finiteness()
    results = traced.again(watcher=watcher)
    if watcher.recorder is None:
        return None
    values = [value for call in results for value, _ in call.values() if not all_finite(value)]
    start = [watcher.recorder.event_of(value) for value in values]
    if not values and at is not None:
        wanted = _call_of(at.op, at)
        start = [event for event in watcher.holds_nan if _call_of(*watcher.ops[event]) == wanted]
    chain = watcher.behind(start)
    if not chain:
        return None
    nan = next(watcher.makers(chain, nan=True), None)
    behind = chain if nan is None else watcher.behind([nan])
    infinite = list(watcher.makers(behind, nan=False))[:_FETCHED]
    wanted = ([] if nan is None else [nan]) + infinite
    _look_at(traced, [watcher.ops[event] for event in wanted], calls, look)
    looks = {event: _Onset(*watcher.ops[event], calls.get(_call_of(*watcher.ops[event]))) for event in wanted}
    return _choose(nan, infinite, looks)


def _call_of(op: Op, event: Event | CopiedCall) -> Hashable:
    """What tells a call of a run from every other."""
    return op.key, event.call, event.nth


# ---------------------------------------------------------------------- one op


@dataclass(frozen=True)
class _Onset:
    """One event that holds what its sources don't, and its call if it could be fetched."""

    op: Op
    event: Event
    call: CopiedCall | None
    leads_to: str = ""
    """The op that makes NaN of it, if that is another."""

    @property
    def output(self) -> Tensor | None:
        if self.call is None:
            return None
        return self.call.outputs[0 if self.op.is_boundary else self.op.output]

    @property
    def written(self) -> bool:
        """Whether the code names what it writes, or makes it of nothing: a mask, as a rule."""
        call = self.call
        if call is None or call.func is None:
            return False
        if not any(True for _ in _tensors((call.args, call.kwargs))):
            return True
        return any(not math.isfinite(number) for number in _numbers((call.args, call.kwargs)))

    @property
    def holder(self) -> str:
        """The weight that holds it already, or another input of the call that no tap saw being made."""
        if self.call is None or self.call.func is None:
            return ""
        for name, value in named_inputs(self.call).items():
            if not all_finite(value):
                return self.call.owned.get(id(value), name)
        return ""


def _look_at(
    traced: Traced, wanted: Sequence[tuple[Op, Event]], calls: dict[Hashable, CopiedCall], look: Look | None
) -> None:
    """Run again, and keep the calls that made some events, but for those that were kept by now."""
    missing = [(op, event) for op, event in wanted if not op.is_boundary and _call_of(op, event) not in calls]
    if missing:
        fetched = fetch_ops(traced, missing, look=look)
        calls.update(
            (_call_of(*one), call) for one, call in zip(missing, fetched, strict=True) if call is not None
        )


def _choose(nan: int | None, infinite: list[int], looks: Mapping[int, _Onset]) -> _Onset | None:
    """Of the op that makes NaN and of the infinities behind it, the one to name."""
    unwritten = [looks[event] for event in infinite if not looks[event].written and not looks[event].holder]
    overflows = [made for made in unwritten if _overflows(made)]
    if nan is None:
        return next(iter(overflows or unwritten), None) or (looks[infinite[0]] if infinite else None)
    end = looks[nan]
    masked = _fully_masked(end) or end.op.function in _SOFTMAX
    if overflows or (unwritten and not masked):
        return replace((overflows or unwritten)[0], leads_to=end.op.name)
    return end


def _overflows(made: _Onset) -> bool:
    """Whether the op, alone on its own inputs, is finite in float64 where it was not."""
    if made.call is None or made.output is None:
        return False
    exact = in_float64(made.call, made.op.output)
    return exact is not None and bool(is_finite(exact)[~is_finite(made.output)].all())


def _fully_masked(made: _Onset) -> bool:
    """Whether a softmax has rows in which every key is masked."""
    if made.call is None or made.output is None:
        return False
    inputs = named_inputs(made.call)
    if made.op.function in _SOFTMAX:
        dim = made.call.kwargs.get("dim", made.call.args[1] if len(made.call.args) > 1 else -1)
        return isinstance(dim, int) and bool((inputs["input"] == -math.inf).all(dim).any())
    mask = inputs.get("attn_mask")
    if made.op.function != "scaled_dot_product_attention" or mask is None:
        return False
    masked = ~mask if mask.dtype == torch.bool else mask == -math.inf
    return bool(masked.all(-1).any())


def _describe(run: str, made: _Onset) -> NonFinite:
    op, output = made.op, made.output
    flat = -1
    kind = "nan"
    if output is not None:
        wrong = ~is_finite(output.reshape(-1))
        wrong = output.isnan().reshape(-1) if not made.leads_to and bool(output.isnan().any()) else wrong
        flat = int(wrong.to(torch.uint8).argmax())
        value = float(output.reshape(-1)[flat])
        kind = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    cause, name = _cause(made)
    of = _made_of(made, flat) if cause in ("exact", "overflow") else ()
    description = NonFinite(
        op=op.module or "(model)" if op.is_boundary and not op.is_input else op.name,
        module=op.module, function=None if op.is_boundary else op.function,
        source="" if op.is_boundary else op.site.short, code="" if op.is_boundary else op.site.code,
        variable=None if op.is_boundary else op.site.variable, call=made.event.call, kind=kind, cause=cause,
        index=() if output is None or flat < 0 else index_of(flat, tuple(output.shape)), made_of=of,
        dtype=made.event.dtype, name=name,
        leads_to=made.leads_to,
    )  # fmt: skip
    return replace(description, text=_text(run, description))


def _cause(made: _Onset) -> tuple[str, str]:
    if made.op.is_boundary:
        return ("input", made.op.function.removeprefix("input:")) if made.op.is_input else ("hidden", "")
    if made.written:
        return "written", ""
    if _fully_masked(made):
        return "masked", ""
    if _overflows(made):
        return "overflow", ""
    if made.call is not None and made.holder in made.call.owned.values():
        return "weight", made.holder
    exact = made.call is not None and in_float64(made.call, made.op.output) is not None
    return ("exact" if exact else "hidden"), ""


def _made_of(made: _Onset, flat: int) -> tuple[float, ...]:
    """What an elementwise op made one element of."""
    call, output = made.call, made.output
    if call is None or output is None or flat < 0 or made.op.function not in _ELEMENTWISE:
        return ()
    operands: list[float] = []
    for value in (*call.args, *(v for k, v in call.kwargs.items() if k in ("other", "exponent"))):
        if isinstance(value, Tensor) and not value.is_complex():
            try:
                operands.append(float(torch.broadcast_to(value, output.shape).reshape(-1)[flat]))
            except RuntimeError as error:
                reraise_out_of_memory(error)
                return ()
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            operands.append(float(value))
    return tuple(operands)


def _text(run: str, made: NonFinite) -> str:
    """One sentence, of a form that the Chinese catalogue knows."""
    shown = {"nan": "NaN", "inf": "inf", "-inf": "-inf"}[made.kind]
    at = f"{made.op} ({made.source})" if made.source else made.op
    then = f", and {made.leads_to} makes NaN of it" if made.leads_to else ""
    of = ", ".join(f"{value:.4g}" for value in made.made_of) or "finite inputs"
    if made.cause == "overflow":
        why = f"of {of}: beyond {made.dtype}, and in float64 the op is finite on the same inputs"
    elif made.cause == "masked":
        why = "of a row whose keys are all masked: float64 has it, too"
    elif made.cause == "exact":
        why = f"of {of}: in float64 the op makes the same of them"
    elif made.cause == "written":
        why = "by name"
    elif made.cause == "weight":
        why = f"of a weight that holds it: {made.name}"
    elif made.cause == "input":
        return f"run {run} is given {shown} in {made.name}"
    else:
        why = "where forkpoint can't look closer"
    return f"in run {run} {at} is the first to make {shown}, {why}{then}"


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:  # pyright: ignore[reportUnknownVariableType]
            yield from _tensors(item)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))  # pyright: ignore[reportUnknownArgumentType]


def _numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, float):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:  # pyright: ignore[reportUnknownVariableType]
            yield from _numbers(item)
    elif isinstance(tree, dict):
        yield from _numbers(tuple(tree.values()))  # pyright: ignore[reportUnknownArgumentType]
