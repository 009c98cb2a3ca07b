"""The native probe: is each run, as it is, as near to its own operations in float64 as rounding lets it be?

That two runs agree in float64 shows that their operations say the same. It does not show that what ran natively does
what they say: a compiled graph or a kernel that computes something else is replaced in float64. How large rounding
can get is measured: every rounding in float64 is moved by one unit in the last place, and what that does to the
result grows with the unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from forkpoint.explain.results import ResultComparison, ResultGap, compare_results
from forkpoint.explain.session import Session, Traced
from forkpoint.probes.inputs import Weight
from forkpoint.probes.precision import Precision
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.support.precision import float32_epsilon_on_cpu, float32_matmul_precision

BEYOND = 256.0
"""Times what rounding makes from which on it is none. Sound comparisons of many models reached 1, those whose routing
flips 6; a wrong constant in a compiled layer makes a million."""


@dataclass(frozen=True)
class Native:
    """Runs that are not within rounding of their own operations in float64.

    Attributes:
        runs: which are, `A`, `B` or both.
    """

    runs: tuple[str, ...]
    result: ProbeResult


def native(
    session: Session, exact: Precision, compared: ResultComparison, weights: tuple[Weight, ...] = ()
) -> Native | None:
    """Hold each run as it is against itself in float64; None if the gap between them is within rounding.

    Args:
        exact: both runs in float64, where their gap vanishes.
        compared: the results as they are.
        weights: those that one run has rounded, and that both were given in float64. What runs natively has its own, and
            is held against float64 with its own.
    """
    gap = times_rounding(session, exact, compared)
    if gap <= BEYOND:
        return None
    apart: dict[str, float] = {}
    for name, own, wide, traced in (("A", "a", exact.a, session.a), ("B", "b", exact.b, session.b)):
        mine = traced.in_float64(Promotion()) if weights else wide
        apart[name] = times_rounding(session, exact, compare_results(session, mine, traced.results, own=own))
    runs = tuple(name for name, times in apart.items() if times > BEYOND)
    if len(runs) == 1:
        text = (
            f"run {runs[0]} is {apart[runs[0]]:,.0f} times as far from its own operations in float64 as rounding makes: "
            "what ran computes something else"
        )
    elif runs:
        text = (
            f"the gap is {gap:,.0f} times what rounding makes, and both runs are as far from their own operations in "
            "float64: what ran is not what was done in float64"
        )
    else:
        return None  # the weights are rounded, or both runs are off by almost as much as they may be
    return Native(runs, ProbeResult("native", "one" if len(runs) == 1 else "both", gap, text))


def beyond(session: Session, compared: ResultComparison, units: float) -> Iterator[ResultGap]:
    """The floating-point results that are more than some units in the last place of their largest value apart."""
    unit = max(_unit(session.a), _unit(session.b))
    return (result_gap for result_gap in compared.floating if result_gap.gap.max_rel > units * unit)


def times_rounding(
    session: Session, exact: Precision, compared: ResultComparison, beyond: float = BEYOND, margin: float = 0.0
) -> float:  # fmt: skip
    """The largest gap of a comparison, in multiples of what rounding in the dtypes of the runs makes of that result.

    What the runs differ by in float64 is made by rounding, where their gap vanishes there: more noise is measured only
    where that is too little.

    Args:
        beyond: units in the last place up to which the gap itself is said in those; what rounding makes is not measured.
        margin: multiples up to which noise is not measured, where they are within them already.
    """
    unit = max(_unit(session.a), _unit(session.b))
    grown = unit / torch.finfo(torch.float64).eps
    left = _left(exact)
    most = 0.0
    for result_gap in compared.floating:
        largest, relative = result_gap.gap.max_abs, result_gap.gap.max_rel
        if not relative or not math.isfinite(largest):
            continue
        if relative <= beyond * unit:
            most = max(most, relative / unit)
            continue
        if largest <= margin * left.get(result_gap.result, 0.0) * grown:
            most = max(most, largest / (left[result_gap.result] * grown))
            continue
        noise = exact.noise.get(result_gap.result, 0.0) * grown
        most = max(most, largest / max(noise, unit * largest / relative))
    return most


def _left(exact: Precision) -> dict[str, float]:
    """By result, what two runs differ by in float64, where that is so little that no noise was measured."""
    left: dict[str, float] = {}
    if exact.vanishes and not exact.rounding.measurements:
        for result_gap in exact.compared.floating:
            left[result_gap.result] = max(left.get(result_gap.result, 0.0), result_gap.gap.max_abs)
    return left


def _unit(traced: Traced) -> float:
    """The epsilon of the coarsest dtype that a run computes in; TF32 or bfloat16 where it may take the place of float32."""
    names = {row[2].dtype for row in traced.trace.rows if row[2].floating}
    dtypes = [getattr(torch, name, None) for name in names]
    dtypes += traced.dtypes_inside
    units = [torch.finfo(d).eps for d in dtypes if isinstance(d, torch.dtype) and d.is_floating_point]
    kinds = {device.type for device in traced.run.devices} if "float32" in names else set[str]()
    if "cpu" in kinds:
        units.append(float32_epsilon_on_cpu())
    if "cuda" in kinds:
        precision = float32_matmul_precision()
        units.append({"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}[precision])
        if torch.backends.cudnn.allow_tf32:
            units.append(2.0**-10)  # of convolutions, unless somebody says otherwise
    return max(units, default=torch.finfo(torch.float32).eps)
