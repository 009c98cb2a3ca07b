"""The whole-numbers probe: do positions collapse where the code asks for a narrow dtype, and does the result show it?

Float64 tells them all apart, so that the precision probe can't see it: 300 positions are 279 in bfloat16. Only casts
and ranges are looked at that hold whole numbers at equal distances, more of them than the dtype can tell apart; and
arithmetic of such integers with a tensor of a narrow dtype, in which torch casts the integers to that dtype first.
Where the model is given whole numbers that are larger (the steps 990 to 995 of a diffusion, the corners of a box), a
few of them collapse as well.
"""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import CopiedCall, Fetch, Recorder, Watcher
from forkpoint.explain.results import compare_results
from forkpoint.explain.session import Results, Session, Traced
from forkpoint.probes.content import id_names
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.precision import Precision
from forkpoint.probes.watchers import Key
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult

_TOLD_APART = {"bfloat16": 1 << 8, "float16": 1 << 11, "float32": 1 << 24}
"""Up to which number each dtype has every whole one."""
_MAKING = frozenset(
    {"to", "type", "type_as", "bfloat16", "half", "float", "arange", "as_tensor", "tensor", "copy_"}
    | {"aten._to_copy", "aten.to", "aten.arange"}
)
"""Functions whose results are other numbers only in that they have another dtype, and those that make ranges."""
_MIXING = frozenset(
    {"mul", "mul_", "multiply", "div", "div_", "true_divide", "add", "add_", "sub", "sub_", "outer"}
)
"""Arithmetic that casts integers to the dtype of the other tensor, before anything is computed."""
_FEWEST = 8
"""Numbers from which on they are a range."""
_MOST_GIVEN = 4096
"""Elements of an input up to which it is looked at for large whole numbers."""


@dataclass(frozen=True)
class Whole:
    """Whole numbers that collapse.

    Attributes:
        moves: whether the result shows it, with everything else done in float64.
        text: where they do, and how many are left.
    """

    moves: bool
    text: str
    result: ProbeResult


@dataclass(frozen=True)
class _Collapse:
    """A call at which whole numbers collapse.

    Attributes:
        numbers: those that go in, where the call does more than cast them.
        before, after: how many different ones there are.
    """

    call: CopiedCall
    numbers: Tensor | None
    before: int
    after: int

    @property
    def place(self) -> tuple[Key, int, int]:
        op = self.call.op
        return (op.module, op.function, op.site.chain), self.call.nth, self.call.call

    @property
    def dtype(self) -> torch.dtype:
        return self.call.outputs[0].dtype

    def applied(self, value: Tensor) -> Tensor | None:
        """What the call makes of the numbers that the dtype leaves, given what it makes of all of them in float64."""
        made = self.call.outputs[0]
        if made.shape != value.shape:
            return None
        if self.numbers is None:
            return made.to(value.device, value.dtype)
        whole = self.numbers.to(value.device, value.dtype)
        left = self.numbers.to(self.dtype).to(value.device, value.dtype)
        function, second = self.call.op.function.removesuffix("_"), self.numbers is not self.call.args[0]
        if function == "outer":
            whole, left = (n[None, :] if second else n[:, None] for n in (whole, left))
        if function in ("add", "sub"):
            by = (left - whole) * (self.call.kwargs.get("alpha", 1) if second else 1)
            return value - by if function == "sub" and second else value + by
        share = torch.where(whole == 0, 1.0, left / whole)
        return value / share if second and function in ("div", "true_divide") else value * share


@dataclass
class _AsCast(Watcher):
    """Goes on with the numbers that a dtype left, at some calls."""

    collapses: dict[tuple[Key, int, int], _Collapse]

    def edits(self, key: Key) -> bool:
        return any(place[0] == key for place in self.collapses)

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        collapse = None if output else self.collapses.get((key, nth, recorder.call))
        return None if collapse is None else collapse.applied(value)


def whole_numbers(session: Session, exact: Precision, weights: tuple[Weight, ...] = ()) -> Whole | None:
    """Make both runs in float64 but for whole numbers that collapse; None where none do."""
    collapsing = {"A": _collapsing(session.a), "B": _collapsing(session.b)}
    if not any(collapsing.values()):
        return None
    with same_weights(weights):
        results = [_made(traced, collapsing[name]) for name, traced in (("A", session.a), ("B", session.b))]
        compared = compare_results(session, *results)
    moves = exact.beyond_noise(compared) > 1
    name, first = next((name, all_[0]) for name, all_ in collapsing.items() if all_)
    dtype = str(first.dtype).removeprefix("torch.")
    where = first.call.op.place
    text = f"{first.before:,} whole numbers become {first.after:,} in {dtype} at {where} in run {name}"
    told = f"{text}; with that alone, in float64, the gap is {compared.max_abs:.2g}"
    outcome = "collapse" if moves else "alike"
    return Whole(moves, text, ProbeResult("whole", outcome, compared.max_abs, told))


