"""Verdicts that need no experiment, or for which one is missing."""

from __future__ import annotations

from forkpoint.explain.locate import Located
from forkpoint.explain.results import RETURNED_ALONE, ResultComparison
from forkpoint.explain.session import Session
from forkpoint.mechanisms import ROUNDING_ADVICE
from forkpoint.probes.given_caches import given_to_one
from forkpoint.probes.inputs import Inputs
from forkpoint.probes.inside import decides_inside
from forkpoint.probes.precision import Precision
from forkpoint.probes.replay import ReplayErrors
from forkpoint.result import ProbeResult, Verdict, VerdictKind
from forkpoint.verdict.judgement import Judgement
from forkpoint.verdict.rounding import ULPS_OF_ROUNDING, rounding_slug

_LAYOUT_ADVICE = "Say by hand where the tokens are (`layout=` of fp.Run), and let both runs return the same values for them."
_RETURN_ADVICE = (
    "Let both runs return the same values: what only one of them returns has nothing to be compared with."
)


def without_probes(compared: ResultComparison) -> Verdict:
    """What pass one alone proves: that the results are identical, or nothing."""
    if compared.identical:
        all_of_them = "all results that have a value are" if compared.others else "every result is"
        return Verdict(VerdictKind.IDENTICAL, None, None, f"{all_of_them} the same, bit for bit")
    if not compared.gaps:
        reason = (
            compared.left_out[0][1] if compared.left_out else "the model returned nothing that both runs have"
        )
        summary = f"no result could be compared: {reason}"
        return Verdict(VerdictKind.UNDETERMINED, None, None, summary, advice=_advice(compared))
    if compared.missing and not compared.differs:
        return not_all_compared(compared, [])
    return Verdict(VerdictKind.UNDETERMINED, None, None, "the results differ")


def not_all_compared(compared: ResultComparison, evidence: list[ProbeResult]) -> Verdict:
    """What was returned but not compared may hold any difference, whatever the rest shows."""
    summary = f"not all that was returned could be compared: {compared.missing}"
    return Verdict(VerdictKind.UNDETERMINED, None, None, summary, tuple(evidence), _advice(compared))


def _advice(compared: ResultComparison) -> str:
    """What would let the results be compared: no layout helps where each run returns something else."""
    reasons = {reason for _, reason in compared.left_out}
    alone = bool(reasons) and reasons <= {*RETURNED_ALONE.values()}
    return _RETURN_ADVICE if alone else _LAYOUT_ADVICE


def drowned_in_noise(session: Session, exact: Precision, evidence: list[ProbeResult]) -> Verdict:
    """Noise as large as the gap proves nothing."""
    session.progress.begin("probe: operators that decide inside")
    inside = decides_inside(session)
    if exact.gap:
        left = f"a gap of {exact.gap:.2g} is left, and float64's own rounding makes as much"
    else:
        left = f"{exact.compared.discrete_differing} integer results differ, and float64's own rounding changes as many"
    summary = f"in float64 {left}: that proves nothing"
    advice = "Compare fewer layers, or a part of the model: what small changes grow to hides the cause."
    alone = given_to_one(session)
    if alone is not None:
        summary = (
            f"in float64 a gap of {exact.gap:.2g} is left, and how the cache was rounded that run {alone.upper()} alone was given "
            "makes as much: that proves nothing"
        )
        advice = "Let the run fill its cache itself: fp.Run takes a list of calls, and hands the cache of one to the next."
    if inside is not None:
        evidence.append(inside)
        summary = f"{summary}, since {inside.text}"
        advice = "Put plain torch functions in that operator's place, whose decisions can be held, and compare again."
    return Verdict(VerdictKind.UNDETERMINED, None, None, summary, tuple(evidence), advice)


def without_float64(
    session: Session,
    exact: Precision,
    alone: ReplayErrors | None,
    compared_inputs: Inputs,
    located: Located | None,
    evidence: list[ProbeResult],
) -> Judgement:  # fmt: skip
    """Some operation has no float64 form: the op alone, in native precision, is the evidence.

    It is none where the op was given different values: what made those differ was not looked at. Nor where both results
    are further from each other than from what is exact, as with another number among the arguments.
    """
    error = None if alone is None else alone.error
    if located is not None and any(argument.status == "differs" for argument in located.divergence.inputs):
        error = None
    if error is not None and error <= ULPS_OF_ROUNDING and located is not None:
        slug = rounding_slug(session, alone, compared_inputs, located)
        summary = (
            f"rounding, as far as can be told: {exact.refused[0].split(':')[0]} has no float64 form, but the first "
            f"divergent op alone is within {error:.2g} ULP of the exact result"
        )
        return Judgement(
            Verdict(VerdictKind.ROUNDING, slug, None, summary, tuple(evidence), ROUNDING_ADVICE[slug])
        )
    missing = exact.refused[0].split(": ")[0] if exact.refused else "an op that was not done in float64"
    summary = f"float64 could not be used for {missing}, and its gap could not be explained otherwise"
    return Judgement(
        Verdict(
            VerdictKind.UNDETERMINED,
            None,
            None,
            summary,
            tuple(evidence),
            "Put a plain torch function, which takes float64, in that operation's place, and compare again.",
        )
    )
