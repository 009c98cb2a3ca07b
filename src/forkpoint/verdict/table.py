"""From experiments to a verdict: a truth table, asked from the cheapest probe to the dearest.

| asked in this order | probe | if so |
| --- | --- | --- |
| every result is the same, bit for bit? | (pass one) | `identical` |
| does a run, made again, differ from itself? | repeat | `nondeterminism` |
| does something that goes in differ? | inputs | `inputs` |
| is a result NaN or infinite in one run alone? | nan | `semantic` |
| does the gap remain in float64, beyond rounded weights and tables? | precision, computed, tables, decisions, then patch | `semantic` |
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
from dataclasses import replace

import torch

from forkpoint.errors import ForkpointError, reraise_out_of_memory
from forkpoint.explain.locate import Located, Tokens
from forkpoint.explain.results import ResultComparison
from forkpoint.explain.session import Session
from forkpoint.printable import one_line
from forkpoint.probes.compiled_modules import miscompiled, module_divergence
from forkpoint.probes.computed import computed
from forkpoint.probes.content import ContentProbe, content
from forkpoint.probes.deciding import decided_apart
from forkpoint.probes.decisions import decisions
from forkpoint.probes.held import HeldRuns
from forkpoint.probes.inputs import Inputs, inputs
from forkpoint.probes.masks import missing_masks
from forkpoint.probes.nonfinite import Unfinite, advice, unfinite
from forkpoint.probes.precision import Precision, precision
from forkpoint.probes.repeat import repeat
from forkpoint.probes.replay import replay
from forkpoint.probes.stand_ins import stand_in
from forkpoint.probes.tables import rounded_tables
from forkpoint.probes.whole import whole_numbers
from forkpoint.result import Divergence, ProbeResult, Verdict, VerdictKind
from forkpoint.verdict.judgement import Judgement
from forkpoint.verdict.rounding import (
    ULPS_OF_ROUNDING,
    model_dtypes,
    not_as_it_ran,
    otherwise_compiled,
    rounding,
)
from forkpoint.verdict.semantic import (
    collapsed,
    displaced,
    inputs_differ,
    not_finite,
    semantic,
)
from forkpoint.verdict.unproved import drowned_in_noise, not_all_compared, without_float64, without_probes

_REPEAT_ADVICE = {
    "random_state": "Set the seed before each run, or put the model in eval mode.",
    "atomics": "Use torch.use_deterministic_algorithms(True) to find the op, and replace it.",
    None: "Look for what a call draws, counts or reads from outside of the model: a generator of its own, a clock, a counter.",
}
_FAILED_ADVICE = "Compare without probes for the first divergence alone; if torch's own functions are all that the model calls, please report it."
_MOST_OF_AN_ERROR = 200
"""Characters of a model's error that a verdict repeats."""
_OF_MASKS = ("attention_mask", "padding_leak", "cache_state")
"""Mechanisms that a missing mask brings about."""


def judge(session: Session, compared: ResultComparison, located: Located | None, tokens: Tokens) -> Judgement:
    """Run the probes that are needed, and read the truth table.

    A model may refuse what an experiment asks of it (function modes, float64, other content): nothing is proved then.
    """
    try:
        return _completed(session, compared, located, tokens)
    except ForkpointError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a model says that works as it is
        reraise_out_of_memory(error)
        message = one_line(f"{type(error).__name__}: {error}", _MOST_OF_AN_ERROR)
        summary = f"an experiment ended in an error, where the runs themselves end well: {message}"
        return Judgement(Verdict(VerdictKind.UNDETERMINED, None, None, summary, (), _FAILED_ADVICE))


def _completed(
    session: Session, compared: ResultComparison, located: Located | None, tokens: Tokens
) -> Judgement:
    """The verdict of the table, with what is NaN or infinite in the results and which masks are missing."""
    nonfinite = unfinite(session, compared, located)
    judged = _decided(session, compared, located, tokens, nonfinite)
    verdict = _with_masks(session, judged.verdict, next(iter(judged.origins), None))
    return replace(judged, verdict=_with_unfinite(verdict, nonfinite), unfinite=nonfinite)


