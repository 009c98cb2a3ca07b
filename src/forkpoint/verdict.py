"""From experiments to a verdict: a truth table, asked from the cheapest probe to the dearest.

| asked in this order | probe | if so |
| --- | --- | --- |
| every result is the same, bit for bit? | (pass one) | `identical` |
| does a run, made again, differ from itself? | repeat | `nondeterminism` |
| does something that goes in differ? | inputs | `inputs` |
| is a result NaN or infinite in one run alone? | nan | `semantic` |
| does the gap remain in float64, with the same decisions in both runs? | precision, decisions, then patch | `semantic` |
| does other content where the other run has none change a shared token in float64? | content | `semantic` |
| does what both have lie elsewhere in one run, relative to its layout? | order | `semantic` |
| do whole numbers (positions) collapse in a narrow dtype, and does the result show it? | whole | `semantic` |
| in float64, on the path of its own dtype, is a gap left? | operations | `semantic` |
| does the gap fall to float64 noise, by orders of magnitude? | precision, decisions | `rounding` |
| float64 was refused: is the op, alone, within rounding? | replay | `rounding` |
| otherwise | | `undetermined`, with what is missing |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from forkpoint.capture.recorder import Taken
from forkpoint.errors import ForkpointError, reraise_out_of_memory
from forkpoint.explain.locate import (
    Located,
    Tokens,
    describe_choice,
    describe_values,
    fetch_op,
    fetch_ops,
    unmatched_before,
)
from forkpoint.explain.results import ResultComparison, finite_parts
from forkpoint.explain.session import Session
from forkpoint.mechanisms import LOSS_NORMALISATION, ROUNDING_ADVICE, Case, Mechanism, recognise
from forkpoint.printable import one_line
from forkpoint.probes.content import ContentProbe, content
from forkpoint.probes.deciding import decided_apart
from forkpoint.probes.decisions import decisions
from forkpoint.probes.held import HeldRuns
from forkpoint.probes.inputs import Inputs, inputs, same_weights
from forkpoint.probes.inside import decides_inside
from forkpoint.probes.maker import maker
from forkpoint.probes.masks import missing_masks
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.native import Native, native
from forkpoint.probes.nonfinite import Unfinite, advice, unfinite
from forkpoint.probes.operations import Operations, operations
from forkpoint.probes.origin import Origin, origin
from forkpoint.probes.positions import shifted_positions
from forkpoint.probes.precision import Precision, precision
from forkpoint.probes.repeat import repeat
from forkpoint.probes.replay import Replay, replay
from forkpoint.probes.terms import loss_terms
from forkpoint.probes.whole import Whole, whole_numbers
from forkpoint.promotion import Promotion
from forkpoint.result import Divergence, ProbeResult, Verdict, VerdictKind

_ULPS_OF_ROUNDING = 64.0
"""Error of one op, in ULP of its largest value, up to which it is its own rounding: long sums in low precision."""

_OF_MASKS = ("attention_mask", "padding_leak", "cache_state")
"""Mechanisms that a mask which is not given brings about."""
_NO_ORIGIN_ADVICE = "Where it enters could not be located: see what differs first, and compare the models' code and configuration there."
_FAILED_ADVICE = "Compare without probes for the first divergence alone; if torch's own functions are all that the model calls, please report it."
_REPEAT_ADVICE = {
    "random_state": "Set the seed before each run, or put the model in eval mode.",
    "atomics": "Use torch.use_deterministic_algorithms(True) to find the op, and replace it.",
    None: "Look for what a call draws, counts or reads from outside of the model: a generator of its own, a clock, a counter.",
}
_MOST_OF_AN_ERROR = 200
_LAYOUT_ADVICE = "Say by hand where the tokens are (`layout=` of fp.Run), and let both runs return the same values for them."


@dataclass(frozen=True)
class Judgement:
    """A verdict, and the origins if the runs differ in exact arithmetic and they could be located.

    Attributes:
        located: the first origin as it ran in both runs, where that is known without another pass.
    """

    verdict: Verdict
    origins: tuple[Divergence, ...] = ()
    found: Origin | None = None
    unfinite: Unfinite | None = None
    located: Located | None = None


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
        return Verdict(VerdictKind.UNDETERMINED, None, None, summary, advice=_LAYOUT_ADVICE)
    if compared.missing and not compared.differs:
        return _not_all(compared, [])
    return Verdict(VerdictKind.UNDETERMINED, None, None, "the results differ")


def judge(session: Session, compared: ResultComparison, located: Located | None, tokens: Tokens) -> Judgement:
    """Run the probes that are needed, and read the truth table.

    A model may refuse what an experiment asks of it (function modes, float64, other content): nothing is proved then.
    """
    try:
        return _judged(session, compared, located, tokens)
    except ForkpointError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a model says that works as it is
        reraise_out_of_memory(error)
        said = one_line(f"{type(error).__name__}: {error}", _MOST_OF_AN_ERROR)
        summary = f"an experiment ended in an error, where the runs themselves end well: {said}"
        return Judgement(Verdict(VerdictKind.UNDETERMINED, None, None, summary, (), _FAILED_ADVICE))


def _judged(
    session: Session, compared: ResultComparison, located: Located | None, tokens: Tokens
) -> Judgement:
    made = unfinite(session, compared, located)
    judged = _judge(session, compared, located, tokens, made)
    verdict = _with_masks(session, _without_origin(judged), next(iter(judged.origins), None))
    return replace(judged, verdict=_with_unfinite(verdict, made), unfinite=made)


def _judge(
    session: Session, compared: ResultComparison, located: Located | None, tokens: Tokens, made: Unfinite
) -> Judgement:
    evidence = list(made.results)
    given = inputs(session)
    if compared.identical and given.mechanism != "labels":
        return Judgement(replace(without_probes(compared), evidence=made.results))
    if not given.differs and (not compared.gaps or (compared.missing and not compared.differs)):
        return Judgement(replace(without_probes(compared), evidence=made.results))
    session.progress.begin("probe: does each run repeat itself?")
    repeated = repeat(session)
    evidence.append(repeated.result)
    if not repeated.steady:
        return Judgement(
            Verdict(
                VerdictKind.NONDETERMINISM, repeated.mechanism, None, repeated.result.text, tuple(evidence),
                _REPEAT_ADVICE[repeated.mechanism],
            )
        )  # fmt: skip
    evidence.append(given.result)
    if given.differs:
        return Judgement(_inputs_verdict(given, evidence))
    session.progress.begin("probe: both runs in float64")
    exact = precision(session, given.rounded, watched=bool(compared.displaced))
    evidence.append(exact.result)
    order = _order(compared, exact.compared)
    if made.alone:
        return _not_finite(session, exact, made, given, evidence, tokens)
    exact, other = _with_decisions(session, exact, given, compared, evidence)
    evidence += [] if order is None else [order]
    if (not exact.vanishes and not exact.refused) or other.leaks:
        return _semantic(session, exact, other, given, compared, evidence, tokens)
    if order is not None and order.outcome == "displaced":
        return Judgement(_displaced(order, evidence))
    whole = whole_numbers(session, exact, given.rounded) if exact.vanishes else None
    if whole is not None:
        evidence.append(whole.result)
        if whole.moves:
            return Judgement(_collapse(whole, evidence))
    session.progress.begin("probe: the op alone")
    alone = replay(located) if located is not None else None
    if alone is not None:
        evidence.append(alone.result)
    if compared.missing:
        return Judgement(_not_all(compared, evidence))
    if exact.vanishes and exact.falls_from(compared):
        return Judgement(
            _not_as_ran(session, exact, compared, given, evidence)
            or _rounding(session, exact, alone, given, located, evidence)
        )
    if exact.vanishes and not exact.refused:
        return Judgement(_drowned(session, exact, evidence))
    return _refused(session, exact, alone, given, located, evidence)


def _not_as_ran(
    session: Session, exact: Precision, compared: ResultComparison, given: Inputs, evidence: list[ProbeResult]
) -> Verdict | None:
    """The verdict where the gap falls in float64, but that is not what ran natively; None where it is."""
    if isinstance(exact.runs, HeldRuns):
        return None
    beyond = native(session, exact, compared, given.rounded)
    if beyond is not None:
        return _other_than_float64(beyond, [*evidence, beyond.result])
    others = operations(session, exact, compared, given.rounded)
    if others is not None:
        evidence.append(others.result)
        if others.kind is not VerdictKind.ROUNDING:
            return _other_operations(others, evidence)
    return None


def _other_than_float64(found: Native, evidence: list[ProbeResult]) -> Verdict:
    """The gap falls in float64, but what ran natively is more than rounding away from that."""
    if len(found.runs) == 1:
        kind, advice = (
            VerdictKind.SEMANTIC,
            "Run that run without its compiler, or with another kernel, and compare again.",
        )
    else:
        kind = VerdictKind.UNDETERMINED
        advice = "Put plain torch functions in the place of custom operations, and compare again."
    return Verdict(kind, None, None, found.result.text, tuple(evidence), advice)


def _other_operations(found: Operations, evidence: list[ProbeResult]) -> Verdict:
    """The gap falls in float64, but there a run does not do what it did natively."""
    summary = found.result.text
    advice = "Have the model do the same in every dtype there, and compare again."
    if found.kind is VerdictKind.SEMANTIC:
        summary = f"the runs differ in exact arithmetic: {summary}"
        advice = "Look at where the model asks for a dtype: what it does there is more than another form of one function."
    return Verdict(found.kind or VerdictKind.UNDETERMINED, None, None, summary, tuple(evidence), advice)


def _collapse(whole: Whole, evidence: list[ProbeResult]) -> Verdict:
    return Verdict(
        VerdictKind.SEMANTIC, None, None, f"the runs differ beyond rounding: {whole.text}", tuple(evidence),
        "Compute positions as integers or in float32, and round what is made of them last.",
    )  # fmt: skip


def _with_decisions(
    session: Session, exact: Precision, given: Inputs, compared: ResultComparison, evidence: list[ProbeResult]
) -> tuple[Precision, ContentProbe]:
    """The runs in float64, and what other content does; with the same decisions where they may be why the runs differ.

    That is where the gap does not fall in float64 or is larger in native precision than it should be, where a token is
    decided otherwise in the two runs, and where other content changes bits in native precision alone: by the sizes of
    products, or by what it decides there.
    """
    held: Precision | None = None

    def hold() -> Precision | None:
        session.progress.begin("probe: the same decisions in both runs")
        found, result = decisions(session, given.rounded)
        evidence.extend([] if result is None else [result])
        return found

    apart = (
        not exact.falls_from(compared)
        or decided_apart(session.join)
        or _beyond_rounding(session, exact, compared)
    )
    if exact.vanishes and apart:
        held = hold()
    session.progress.begin("probe: other content in the padding")
    other = content(session, held or exact, compared)
    if exact.vanishes and not apart and other.result.outcome == "rounding":
        held = hold()
        if held is not None:
            other = content(session, held, compared)
    evidence.append(other.result)
    return held or exact, other


def _beyond_rounding(session: Session, exact: Precision, compared: ResultComparison) -> bool:
    """Whether the native gap has many times the units in the last place that the one in float64 has there.

    Something was decided by the precision, as by an overflow, if so: what rounding makes is as many units in any.
    """
    dtypes = {g.a.dtype for g in compared.gaps if g.a.dtype.is_floating_point}
    dtypes |= _model_dtype(session.a) | _model_dtype(session.b)
    unit = max((torch.finfo(dtype).eps for dtype in dtypes), default=math.inf)
    native = max((g.gap.max_rel for g in compared.gaps), default=0.0) / unit
    return native > _ULPS_OF_ROUNDING * max(exact.relative / torch.finfo(torch.float64).eps, 1.0)


def _drowned(session: Session, exact: Precision, evidence: list[ProbeResult]) -> Verdict:
    """Noise as large as the gap proves nothing."""
    session.progress.begin("probe: operators that decide inside")
    inside = decides_inside(session)
    summary = f"in float64 a gap of {exact.gap:.2g} is left, and float64's own rounding makes as much: that proves nothing"
    advice = "Compare fewer layers, or a part of the model: what small changes grow to hides the cause."
    if inside is not None:
        evidence.append(inside)
        summary = f"{summary}, since {inside.text}"
        advice = "Put plain torch functions in that operator's place, whose decisions can be held, and compare again."
    return Verdict(VerdictKind.UNDETERMINED, None, None, summary, tuple(evidence), advice)


def _order(compared: ResultComparison, exact: ResultComparison) -> ProbeResult | None:
    """Where results lie, if that is not the same relative to both layouts: in float64 too, or by rounding alone."""
    if not compared.displaced:
        return None
    if not exact.displaced:
        text = "results lie elsewhere in one run, but not in float64: rounding decides the order"
        return ProbeResult("order", "rounding", 0.0, text)
    count = sum(found.count for found in exact.displaced)
    found = exact.displaced[0]
    return ProbeResult("order", "displaced", float(count), f"{found.name}: {found.text}")


def _displaced(order: ProbeResult, evidence: list[ProbeResult]) -> Verdict:
    summary = f"what both runs have is not returned in the same place: {order.text}"
    advice = (
        "Put rows and tokens back where they went in before they are returned: a result is read by its place."
    )
    return Verdict(VerdictKind.SEMANTIC, "result_order", None, summary, tuple(evidence), advice)


def _not_all(compared: ResultComparison, evidence: list[ProbeResult]) -> Verdict:
    """What was returned but not compared may hold any difference, whatever the rest shows."""
    summary = f"not all that was returned could be compared: {compared.missing}"
    return Verdict(VerdictKind.UNDETERMINED, None, None, summary, tuple(evidence), _LAYOUT_ADVICE)


def _inputs_verdict(given: Inputs, evidence: list[ProbeResult]) -> Verdict:
    advice = {
        "token_ids": "Compare the same tokens: check special tokens, truncation and the chat template.",
        "labels": "Mask labels by the attention mask, not by the pad token's id, and mask the first real token after "
        "left padding.",
        "parameters": "Load both models from one checkpoint, or find what changed the weights.",
        "buffers": "Load both models from one checkpoint, or find what changed the buffers.",
        "quantization": "Quantised weights are other weights: compare with the quantisation off to find other causes.",
    }.get(given.mechanism or "", f"Give both runs the same {', '.join(given.names)}.")
    by_design = False if given.mechanism == "labels" else None
    return Verdict(VerdictKind.INPUTS, given.mechanism, by_design, given.result.text, tuple(evidence), advice)


def _semantic(
    session: Session, exact: Precision, other: ContentProbe | None, given: Inputs, compared: ResultComparison,
    evidence: list[ProbeResult], tokens: Tokens,
) -> Judgement:  # fmt: skip
    session.progress.begin("probe: where the difference enters")
    found = origin(session, exact, given.rounded) if not exact.vanishes else None
    if found is not None:
        evidence.append(found.result)
    held = isinstance(exact.runs, HeldRuns)
    session.progress.begin("looking for a known cause")
    terms = loss_terms(session, exact, given.rounded) if not exact.vanishes else None
    if terms is not None:
        evidence.append(terms)
        mechanism = LOSS_NORMALISATION
    else:
        case = Case(session, exact.compared if not exact.vanishes else compared, other, found, held=held)
        with same_weights(given.rounded):
            mechanism = recognise(case)
        evidence += case.evidence
    summary = f"the runs differ in exact arithmetic: {mechanism.summary}"
    verdict = Verdict(
        VerdictKind.SEMANTIC, mechanism.slug, mechanism.by_design, summary, tuple(evidence), mechanism.advice
    )
    return Judgement(verdict, _origins(session, found, tokens, held=held), found)


def _not_finite(
    session: Session, exact: Precision, made: Unfinite, given: Inputs, evidence: list[ProbeResult],
    tokens: Tokens,
) -> Judgement:  # fmt: skip
    """One run alone has NaN or infinity somewhere: that goes before all else that may differ."""
    session.progress.begin("probe: where the difference enters")
    found = origin(session, exact, given.rounded) if finite_parts(exact.compared).apart else None
    if found is not None:
        evidence.append(found.result)
    part = made.part
    assert made.worst is not None
    _, worst = made.worst
    summary = (
        f"{part.apart:,} of {part.elements:,} elements are NaN or infinite in one run alone; {worst.text}"
    )
    exactly = finite_parts(exact.compared)
    finite = not exactly.nonfinite_a and not exactly.nonfinite_b
    advised = advice(worst, finite_in_float64=finite)
    verdict = Verdict(VerdictKind.SEMANTIC, "nan", False, summary, tuple(evidence), advised)
    made_at, located = maker(session, made, tokens)
    shown = (made_at,) if made_at is not None else _origins(session, found, tokens, held=False)
    return Judgement(verdict, shown, found, located=located)


def _without_origin(judged: Judgement) -> Verdict:
    """Where neither a cause nor a place is known, nothing is said of a place."""
    verdict = judged.verdict
    if verdict.kind is not VerdictKind.SEMANTIC or verdict.mechanism is not None or judged.origins:
        return verdict
    summary = verdict.summary.removesuffix(" here")
    return replace(verdict, summary=summary, advice=_NO_ORIGIN_ADVICE)


def _with_masks(session: Session, verdict: Verdict, shown: Divergence | None) -> Verdict:
    """Where a mask may be the cause, the advice says which calls lack one."""
    if verdict.mechanism not in _OF_MASKS:
        return verdict
    lacking = missing_masks(session, shown)
    return replace(verdict, advice=f"{lacking}. {verdict.advice}") if lacking else verdict


def _with_unfinite(verdict: Verdict, made: Unfinite) -> Verdict:
    """Results that are NaN or infinite in both runs alike are no difference, but nothing that is right, either."""
    count = max(made.part.nonfinite_a, made.part.nonfinite_b)
    if verdict.kind not in (VerdictKind.IDENTICAL, VerdictKind.ROUNDING) or made.worst is None or not count:
        return verdict
    summary = (
        f"{verdict.summary}; {count:,} of {made.part.elements:,} elements are NaN or infinite in both runs"
    )
    return replace(verdict, summary=summary, advice=advice(made.worst[1], finite_in_float64=False))


def _origins(session: Session, found: Origin | None, tokens: Tokens, *, held: bool) -> tuple[Divergence, ...]:
    """The values at the origins: in float64, or where decisions were held in the precision in which they were taken."""
    if found is None:
        return ()
    origins = (found, *found.others)
    taken_a, taken_b = (
        fetch_ops(
            traced, [(kept.op, kept.event) for kept in all_kept], promotion=None if held else Promotion()
        )
        for traced, all_kept in (
            (session.a, [origin.seen.a for origin in origins]),
            (session.b, [origin.seen.b for origin in origins]),
        )
    )
    described = (
        (origin, _described(session, origin.seen, a, b, tokens))
        for origin, a, b in zip(origins, taken_a, taken_b, strict=True)
    )
    return tuple(
        replace(shown, closes=None if math.isnan(origin.closes) else origin.closes)
        for origin, shown in described
        if shown is not None
    )


def _described(
    session: Session, seen: Meeting, a: Taken | None, b: Taken | None, tokens: Tokens
) -> Divergence | None:
    if a is None or b is None:
        return None
    op = seen.a.op
    output = 0 if op.is_boundary else op.output
    if seen.absent:
        return describe_choice(session, op, output, a, b, tokens, seen.absent)
    beyond_noise = describe_values(session, op, output, a, b, tokens, beyond=seen.noise)
    return beyond_noise or describe_values(session, op, output, a, b, tokens)


def locate_meeting(session: Session, meeting: Meeting) -> Located | None:
    """The op of a meeting as it ran in native precision in both runs; None where it does not differ there."""
    a = fetch_op(session.a, meeting.a.op, meeting.a.event, look=session.look)
    b = fetch_op(session.b, meeting.b.op, meeting.b.event, look=session.look)
    row = next((r for r in session.join.rows if r.op.key == meeting.a.op.key), None)
    if a is None or b is None or row is None or row.difference is None:
        return None
    output = meeting.a.op.output if not meeting.a.op.is_boundary else 0
    divergence = describe_values(session, meeting.a.op, output, a, b, lambda _, __: None)
    return None if divergence is None else Located(row, divergence, a, b)


def _rounding(
    session: Session, exact: Precision, alone: Replay | None, given: Inputs, located: Located | None,
    evidence: list[ProbeResult],
) -> Verdict:  # fmt: skip
    slug = _rounding_slug(session, alone, given, located)
    level = f"{exact.gap:.2g}" if exact.gap else "nothing"
    summary = f"only rounding: done in float64, the gap falls to {level}"
    shifted = None if located is None else shifted_positions(session, located, exact.gap)
    if shifted is not None:
        evidence.append(shifted)
        summary += (
            f"; positions are shifted by {shifted.figure:.0f}, which changes nothing in exact arithmetic"
        )
    return Verdict(VerdictKind.ROUNDING, slug, None, summary, tuple(evidence), ROUNDING_ADVICE[slug])


def _rounding_slug(session: Session, alone: Replay | None, given: Inputs, located: Located | None) -> str:
    if given.rounded:
        return "low_precision"
    if located is not None and located.divergence.dtype_a != located.divergence.dtype_b:
        return "low_precision"
    if _model_dtype(session.a) != _model_dtype(session.b):
        return "low_precision"
    if located is not None and _narrower_between(session, located):
        return "low_precision"
    if alone is not None and (alone.other_call or alone.other_kernel):
        return "kernel_choice"
    if located is not None and located.divergence.between:
        return "kernel_choice"
    return "reduction_order"


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


def _model_dtype(traced: object) -> frozenset[torch.dtype]:
    model = getattr(getattr(traced, "run", None), "modules", None)
    dtypes = (
        {p.dtype for p in model.parameters() if p.dtype.is_floating_point} if model is not None else set()
    )
    return frozenset(dtypes)


def _refused(
    session: Session,
    exact: Precision,
    alone: Replay | None,
    given: Inputs,
    located: Located | None,
    evidence: list[ProbeResult],
) -> Judgement:  # fmt: skip
    """Some operation has no float64 form: the op alone, in native precision, is the evidence.

    It is none where the op was given different values: what made those differ was not looked at. Nor where both results
    are further from each other than from what is exact, as with another number among the arguments.
    """
    error = None if alone is None else alone.error
    if located is not None and any(given.status == "differs" for given in located.divergence.inputs):
        error = None
    if error is not None and error <= _ULPS_OF_ROUNDING and located is not None:
        slug = _rounding_slug(session, alone, given, located)
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


__all__ = ["Judgement", "Mechanism", "judge", "without_probes"]
