"""The precision probe: does the gap fall to float64 noise when every operation is done in float64?"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
_FLOOR = 64 * 2.0**-52
"""Relative to the largest value: noise below which no measurement is needed."""


@dataclass(frozen=True)
class Precision:
    """Both runs in float64.

    Attributes:
        a, b: their results.
        compared: the results, compared.
        noise: for each result's name the largest absolute effect of float64 rounding.
        refused: operations that were not done in float64.
        vanishes: whether every gap is within noise.
        gap, relative: the largest gap, and relative to the largest value of its result.
    """

    a: Results
    b: Results
    compared: ResultComparison
    noise: dict[str, float]
    refused: tuple[str, ...]
    vanishes: bool
    gap: float
    relative: float
    result: ProbeResult

    def beyond_noise(self, compared: ResultComparison) -> float:
        """The largest gap of a comparison, in multiples of what noise can be; at most 1 is noise."""
        return _excess(compared, self.noise)


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
        noise = measure_noise(session, results[0]) if compared.max_abs > 0 else {}
    excess = _excess(compared, noise)
    gap = compared.max_abs
    relative = max((g.gap.max_rel for g in compared.gaps), default=0.0)
    vanishes = excess <= 1
    level = max(noise.values(), default=0.0)
    text = (
        f"in float64 the gap is {gap:.2g}; float64's own rounding makes {level:.2g}"
        if gap
        else "in float64 the results are the same, bit for bit"
    )
    if refused:
        text += f"; {len(refused)} operations were not done in float64"
    outcome = "vanishes" if vanishes else "remains"
    return Precision(
        results[0], results[1], compared, noise, tuple(dict.fromkeys(refused)), vanishes, gap, relative,
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


def _excess(compared: ResultComparison, noise: dict[str, float]) -> float:
    worst = 0.0
    for result in compared.gaps:
        name = result.name.split(" (call")[0]
        if not result.gap.max_abs:
            continue
        if not math.isfinite(result.gap.max_abs):
            return math.inf
        scale = result.gap.max_abs / result.gap.max_rel if result.gap.max_rel else 0.0
        allowed = NOISE_MARGIN * noise.get(name, 0.0) + _FLOOR * scale
        worst = max(worst, result.gap.max_abs / allowed if allowed else math.inf)
    return worst
