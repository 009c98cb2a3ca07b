"""The runs differ in exact arithmetic, or in what goes in: why."""

from __future__ import annotations

from dataclasses import replace

from forkpoint.explain.locate import Tokens
from forkpoint.explain.results import ResultComparison, finite_parts
from forkpoint.explain.session import Session
from forkpoint.mechanisms import LOSS_NORMALISATION, Case, recognise
from forkpoint.probes.content import ContentProbe
from forkpoint.probes.held import HeldRuns
from forkpoint.probes.inputs import Inputs, same_weights
from forkpoint.probes.maker import maker
from forkpoint.probes.nonfinite import Unfinite, advice
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import Precision
from forkpoint.probes.terms import loss_terms
from forkpoint.probes.whole import Whole
from forkpoint.result import ProbeResult, Verdict, VerdictKind
from forkpoint.runs.modules import innermost
from forkpoint.verdict.judgement import Judgement
from forkpoint.verdict.origins import origins_shown

_NO_ORIGIN_ADVICE = "Where it enters could not be located: see what differs first, and compare the models' code and configuration there."


def semantic(
    session: Session, exact: Precision, other: ContentProbe | None, compared_inputs: Inputs, compared: ResultComparison,
    evidence: list[ProbeResult], tokens: Tokens,
) -> Judgement:  # fmt: skip
    """The runs differ in exact arithmetic: where that enters, and whether its cause is a known one.

    Args:
        exact: both runs in float64.
        other: what other content in the padding does, which alone may be the reason for this verdict.
        evidence: of the probes so far; what is asked here is added to it.
    """
    session.progress.begin("probe: where the difference enters")
    first_origin = origin(session, exact, compared_inputs.rounded) if not exact.vanishes else None
    if first_origin is not None:
        evidence.append(first_origin.result)
    held = isinstance(exact.runs, HeldRuns)
    session.progress.begin("looking for a known cause")
    terms = loss_terms(session, exact, compared_inputs.rounded) if not exact.vanishes else None
    if terms is not None:
        evidence.append(terms)
        mechanism = LOSS_NORMALISATION
    else:
        case = Case(
            session, exact.compared if not exact.vanishes else compared, other, first_origin, held=held
        )
        with same_weights(compared_inputs.rounded):
            mechanism = recognise(case)
        evidence += case.evidence
    summary = mechanism.summary
    if not exact.vanishes:  # else it is other content that would make them differ
        summary = f"the runs differ in exact arithmetic: {summary}"
    verdict = Verdict(
        VerdictKind.SEMANTIC, mechanism.slug, mechanism.by_design, summary, tuple(evidence), mechanism.advice
    )
    judged = Judgement(verdict, origins_shown(session, first_origin, tokens, held=held), first_origin)
    return replace(judged, verdict=_without_origin(judged))


def not_finite(
    session: Session, exact: Precision, nonfinite: Unfinite, compared_inputs: Inputs, evidence: list[ProbeResult],
    tokens: Tokens,
) -> Judgement:  # fmt: skip
    """One run alone has NaN or infinity somewhere: that goes before all else that may differ."""
    session.progress.begin("probe: where the difference enters")
    first_origin = (
        origin(session, exact, compared_inputs.rounded) if finite_parts(exact.compared).apart else None
    )
    if first_origin is not None:
        evidence.append(first_origin.result)
    part = nonfinite.part
    assert nonfinite.worst is not None
    _, worst = nonfinite.worst
    summary = (
        f"{part.apart:,} of {part.elements:,} elements are NaN or infinite in one run alone; {worst.text}"
    )
    exactly = finite_parts(exact.compared)
    finite = not exactly.nonfinite_a and not exactly.nonfinite_b
    advised = advice(worst, finite_in_float64=finite)
    verdict = Verdict(VerdictKind.SEMANTIC, "nan", False, summary, tuple(evidence), advised)
    made_at, located = maker(session, nonfinite, tokens)
    shown = (made_at,) if made_at is not None else origins_shown(session, first_origin, tokens, held=False)
    return Judgement(verdict, shown, first_origin, located=located)


def inputs_differ(session: Session, compared_inputs: Inputs, evidence: list[ProbeResult]) -> Verdict:
    """What goes in differs already."""
    advice = {
        "token_ids": "Compare the same tokens: check special tokens, truncation and the chat template.",
        "labels": "Mask labels by the attention mask, not by the pad token's id, and mask the first real token after "
        "left padding.",
        "parameters": "Load both models from one checkpoint, or find what changed the weights.",
        "buffers": "Load both models from one checkpoint, or find what changed the buffers.",
        "quantization": "Quantised weights are other weights: compare with the quantisation off to find other causes.",
    }.get(compared_inputs.mechanism or "", f"Give both runs the same {', '.join(compared_inputs.names)}.")
    if compared_inputs.mechanism == "parameters" and _two_architectures(session):
        advice = (
            "Two architectures have weights of their own: what they return is compared here, and no more can be. To compare "
            "how they compute, give one the other's weights first."
        )
    by_design = False if compared_inputs.mechanism == "labels" else None
    return Verdict(
        VerdictKind.INPUTS,
        compared_inputs.mechanism,
        by_design,
        compared_inputs.result.text,
        tuple(evidence),
        advice,
    )


def _two_architectures(session: Session) -> bool:
    """Whether the runs have models of two classes that share less than half of their parameters, by name and shape."""
    models = [
        innermost(traced.run.modules)[1]
        for traced in (session.a, session.b)
        if traced.run.modules is not None
    ]
    if len(models) < 2 or type(models[0]) is type(models[1]):
        return False
    a, b = ({(name, value.shape) for name, value in model.named_parameters()} for model in models)
    return 2 * len(a & b) < max(len(a), len(b))


def displaced(order: ProbeResult, evidence: list[ProbeResult]) -> Verdict:
    """What both runs have lies elsewhere in one, in float64 too."""
    summary = f"what both runs have is not returned in the same place: {order.text}"
    advice = (
        "Put rows and tokens back where they went in before they are returned: a result is read by its place."
    )
    return Verdict(VerdictKind.SEMANTIC, "result_order", None, summary, tuple(evidence), advice)


def collapsed(whole: Whole, evidence: list[ProbeResult]) -> Verdict:
    """Positions that a narrow dtype can't tell apart, where float64 can."""
    return Verdict(
        VerdictKind.SEMANTIC, None, None, f"the runs differ beyond rounding: {whole.text}", tuple(evidence),
        "Compute positions as integers or in float32, and round what is made of them last.",
    )  # fmt: skip


def _without_origin(judged: Judgement) -> Verdict:
    """Where neither a cause nor a place is known, nothing is said of a place."""
    verdict = judged.verdict
    if verdict.mechanism is not None or judged.origins:
        return verdict
    summary = verdict.summary.removesuffix(" here")
    return replace(verdict, summary=summary, advice=_NO_ORIGIN_ADVICE)