def _decided(
    session: Session, compared: ResultComparison, located: Located | None, tokens: Tokens, nonfinite: Unfinite
) -> Judgement:
    """The truth table, row by row: the first row that holds gives the verdict."""
    evidence = list(nonfinite.results)
    compared_inputs = inputs(session)
    if compared.identical and compared_inputs.mechanism != "labels":
        return Judgement(replace(without_probes(compared), evidence=nonfinite.results))
    if not compared_inputs.differs and (not compared.gaps or (compared.missing and not compared.differs)):
        return Judgement(replace(without_probes(compared), evidence=nonfinite.results))
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
    evidence.append(compared_inputs.result)
    if compared_inputs.differs:
        return Judgement(inputs_differ(session, compared_inputs, evidence))
    session.progress.begin("probe: both runs in float64")
    exact = precision(session, compared_inputs.rounded, watched=bool(compared.displaced))
    evidence.append(exact.result)
    order = _order(compared, exact.compared)
    if nonfinite.alone:
        return not_finite(session, exact, nonfinite, compared_inputs, evidence, tokens)
    exact, compared_inputs = _with_computed(session, exact, compared_inputs, evidence)
    exact = _with_tables(session, exact, compared_inputs, evidence)
    exact, other = _with_decisions(session, exact, compared_inputs, compared, evidence)
    evidence += [] if order is None else [order]
    if (not exact.vanishes and not exact.refused) or other.leaks:
        swapped = stand_in(session, located)
        if swapped is not None:
            evidence[evidence.index(compared_inputs.result)] = swapped.result
            return Judgement(inputs_differ(session, swapped, evidence))
        return semantic(session, exact, other, compared_inputs, compared, evidence, tokens)
    if order is not None and order.outcome == "displaced":
        return Judgement(displaced(order, evidence))
    whole = whole_numbers(session, exact, compared_inputs.rounded) if exact.vanishes else None
    if whole is not None:
        evidence.append(whole.result)
        if whole.moves:
            return Judgement(collapsed(whole, evidence))
    session.progress.begin("probe: the op alone")
    alone = replay(located) if located is not None else None
    if alone is not None:
        evidence.append(alone.result)
    if compared.missing:
        return Judgement(not_all_compared(compared, evidence))
    if exact.vanishes and exact.falls_from(compared):
        wrong = miscompiled(session, flips=isinstance(exact.runs, HeldRuns))
        if wrong is not None:
            place = module_divergence(session, wrong.path, located, tokens)
            origins = () if place is None else (place,)
            return Judgement(otherwise_compiled(wrong, evidence), origins, by_module=True)
        return Judgement(
            not_as_it_ran(session, exact, compared, compared_inputs, evidence)
            or rounding(session, exact, alone, compared_inputs, located, evidence)
        )
    if exact.vanishes and not exact.refused:
        return Judgement(drowned_in_noise(session, exact, evidence))
    return without_float64(session, exact, alone, compared_inputs, located, evidence)


def _with_computed(
    session: Session, exact: Precision, compared_inputs: Inputs, evidence: list[ProbeResult]
) -> tuple[Precision, Inputs]:
    """The runs in float64, where a parameter of one model that the other computes anew is what that one computes."""
    if exact.vanishes or exact.refused or not compared_inputs.alone:
        return exact, compared_inputs
    anew = computed(session, compared_inputs)
    if anew is None:
        return exact, compared_inputs
    weights = (*compared_inputs.rounded, *anew.weights)
    now = precision(session, weights)
    evidence.append(anew.evidence(exact.gap, now.gap))
    return now, replace(compared_inputs, rounded=weights)


def _with_tables(
    session: Session, exact: Precision, compared_inputs: Inputs, evidence: list[ProbeResult]
) -> Precision:
    """The runs in float64, where a gap that rounded tables explain counts as noise."""
    if exact.vanishes or exact.refused:
        return exact
    tables = rounded_tables(session, exact, compared_inputs.rounded)
    if tables is None:
        return exact
    evidence.append(tables)
    return replace(exact, vanishes=True, tables=tables)


def _with_decisions(
    session: Session,
    exact: Precision,
    compared_inputs: Inputs,
    compared: ResultComparison,
    evidence: list[ProbeResult],
) -> tuple[Precision, ContentProbe]:
    """The runs in float64, and what other content does; with the same decisions where they may be why the runs differ.

    That is where the gap does not fall in float64 or is larger in native precision than it should be, where a token is
    decided otherwise in the two runs, and where other content changes bits in native precision alone: by the sizes of
    products, or by what it decides there.
    """
    held: Precision | None = None

    def hold() -> Precision | None:
        session.progress.begin("probe: the same decisions in both runs")
        exact_held, result = decisions(session, compared_inputs.rounded)
        evidence.extend([] if result is None else [result])
        return exact_held

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
    dtypes |= model_dtypes(session.a) | model_dtypes(session.b)
    unit = max((torch.finfo(dtype).eps for dtype in dtypes), default=math.inf)
    native = max((g.gap.max_rel for g in compared.gaps), default=0.0) / unit
    return native > ULPS_OF_ROUNDING * max(exact.relative / torch.finfo(torch.float64).eps, 1.0)


def _order(compared: ResultComparison, exact: ResultComparison) -> ProbeResult | None:
    """Where results lie, if that is not the same relative to both layouts: in float64 too, or by rounding alone."""
    if not compared.displaced:
        return None
    if not exact.displaced:
        text = "results lie elsewhere in one run, but not in float64: rounding decides the order"
        return ProbeResult("order", "rounding", 0.0, text)
    count = sum(moved.count for moved in exact.displaced)
    moved = exact.displaced[0]
    return ProbeResult("order", "displaced", float(count), f"{moved.name}: {moved.text}")


def _with_masks(session: Session, verdict: Verdict, shown: Divergence | None) -> Verdict:
    """Where a mask may be the cause, the advice says which calls lack one."""
    if verdict.mechanism not in _OF_MASKS:
        return verdict
    lacking = missing_masks(session, shown)
    return replace(verdict, advice=f"{lacking}. {verdict.advice}") if lacking else verdict


def _with_unfinite(verdict: Verdict, nonfinite: Unfinite) -> Verdict:
    """Results that are NaN or infinite in both runs alike are no difference, but nothing that is right, either."""
    count = max(nonfinite.part.nonfinite_a, nonfinite.part.nonfinite_b)
    if (
        verdict.kind not in (VerdictKind.IDENTICAL, VerdictKind.ROUNDING)
        or nonfinite.worst is None
        or not count
    ):
        return verdict
    summary = f"{verdict.summary}; {count:,} of {nonfinite.part.elements:,} elements are NaN or infinite in both runs"
    return replace(verdict, summary=summary, advice=advice(nonfinite.worst[1], finite_in_float64=False))