def _made(traced: Traced, collapsing: list[_Collapse]) -> Results:
    return traced.again(promotion=Promotion(), watcher=_AsCast({one.place: one for one in collapsing}))


def _collapsing(traced: Traced) -> list[_Collapse]:
    """The calls of a run at which whole numbers collapse, in the order in which they were made."""
    calls: list[CopiedCall] = []
    fetches: list[Fetch] = []
    trace = traced.trace
    integers: dict[str, set[tuple[int, ...]]] = {}
    largest, sizes = _given(traced)
    for index, (op, call, form, *_) in enumerate(trace.rows):
        if not form.floating and _has_many(form.shape, traced):
            integers.setdefault(op.module, set()).add(form.shape)
        limit = _TOLD_APART.get(form.dtype)
        if limit is None or op.is_boundary:
            continue
        few = largest > limit and math.prod(form.shape) in sizes
        casts = op.function in _MAKING and (few or _has_many(form.shape, traced, limit))
        mixes = op.function in _MIXING and any(
            max(shape) > limit and (_fits(shape, form.shape) or op.function == "outer")
            for shape in integers.get(op.module, ())
        )
        if casts or mixes:
            key = op.module, op.function, op.site.chain
            fetches.append(Fetch(key, call, trace.nth(index), calls.append))
    if fetches:
        traced.again(fetches)
    return [collapse for one in calls if (collapse := _collapse_of(one)) is not None]


def _given(traced: Traced) -> tuple[float, set[int]]:
    """The largest whole number that the model is given besides ids and masks, and of how many elements such inputs are."""
    largest, sizes = 0.0, set[int]()
    ids = id_names(traced)
    for inputs in traced.run.calls:
        for name, value in inputs.items():
            if not isinstance(value, Tensor) or name in ids or "mask" in name or "label" in name:
                continue
            if 1 < value.numel() <= _MOST_GIVEN and value.dtype != torch.bool and not value.is_complex():
                numbers = value.detach().double()
                if bool((numbers == numbers.round()).all()):
                    largest, sizes = max(largest, float(numbers.abs().max())), sizes | {value.numel()}
    return largest, sizes


def _fits(shape: tuple[int, ...], result: tuple[int, ...]) -> bool:
    """Whether a value of one shape may have gone into arithmetic whose result has another.

    >>> _fits((300,), (1, 300, 4)), _fits((300, 1), (1, 300, 4))
    (False, True)
    """
    pairs = zip(reversed(shape), reversed(result), strict=False)
    return len(shape) <= len(result) and all(size in (1, other) for size, other in pairs)


def _has_many(shape: tuple[int, ...], traced: Traced, limit: int = min(_TOLD_APART.values())) -> bool:
    """Whether a value has room for more whole numbers than a dtype tells apart, and no more than one for each column."""
    if not shape or max(shape) <= limit:
        return False
    rows = max((len(c.sample) for entry in traced.run.layout.calls for c in entry.values()), default=1)
    return math.prod(shape) <= rows * max(shape)


def _collapse_of(call: CopiedCall) -> _Collapse | None:
    if call.op.function in _MIXING:
        integers = (a for a in call.args if isinstance(a, Tensor) and not a.dtype.is_floating_point)
        numbers = next(integers, None)
        return None if numbers is None or numbers.dtype == torch.bool else _counted(call, numbers, numbers)
    source: Any = next((arg for arg in call.args if isinstance(arg, Tensor)), None)
    if source is not None:
        return None if source.numel() != call.outputs[0].numel() else _counted(call, source, None)
    if not call.op.function.endswith("arange"):
        return None
    before, after = call.outputs[0].numel(), len(call.outputs[0].double().unique())
    return _Collapse(call, None, before, after) if after < before else None


def _counted(call: CopiedCall, source: Tensor, numbers: Tensor | None) -> _Collapse | None:
    """How many whole numbers at equal distances the dtype of the result leaves; None where it leaves all."""
    whole = source.detach().double().unique()
    left = source.detach().to(call.outputs[0].dtype) if numbers is not None else call.outputs[0].detach()
    after = len(left.double().unique())
    few = len(whole) < _FEWEST and bool((whole == whole.round()).all())
    return (
        _Collapse(call, numbers, len(whole), after)
        if (few or _is_range(whole)) and after < len(whole)
        else None
    )


def _is_range(numbers: Tensor) -> bool:
    """Whether they are whole, and at equal distances."""
    steps = numbers.diff()
    return len(numbers) >= _FEWEST and bool((numbers == numbers.round()).all() & (steps == steps[0]).all())
