"""The gap falls in float64: rounding, if that is what ran, and of what kind."""

from __future__ import annotations

import torch

from forkpoint.explain.locate import Located, unmatched_before
from forkpoint.explain.results import ResultComparison
from forkpoint.explain.session import Session
from forkpoint.mechanisms import ROUNDING_ADVICE
from forkpoint.probes.compiled_modules import Miscompiled
from forkpoint.probes.held import HeldRuns
from forkpoint.probes.inputs import Inputs
from forkpoint.probes.native import Native, native
from forkpoint.probes.operations import Operations, operations
from forkpoint.probes.positions import shifted_positions
from forkpoint.probes.precision import Precision
from forkpoint.probes.replay import ReplayErrors
from forkpoint.result import ProbeResult, Verdict, VerdictKind

ULPS_OF_ROUNDING = 64.0
"""Error of one op, in ULP of its largest value, up to which it is its own rounding: long sums in low precision."""

_UNCOMPILED_ADVICE = "Run that run without its compiler, or with another kernel, and compare again."


def rounding(
    session: Session, exact: Precision, alone: ReplayErrors | None, compared_inputs: Inputs, located: Located | None,
    evidence: list[ProbeResult],
) -> Verdict:  # fmt: skip
    """The verdict that only rounding parts the runs.

    Args:
        exact: both runs in float64, where the gap vanishes.
        alone: the first op that differs, made by itself; None where there is none.
        compared_inputs: what goes in; weights that are only rounded are named there.
        evidence: of the probes so far; a shift of positions is added to it.
    """
    slug = rounding_slug(session, alone, compared_inputs, located)
    level = f"{exact.gap:.2g}" if exact.gap else "nothing"
    summary = f"only rounding: done in float64, the gap falls to {level}"
    if exact.tables is not None:
        summary += ", which is what rounding did to the tables that the models keep"
    shifted = None if located is None else shifted_positions(session, located, exact.gap)
    if shifted is not None:
        evidence.append(shifted)
        summary += (
            f"; positions are shifted by {shifted.figure:.0f}, which changes nothing in exact arithmetic"
        )
    return Verdict(VerdictKind.ROUNDING, slug, None, summary, tuple(evidence), ROUNDING_ADVICE[slug])


def rounding_slug(
    session: Session, alone: ReplayErrors | None, compared_inputs: Inputs, located: Located | None
) -> str:
    """Whether a dtype, another kernel or another order of a sum rounds otherwise."""
    if compared_inputs.rounded:
        return "low_precision"
    if located is not None and (
        located.divergence.dtype_a != located.divergence.dtype_b or _given_narrower(located)
    ):
        return "low_precision"
    if model_dtypes(session.a) != model_dtypes(session.b):
        return "low_precision"
    if located is not None and _narrower_between(session, located):
        return "low_precision"
    if alone is not None and (alone.other_call or alone.other_kernel):
        return "kernel_choice"
    if located is not None and located.divergence.between:
        return "kernel_choice"
    return "reduction_order"


def _given_narrower(located: Located) -> bool:
    """Whether the op that differs is given numbers of another dtype in one run, which round them otherwise."""
    dtypes = [
        (argument.dtype_a, argument.dtype_b)
        for argument in located.divergence.inputs
        if argument.status == "differs"
    ]
    return any(a is not None and b is not None and a != b and "float" in a + b for a, b in dtypes)


def _narrower_between(session: Session, located: Located) -> bool:
    """Whether one run, right before the divergence, computes in a narrower dtype than any that the other has there."""
    if not located.divergence.between:
        return False
    hidden = {(run, op.key) for run, op in unmatched_before(session, located.row)}
    units: dict[str, float] = {}
    for run in "ab":
        rows = [row for row in session.join.rows if (run, row.op.key) in hidden]
        passed = [row.first_a if run == "a" else row.first_b for row in (*rows, located.row)]
        dtypes = [getattr(torch, event.dtype, None) for event in passed if event is not None]
        units[run] = max(
            (torch.finfo(d).eps for d in dtypes if d is not None and d.is_floating_point), default=0.0
        )
    return units["a"] != units["b"]


def model_dtypes(traced: object) -> frozenset[torch.dtype]:
    """The floating-point dtypes of a run's parameters; empty where its model is not known."""
    model = getattr(getattr(traced, "run", None), "modules", None)
    dtypes = (
        {p.dtype for p in model.parameters() if p.dtype.is_floating_point} if model is not None else set()
    )
    return frozenset(dtypes)


def not_as_it_ran(
    session: Session,
    exact: Precision,
    compared: ResultComparison,
    compared_inputs: Inputs,
    evidence: list[ProbeResult],
) -> Verdict | None:
    """The verdict where the gap falls in float64, but that is not what ran natively; None where it is."""
    if isinstance(exact.runs, HeldRuns):
        return None
    beyond = native(session, exact, compared, compared_inputs.rounded)
    if beyond is not None:
        return _other_than_float64(beyond, [*evidence, beyond.result])
    others = operations(session, exact, compared, compared_inputs.rounded)
    if others is not None:
        evidence.append(others.result)
        if others.kind is not VerdictKind.ROUNDING:
            return _other_operations(others, evidence)
    return None


def otherwise_compiled(probe: Miscompiled, evidence: list[ProbeResult]) -> Verdict:
    """A compiled module computes something else than the Python that it was made from."""
    result = probe.result
    return Verdict(VerdictKind.SEMANTIC, None, None, result.text, (*evidence, result), _UNCOMPILED_ADVICE)


def _other_than_float64(probe: Native, evidence: list[ProbeResult]) -> Verdict:
    """The gap falls in float64, but what ran natively is more than rounding away from that."""
    if len(probe.runs) == 1:
        kind, advice = VerdictKind.SEMANTIC, _UNCOMPILED_ADVICE
    else:
        kind = VerdictKind.UNDETERMINED
        advice = "Put plain torch functions in the place of custom operations, and compare again."
    return Verdict(kind, None, None, probe.result.text, tuple(evidence), advice)


def _other_operations(probe: Operations, evidence: list[ProbeResult]) -> Verdict:
    """The gap falls in float64, but there a run does not do what it did natively."""
    summary = probe.result.text
    advice = "Have the model do the same in every dtype there, and compare again."
    if probe.kind is VerdictKind.SEMANTIC:
        summary = f"the runs differ in exact arithmetic: {summary}"
        advice = "Look at where the model asks for a dtype: what it does there is more than another form of one function."
    return Verdict(probe.kind or VerdictKind.UNDETERMINED, None, None, summary, tuple(evidence), advice)
