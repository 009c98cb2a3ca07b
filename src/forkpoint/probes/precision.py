"""The precision probe: does the gap fall to float64 noise when every operation is done in float64?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from forkpoint.capture.recorder import Watcher
from forkpoint.explain.results import ResultComparison, compare_results, finite_parts
from forkpoint.explain.session import Results, Session
from forkpoint.probes.given_caches import with_caches_moved
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.noise import Noise
from forkpoint.probes.passing import Patching
from forkpoint.probes.watchers import Patch, Patched, Place, Store, Values
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult

NOISE_RUNS = 2
"""Runs with every rounding moved by an ULP, from which float64 noise is measured."""
NOISE_MARGIN = 32.0
"""How many times the largest measured effect of rounding still counts as noise."""
_FALLS = 1e-3
"""Share of the native gap to which the gap has to fall in float64, for rounding."""
_TINY = 1e-9
"""Relative gap in float64 that is rounding whatever the native one is, which may be as small."""
_EPS = 2.0**-52
_FAR = 1e11
"""How many times beyond one run's noise a gap is no noise of the other's, if both runs make the same operations."""
_FLOOR = 64 * _EPS
"""Relative to the largest value: noise below which no measurement is needed."""


class Rounding:
    """The largest effect of float64's own rounding on the results of a run, by their names.

    For floating-point results it is absolute; of integers and texts it is how many of them change.

    Args:
        measure: gives it for run number 0, 1, ...; each takes as long as a run in float64.

    Attributes:
        alike: whether the two runs whose noise it is make the same operations.
    """

    def __init__(self, measure: Callable[[int], dict[str, float]], *, alike: bool = False) -> None:
        self._measure, self.alike = measure, alike
        self.measurements: list[dict[str, float]] = []
        """Of the runs that were made."""

    def after(self, runs: int) -> dict[str, float]:
        """The same over so many runs."""
        self.measurements += map(self._measure, range(len(self.measurements), runs))
        names = dict.fromkeys(name for changes in self.measurements[:runs] for name in changes)
        return {name: max(changes.get(name, 0.0) for changes in self.measurements[:runs]) for name in names}


class Runs(Protocol):
    """How both runs are made in float64."""

    def run(self, name: str, watcher: Watcher | None = None) -> Results:
        """Make run `a` or `b`, watched by somebody if anybody cares."""
        ...

    def patched(
        self, values: Values, store: Watcher | None = None, apart: dict[Place, float] | None = None
    ) -> Results | None:
        """Run B with other values put in place at some ops; None if they could not be.

        Args:
            values: what to put where.
            store: keeps what passes by.
            apart: is told, for each place, how far the value there was from what is put in.
        """
        ...


@dataclass
class PlainRuns:
    """Both runs as they are, in float64.

    Attributes:
        first: what was kept of run B when it was made with all values kept.
    """

    session: Session
    first: Store | None = None

    def run(self, name: str, watcher: Watcher | None = None) -> Results:
        if name == "b" and isinstance(watcher, Store):
            self.first = watcher
        traced = self.session.a if name == "a" else self.session.b
        return traced.again(promotion=Promotion(), watcher=watcher)

    def patched(
        self, values: Values, store: Watcher | None = None, apart: dict[Place, float] | None = None
    ) -> Results | None:
        if store is None and apart is None:
            results = self._in_passing(values)
            if results is not None:
                return results
        patch = Patch(values, {} if apart is None else apart)
        results = self.run("b", patch if store is None else Patched(patch, store))
        return None if patch.applied < len(values) else results

    def _in_passing(self, values: Values) -> Results | None:
        """The same with nobody watching; None if that can't be told to have been the same."""
        turns = {} if self.first is None else self.first.turns
        if not all(place in turns for place in values):
            return None
        promotion = Promotion()
        passing = Patching(Patch(values), turns, promotion)
        results = self.session.b.in_float64(promotion, under=lambda: passing)
        return results if passing.complete else None


