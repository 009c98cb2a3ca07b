"""The whole-numbers probe: do positions collapse where the code asks for a narrow dtype, and does the result show it?

Float64 tells them all apart, so that the precision probe can't see it: 300 positions are 279 in bfloat16. Only casts
and ranges are looked at that hold whole numbers at equal distances, more of them than the dtype can tell apart.
"""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import Fetch, Recorder, Taken
from forkpoint.explain.results import compare_results
from forkpoint.explain.session import Results, Session, Traced
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
_FEWEST = 8
"""Numbers from which on they are a range."""


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
    taken: Taken
    before: int
    after: int

    @property
    def place(self) -> tuple[Key, int, int]:
        op = self.taken.op
        return (op.module, op.function, op.site.chain), self.taken.nth, self.taken.call


@dataclass
class _AsCast:
    """Goes on with the numbers that a dtype left, at some calls."""

    values: dict[tuple[Key, int, int], Tensor]
    entrances_only: ClassVar[bool] = False

    def edits(self, key: Key) -> bool:
        return any(place[0] == key for place in self.values)

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        found = None if output else self.values.get((key, nth, recorder.call))
        return None if found is None or found.shape != value.shape else found.to(value.device, value.dtype)

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        return None


def whole_numbers(session: Session, exact: Precision, weights: tuple[Weight, ...] = ()) -> Whole | None:
    """Make both runs in float64 but for whole numbers that collapse; None where none do."""
    found = {"A": _collapsing(session.a), "B": _collapsing(session.b)}
    if not any(found.values()):
        return None
    with same_weights(weights):
        results = [_made(traced, found[name]) for name, traced in (("A", session.a), ("B", session.b))]
        compared = compare_results(session, *results)
    moves = exact.beyond_noise(compared) > 1
    name, first = next((name, all_[0]) for name, all_ in found.items() if all_)
    dtype = str(first.taken.outputs[0].dtype).removeprefix("torch.")
    where = first.taken.op.place
    text = f"{first.before:,} whole numbers become {first.after:,} in {dtype} at {where} in run {name}"
    told = f"{text}; with that alone, in float64, the gap is {compared.max_abs:.2g}"
    outcome = "collapse" if moves else "alike"
    return Whole(moves, text, ProbeResult("whole", outcome, compared.max_abs, told))


def _made(traced: Traced, found: list[_Collapse]) -> Results:
    values = {one.place: one.taken.outputs[0] for one in found}
    return traced.again(promotion=Promotion(), watcher=_AsCast(values))


def _collapsing(traced: Traced) -> list[_Collapse]:
    """The calls of a run at which whole numbers collapse, in the order in which they were made."""
    taken: list[Taken] = []
    fetches: list[Fetch] = []
    trace = traced.trace
    for index, (op, *_) in enumerate(trace.rows):
        if op.function in _MAKING and not op.is_boundary:
            event = trace.event(index)
            if _may_collapse(event.dtype, event.shape, traced):
                key = op.module, op.function, op.site.chain
                fetches.append(Fetch(key, event.call, event.nth, taken.append))
    if fetches:
        traced.again(fetches)
    return [found for one in taken if (found := _collapse_of(one)) is not None]


def _may_collapse(dtype: str, shape: tuple[int, ...], traced: Traced) -> bool:
    """Whether a value has room for more whole numbers than its dtype tells apart, and no more than one for each column."""
    limit = _TOLD_APART.get(dtype)
    if limit is None or not shape or max(shape) <= limit:
        return False
    rows = max((len(c.sample) for entry in traced.run.layout.calls for c in entry.values()), default=1)
    return math.prod(shape) <= rows * max(shape)


def _collapse_of(taken: Taken) -> _Collapse | None:
    value = taken.outputs[0].detach().double().reshape(-1)
    source: Any = next((arg for arg in taken.args if isinstance(arg, Tensor)), None)
    if source is None:
        if not taken.op.function.endswith("arange"):
            return None
        before = len(value)
    else:
        numbers = source.detach().double().reshape(-1)
        if numbers.numel() != value.numel() or not _is_range(numbers.unique()):
            return None
        before = len(numbers.unique())
    after = len(value.unique())
    return _Collapse(taken, before, after) if after < before else None


def _is_range(numbers: Tensor) -> bool:
    """Whether they are whole, and at equal distances."""
    steps = numbers.diff()
    return len(numbers) >= _FEWEST and bool((numbers == numbers.round()).all() & (steps == steps[0]).all())
