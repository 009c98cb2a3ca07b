"""The precision probe: does the gap fall to float64 noise when every operation is done in float64?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from forkpoint.impact import ResultComparison, compare_results
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.watchers import Noise
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.session import Results, Session

NOISE_RUNS = 2
"""Runs with every rounding moved by an ULP, from which float64 noise is measured."""
NOISE_MARGIN = 32.0
"""How many times the largest measured effect of rounding still counts as noise."""
_EPS = 2.0**-52
_FLOOR = 64 * _EPS
"""Relative to the largest value: noise below which no measurement is needed."""


@dataclass(frozen=True)
class Precision:
    """Both runs in float64.

    Attributes:
        a, b: their results.
        compared: the results, compared.
        measure: gives the noise; it takes more runs the first time, so it is asked only when something depends on it.
        refused: operations that were not done in float64.
        vanishes: whether every gap is within noise.
        gap, relative: the largest gap, and relative to the largest value of its result.
    """

    a: Results
    b: Results
    compared: ResultComparison
    measure: Callable[[], dict[str, float]]
    refused: tuple[str, ...]
    vanishes: bool
    gap: float
    relative: float
    result: ProbeResult

    @property
    def noise(self) -> dict[str, float]:
        """For each result's name the largest absolute effect of float64 rounding."""
        return self.measure()

    def beyond_noise(self, compared: ResultComparison) -> float:
        """The largest gap of a comparison, in multiples of what noise can be; at most 1 is noise."""
        return _excess(compared, self.measure)


def precision(session: Session, weights: tuple[Weight, ...] = ()) -> Precision:
    """Compute both runs in float64, and measure what float64's own rounding does to them."""
    refused: list[str] = []
    with same_weights(weights):
        results: list[Results] = []
        for traced in (session.a, session.b):
            promotion = Promotion()
            results.append(traced.again(promotion=promotion))
            refused += [str(r) for r in promotion.refused]
        compared = compare_results(session, *results)

    @cache
    def measure() -> dict[str, float]:
        with same_weights(weights):
            return measure_noise(session, results[0])

    gap = compared.max_abs
    relative = max((g.gap.max_rel for g in compared.gaps), default=0.0)
    own = _excess(compared, dict) <= 1  # no more than the rounding of the results themselves
    vanishes = own or _excess(compared, measure) <= 1
    if not gap:
        text = "in float64 the results are the same, bit for bit"
    elif own:
        text = f"in float64 the gap is {gap:.2g}, {relative / _EPS:.2g} units in the last place of the largest value"
    else:
        text = f"in float64 the gap is {gap:.2g}; float64's own rounding makes {max(measure().values(), default=0.0):.2g}"
    if refused:
        text += f"; {len(refused)} operations were not done in float64"
    outcome = "vanishes" if vanishes else "remains"
    return Precision(
        results[0], results[1], compared, measure, tuple(dict.fromkeys(refused)), vanishes, gap, relative,
        ProbeResult("precision", outcome, gap, text),
    )  # fmt: skip


def measure_noise(session: Session, exact: Results) -> dict[str, float]:
    """For each result of run A, the largest change when every rounding is moved by one ULP of float64."""
    noise: dict[str, float] = {}
    for seed in range(NOISE_RUNS):
        moved = session.a.again(promotion=Promotion(), watcher=Noise(seed))
        for before, after in zip(exact, moved, strict=True):
            for name, (value, _) in before.items():
                if name in after and value.dtype.is_floating_point and value.shape == after[name][0].shape:
                    change = (after[name][0].double() - value.double()).abs().nan_to_num(0.0, 0.0, 0.0)
                    if change.numel():
                        noise[name] = max(noise.get(name, 0.0), float(change.max()))
    return noise


def _excess(compared: ResultComparison, measure: Callable[[], dict[str, float]]) -> float:
    """The largest gap in multiples of what noise can be, which is asked for only beyond the results' own rounding."""
    worst = 0.0
    for result in compared.gaps:
        if not result.gap.max_abs:
            continue
        if not math.isfinite(result.gap.max_abs):
            return math.inf
        scale = result.gap.max_abs / result.gap.max_rel if result.gap.max_rel else 0.0
        allowed = _FLOOR * scale
        if result.gap.max_abs > allowed:
            allowed += NOISE_MARGIN * measure().get(result.result, 0.0)
        worst = max(worst, result.gap.max_abs / allowed if allowed else math.inf)
    return worst