@dataclass(frozen=True)
class Precision:
    """Both runs in float64.

    Attributes:
        a, b: their results.
        compared: the results, compared.
        rounding: what float64's own rounding does; it takes more runs, so it is asked only when something depends on it.
        refused: operations that were not done in float64.
        vanishes: whether every gap is within noise.
        gap, relative: the largest gap, and relative to the largest value of its result.
        runs: how both runs are made in float64.
        calls: by run, how often each function was called there; empty where nobody counted.
        tables: that the gap is what the rounding of tables left, which float64 can't take back; it counts as noise then.
    """

    a: Results
    b: Results
    compared: ResultComparison
    rounding: Rounding
    refused: tuple[str, ...]
    vanishes: bool
    gap: float
    relative: float
    result: ProbeResult
    runs: Runs
    calls: tuple[Mapping[Callable[..., Any], int], ...] = ()
    tables: ProbeResult | None = None

    @property
    def noise(self) -> dict[str, float]:
        """For each result's name the largest absolute effect of float64 rounding."""
        return self.rounding.after(NOISE_RUNS)

    @property
    def measured(self) -> dict[str, float]:
        """The same as far as something has depended on it."""
        return self.rounding.after(len(self.rounding.measurements) or NOISE_RUNS)

    def falls_from(self, native: ResultComparison) -> bool:
        """Whether the gap is orders of magnitude below what it is in native precision: noise as large proves nothing.

        Integers have no sizes. Where nothing else differs, less than half as many of them have to.
        """
        if self.tables is not None:
            return True
        if not native.max_abs:
            return 2 * self.compared.discrete_differing <= native.discrete_differing
        return self.gap <= _FALLS * native.max_abs or self.relative <= _TINY

    def beyond_noise(self, compared: ResultComparison) -> float:
        """The largest gap of a comparison, in multiples of what noise can be; at most 1 is noise."""
        return excess(compared, self.rounding)


def precision(session: Session, weights: tuple[Weight, ...] = (), *, watched: bool = False) -> Precision:
    """Compute both runs in float64, and measure what float64's own rounding does to them.

    Args:
        weights: what both runs should use.
        watched: whether to see where each value of the results comes from: their order may be another in float64.
    """
    refused: list[str] = []
    calls: list[Mapping[Callable[..., Any], int]] = []
    with same_weights(weights):
        results: list[Results] = []
        for traced in (session.a, session.b):
            promotion = Promotion()
            results.append(traced.again(promotion=promotion) if watched else traced.in_float64(promotion))
            refused += [str(r) for r in promotion.refused]
            calls.append(promotion.calls)
        compared = compare_results(session, *results)

    def measure(number: int) -> dict[str, float]:
        with same_weights(weights):  # one run after the other: what one of them rounds may grow more
            return measure_noise(session, "ab"[number % 2], results[number % 2], number)

    a, b = session.a.run, session.b.run
    rounding = Rounding(measure, alike=a.model is b.model and a.call is b.call)
    gap = compared.max_abs
    relative = max((g.gap.max_rel for g in compared.floating), default=0.0)
    vanishes = excess(compared, rounding) <= 1
    part = finite_parts(compared)
    if part.apart:
        text = f"in float64 {part.apart:,} elements are NaN or infinite in one run alone"
        if part.max_abs:
            text += f"; the gap of the others is {part.max_abs:.2g}"
    elif not compared.differs:
        text = "in float64 the results are the same, bit for bit"
    elif not gap:
        flipped, among = compared.discrete_differing, compared.discrete_compared
        text = f"in float64 {flipped} of {among} integer results differ"
    elif vanishes and not rounding.measurements:  # no more than the rounding of the results themselves
        text = f"in float64 the gap is {gap:.2g}, {relative / _EPS:.2g} units in the last place of the largest value"
    else:
        noise = max(rounding.after(len(rounding.measurements) or NOISE_RUNS).values(), default=0.0)
        text = f"in float64 the gap is {gap:.2g}; float64's own rounding makes {noise:.2g}"
    if refused:
        text += f"; {len(refused)} operations were not done in float64"
    outcome = "vanishes" if vanishes else "remains"
    return Precision(
        results[0], results[1], compared, rounding, tuple(dict.fromkeys(refused)), vanishes, gap, relative,
        ProbeResult("precision", outcome, gap, text), PlainRuns(session), tuple(calls),
    )  # fmt: skip


