"""The operations probe: does float64 make what ran natively, or does the model ask for the dtype and take another path?

That two runs agree in float64 shows that they differ by rounding if float64 makes the operations that they made. A model
may make others: it branches on a dtype. Then its tensors say that they are of its own dtype, and both runs are made in
float64 once more. Where the model does not take its own path even so, how large the gap is is all that tells: a fused
and a spelt-out form of one function differ by rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from forkpoint.capture.functions import Function, resolve
from forkpoint.capture.mode import transforms
from forkpoint.capture.recorder import Recorder, Watcher
from forkpoint.capture.sites import CallStack
from forkpoint.explain.results import ResultComparison, compare_results
from forkpoint.explain.session import Results, Session, Traced
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.native import beyond, times_rounding
from forkpoint.probes.precision import Precision, excess
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult, VerdictKind

_BEYOND = 4.0
"""Times what rounding makes up to which other operations may be another form of one function."""
_FAR = 16.0
"""Units in the last place from which on operations are looked at though each function was called as often."""
_ALIKE = frozenset({
    "to", "type", "type_as", "float", "half", "bfloat16", "double", "clone", "contiguous", "detach", "data",
})  # fmt: skip
"""Casts, and what leaves every value."""
_LIMITS = frozenset(
    getattr(torch.finfo(dtype), name)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for name in ("min", "max", "eps", "tiny", "smallest_normal")
)
"""Numbers that a model asks of a dtype; they are other ones in another dtype, and stand for one thing."""

Key = tuple[str, str, str]


@dataclass
class Calls(Watcher):
    """Notes every call of a run: what is called where, and with which numbers.

    Attributes:
        made: how often.
        places: by key, the place in the source.
    """

    made: Counter[tuple[Key, tuple[Any, ...]]] = field(default_factory=Counter[tuple[Key, tuple[Any, ...]]])
    places: dict[Key, str] = field(default_factory=dict[Key, str])

    def make(
        self, recorder: Recorder, function: Function, place: CallStack, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # fmt: skip
        """Make a call of the model; what it returns is what the model goes on with."""
        if transforms() is None and not function.silent and function.name not in _ALIKE:
            key = (recorder.tape.stack[-1].path, function.name, place.site.chain)
            self.made[key, tuple(_numbers((args, kwargs)))] += 1
            self.places.setdefault(key, f"{key[0] or '(model)'}/{key[1]} ({place.site.short})")
        return function.func(*args, **kwargs)

    @property
    def times(self) -> Counter[Key]:
        """How often a function was called somewhere, whatever the numbers."""
        times_by_key: Counter[Key] = Counter()
        for (key, _), times in self.made.items():
            times_by_key[key] += times
        return times_by_key


@dataclass(frozen=True)
class Operations:
    """What float64 is worth where it makes other operations.

    Attributes:
        kind: semantic, rounding, or None where it can't be told.
    """

    kind: VerdictKind | None
    result: ProbeResult


def operations(
    session: Session, exact: Precision, compared: ResultComparison, weights: tuple[Weight, ...] = ()
) -> Operations | None:
    """Whether float64 makes the operations that the runs made natively; None where it does.

    Costs nothing where each function is called as often as it was, unless the gap is of many units in the last place.

    Args:
        exact: both runs in float64, where their gap vanishes.
        compared: the results as they are.
        weights: those that both were given in float64.
    """
    runs = (session.a, session.b)
    if not all(traced.functions for traced in runs):
        return None
    far = replace(compared, gaps=tuple(beyond(session, compared, _FAR)))
    is_far = bool(far.gaps) and times_rounding(session, exact, far, _FAR, _BEYOND) > _BEYOND
    if not is_far and not any(map(_differ, runs, exact.calls)):
        return None
    native = [_made(traced) for traced in runs]
    wide = [_made(traced, Promotion()) for traced in runs]
    differences = [
        _other(traced, one.calls, other.calls) for traced, one, other in zip(runs, native, wide, strict=True)
    ]
    if not any(differences):
        return None
    where = next(f"run {name} {what}" for name, what in zip("AB", differences, strict=True) if what)
    told = _as_natively(session, native, weights)
    if told is not None:
        if excess(told, exact.rounding) > 1:
            text = f"in float64 {where}; with each run on the path of its own dtype a gap of {told.max_abs:.2g} is left there"
            return Operations(VerdictKind.SEMANTIC, ProbeResult("operations", "remains", told.max_abs, text))
        text = (
            f"in float64 {where}; with each run on the path of its own dtype a gap of {told.max_abs:.2g} is left there, "
            "which is noise"
        )
        return Operations(VerdictKind.ROUNDING, ProbeResult("operations", "vanishes", told.max_abs, text))
    times = times_rounding(session, exact, compared, _BEYOND)
    if times <= _BEYOND:
        text = f"in float64 {where}; the gap is {times:.2g} times what rounding makes"
        return Operations(VerdictKind.ROUNDING, ProbeResult("operations", "within", times, text))
    text = f"in float64 {where}, and the gap is {times:,.0f} times what rounding makes: float64 does not tell what it is"
    return Operations(None, ProbeResult("operations", "other", times, text))


@dataclass(frozen=True)
class _CountedRun:
    """A run that was made once more, and what it called."""

    results: Results
    calls: Calls


def _made(traced: Traced, promotion: Promotion | None = None) -> _CountedRun:
    calls = Calls()
    return _CountedRun(traced.again(watcher=calls, promotion=promotion), calls)


def _as_natively(
    session: Session, native: list[_CountedRun], weights: tuple[Weight, ...]
) -> ResultComparison | None:
    """Both runs in float64, on the path that each takes in its own dtype, compared; None where one does not take it."""
    results: list[Results] = []
    for traced, own in zip((session.a, session.b), native, strict=True):
        promotion = Promotion(shown_dtype=_own_dtype(traced))
        with same_weights(weights):
            made = _made(traced, promotion)
        if promotion.refused or _other(traced, own.calls, made.calls):
            return None
        results.append(made.results)
    return compare_results(session, *results)


def _own_dtype(traced: Traced) -> torch.dtype | None:
    """The floating-point dtype that most values of a run have."""
    names = Counter(row[2].dtype for row in traced.trace.rows if row[2].floating)
    dtype = getattr(torch, max(names, key=lambda name: names[name], default=""), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def _differ(traced: Traced, calls: Mapping[Callable[..., Any], int]) -> bool:
    """Whether some function was called more often in float64 than in the trace, or less often."""
    native = Counter(op.function for op, *_ in traced.trace.rows if not op.is_boundary and not op.output)
    exact: Counter[str] = Counter()
    for func, times in calls.items():
        function = resolve(func)
        if not function.silent:
            exact[function.name] += times
    return any(native[name] != exact[name] for name in native.keys() | exact.keys() if name not in _ALIKE)


def _other(traced: Traced, native: Calls, exact: Calls) -> str | None:
    """What a run does otherwise in float64, in words; None where it makes the same calls with the same numbers."""
    opaque = tuple(f"{path}." for path in traced.trace.opaque)  # those are looked into in float64 alone
    odd = [key for key, _ in (*(native.made - exact.made), *(exact.made - native.made))]
    odd = [key for key in odd if not f"{key[0]}.".startswith(opaque)]
    mine, theirs = native.times, exact.times
    for key in sorted(odd, key=lambda key: mine[key] == theirs[key]):  # calls first, then numbers
        place = native.places.get(key) or exact.places[key]
        if mine[key] != theirs[key]:
            return f"calls {place} {theirs[key]} times and not {mine[key]} times as natively"
        return f"calls {place} with other numbers than natively"
    return None


def _numbers(value: Any) -> Iterator[Any]:
    """The numbers, flags and texts among the arguments of a call; limits of dtypes as one."""
    if isinstance(value, dict):
        for name in sorted(value, key=str):
            yield from _numbers(value[name])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, float) and (abs(value) in _LIMITS or value in _LIMITS):
        yield "limit"
    elif isinstance(value, (bool, int, float, str)):
        yield value
    elif isinstance(value, slice):
        yield from _numbers((value.start, value.stop, value.step))