def measure_noise(session: Session, run: str, exact: Results, seed: int) -> dict[str, float]:
    """For each result of a run, the largest change when every rounding is moved by one ULP of float64, up or down.

    For integers and texts it is how many of them change. What run B has and run A has not (padding, another row) is left
    aside: its noise is not that of any gap. A cache that one run alone was given was rounded before: it is moved, too.

    Args:
        run: `a` or `b`.
        exact: its results in float64.
        seed: of what is up and what is down.
    """
    promotion = Promotion()
    noisy = Noise(seed, promotion.value)
    traced = session.a if run == "a" else session.b
    moved = traced.in_float64(promotion, under=lambda: noisy, calls=with_caches_moved(session, run, seed))
    if run == "a":
        return largest_changes(exact, moved)
    noise: dict[str, float] = {}
    for result_gap in compare_results(session, exact, moved, own=run).gaps:
        change = result_gap.gap.max_abs if result_gap.floating else float(result_gap.gap.differing)
        noise[result_gap.result] = max(
            noise.get(result_gap.result, 0.0), change if math.isfinite(change) else 0.0
        )
    return noise


def largest_changes(exact: Results, moved: Results) -> dict[str, float]:
    """For each result the largest absolute difference between two runs of one layout; how many integers differ."""
    noise: dict[str, float] = {}
    for before, after in zip(exact, moved, strict=True):
        for name, (value, _) in before.items():
            if name not in after or value.shape != after[name][0].shape or not value.numel():
                continue
            if value.dtype.is_floating_point or value.dtype.is_complex:
                wide = torch.complex128 if value.dtype.is_complex else torch.float64
                change = (
                    (after[name][0].detach().to(wide) - value.detach().to(wide))
                    .abs()
                    .nan_to_num(0.0, 0.0, 0.0)
                    .max()
                )
            else:
                change = (after[name][0] != value).sum()
            noise[name] = max(noise.get(name, 0.0), float(change))
    return noise


def excess(compared: ResultComparison, rounding: Rounding) -> float:
    """The largest gap in multiples of what noise can be.

    Noise is measured only beyond the results' own rounding, and no more often than until the gap is within it: what
    further runs find can only be larger.
    """
    if not all(math.isfinite(result.gap.max_abs) for result in compared.floating):
        return math.inf
    times = _times(compared, {})
    for runs in range(1, NOISE_RUNS + 1):
        if times <= 1 or (rounding.alike and runs > 1 and times > _FAR):
            break
        times = _times(compared, rounding.after(runs))
    return times


def _times(compared: ResultComparison, noise: dict[str, float]) -> float:
    """The largest gap in multiples of the results' own rounding, and where it is larger of that and some noise."""
    worst = 0.0
    for result in compared.gaps:
        if not result.floating:
            allowed = NOISE_MARGIN * noise.get(result.result, 0.0)
            if result.gap.differing:
                worst = max(worst, result.gap.differing / allowed if allowed else math.inf)
            continue
        if not result.gap.max_abs:
            continue
        scale = result.gap.max_abs / result.gap.max_rel if result.gap.max_rel else 0.0
        allowed = _FLOOR * scale
        if result.gap.max_abs > allowed:
            allowed += NOISE_MARGIN * noise.get(result.result, 0.0)
        worst = max(worst, result.gap.max_abs / allowed if allowed else math.inf)
    return worst
