"""The first screen: the verdict, whether it matters, and the evidence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from forkpoint.printable import NO_BREAK
from forkpoint.report.document import Fact, Line, Paragraph, Role, Section, Span, line, muted, strong
from forkpoint.report.numbers import EPSILON, count, narrower, pair, short, size, times
from forkpoint.report.place import alone, where
from forkpoint.report.status import KIND_ROLES
from forkpoint.result import VerdictKind

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import Impact, NearTie, ProbeResult, Result, Verdict

FLIPS_SHOWN = 3
_SAID_ABOVE = "the runs differ in exact arithmetic: "
"""What the meaning of a semantic difference says already."""

_AS_IT_RAN = {("whole", "collapse"), ("native", "one")}
"""What proves a difference that float64 does not have."""


def verdict(result: Result, words: Words) -> Section:
    """The verdict in one line with its meaning, then its cause and what to do."""
    verdict = result.verdict
    role = Role.CAUTION if verdict.by_design else KIND_ROLES[verdict.kind]
    meaning = words(f"meaning.{_meaning(result)}")
    title = line(Span("● " + words(f"kind.{verdict.kind.value}"), role), f" — {meaning}")
    blocks: list[Paragraph | Fact] = []
    summary = _summary(verdict, words)
    if summary and words.phrase(verdict.summary) != meaning:
        blocks.append(Paragraph(line(summary)))
    if verdict.mechanism is not None:
        blocks.append(Fact(words("cause"), (_cause(verdict.mechanism, words),)))
    if verdict.kind is VerdictKind.SEMANTIC:
        design = {True: "true", False: "false", None: "none"}[verdict.by_design]
        blocks.append(Fact(words("design"), (line(words(f"design.{design}")),)))
    advice = _advice(verdict, words)
    if advice:
        blocks.append(Fact(words("advice"), (line(advice),)))
    return Section("verdict", title, tuple(blocks))


def _meaning(result: Result) -> str:
    """Which phrase says what the verdict means: a kind's own, or one for what its experiments did not show."""
    verdict = result.verdict
    if _unprobed(verdict):
        return "unprobed"
    if verdict.kind is VerdictKind.IDENTICAL:
        others = any(left.op.startswith("result ") for left in result.not_compared)
        return "valued" if others else "identical"
    if verdict.kind is not VerdictKind.SEMANTIC:
        return verdict.kind.value
    if verdict.mechanism == "nan":
        return "nan"  # float64 need not have it
    shown = {(probe.name, probe.outcome) for probe in verdict.evidence}
    if shown & _AS_IT_RAN:
        return "native"
    if ("content", "changes") in shown and ("precision", "vanishes") in shown:
        return "content"
    return "semantic"


def _summary(verdict: Verdict, words: Words) -> str:
    """The summary; in Chinese only if it can be said, or says what nothing else does: what is missing."""
    text = verdict.summary.removeprefix(_SAID_ABOVE)
    show = words.can_say(text) or verdict.kind is VerdictKind.UNDETERMINED
    return words.sentence(text) if show else ""


def _cause(mechanism: str, words: Words) -> Line:
    meaning = words.find(f"mechanism.{mechanism}")
    return line(meaning, muted(words("aside", text=mechanism))) if meaning else line(mechanism)


def _unprobed(verdict: Verdict) -> bool:
    """Nothing is proved because nobody asked for probes."""
    return verdict.kind is VerdictKind.UNDETERMINED and not verdict.probed


def _advice(verdict: Verdict, words: Words) -> str | None:
    """The probes' own advice; in Chinese, or where they give none, that of the mechanism or of the kind."""
    if words.can_say(verdict.advice):
        return words.sentence(verdict.advice)
    general = "advice.unprobed" if _unprobed(verdict) else f"advice.kind.{verdict.kind.value}"
    return words.find(f"advice.{verdict.mechanism}") or words.find(general)


def impact(result: Result, words: Words) -> Section:
    """Does it matter: loss, the largest gap, KL, flipped predictions."""
    title = line(words("impact"))
    impact = result.impact
    if impact is None:
        return Section("impact", title, (Paragraph(line(words("impact.none"))),))
    facts: list[Fact] = []
    if impact.loss_a is not None and impact.loss_b is not None:
        facts.append(Fact(words("loss"), _losses(impact, impact.loss_a, impact.loss_b, words)))
    if impact.result or not impact.discrete_compared:
        facts.append(Fact(words("gap"), (_gap(result, impact, words),)))
    if impact.discrete_compared:
        facts.append(Fact(words("discrete"), (_discrete(impact, words),)))
    if impact.nonfinite_a or impact.nonfinite_b:
        facts.append(Fact(words("nonfinite"), (_nonfinite(impact, words),)))
    if impact.predictions == 0:
        facts.append(Fact(words("flips"), (line(words("predictions.none")),)))
    elif impact.max_kl is not None:
        facts.append(Fact(words("kl"), (line(_kl(impact, impact.max_kl, words)),)))
    if impact.top1_flips is not None and impact.predictions != 0:
        facts.append(Fact(words("flips"), _flips(result, impact, words)))
    facts.append(Fact(words("compared"), (line(words.many("tokens", impact.tokens)),)))
    return Section("impact", title, tuple(facts))


def _losses(impact: Impact, a: float, b: float, words: Words) -> tuple[Line, ...]:
    """The losses, where they come from, and what each of several calls returned."""
    source = ""
    if impact.loss_source == "returned":
        source = words("loss.returned")
    elif impact.loss_source is not None:
        source = words("loss.recomputed", labels=impact.loss_source.split()[-1])
    lines = [line(*_loss(a, b, impact.loss_gap, words), muted(words("aside", text=source)) if source else "")]
    for run, losses in (("A", impact.losses_a), ("B", impact.losses_b)):
        if len(losses) > 1:
            numbers = words("comma").join(pair(loss, loss)[0] for loss in losses)
            lines.append(line(muted(words.many("loss.calls", len(losses), run=run, losses=numbers))))
    return tuple(lines)


def _loss(a: float, b: float, gap: float | None, words: Words) -> Line:
    if a == b:
        return line(words("loss.same", loss=pair(a, b)[0]))
    text_a, text_b = pair(a, b)
    if not (math.isfinite(a) and math.isfinite(b)):
        return line(
            f"A{NO_BREAK}{text_a}   B{NO_BREAK}{text_b}   ",
            words("aside", text=words("loss.nonfinite")).strip(),
        )
    shown = words("loss.other") if gap is None else words("loss.gap", gap=short(gap))
    return line(f"A{NO_BREAK}{text_a}   B{NO_BREAK}{text_b}   ", shown)


def _discrete(impact: Impact, words: Words) -> Line:
    whole = count(impact.discrete_compared)
    if not impact.discrete_differing:
        return line(words("discrete.same", whole=whole))
    return line(strong(words("discrete.some", part=count(impact.discrete_differing), whole=whole)))


def _kl(impact: Impact, value: float, words: Words) -> str:
    text = words("kl.most", kl=short(value)) if math.isfinite(value) else words("kl.infinite")
    if _some(impact):
        numbers = {"n": count(impact.predictions or 0), "tokens": count(impact.tokens)}
        text += words("comma") + words("predictions.some", **numbers)
    return text


def _some(impact: Impact) -> bool:
    """Whether some tokens have no prediction in one run, since their logits are NaN."""
    return impact.predictions is not None and impact.predictions < impact.tokens


def _nonfinite(impact: Impact, words: Words) -> Line:
    """How many elements of the results are NaN or infinite."""
    numbers = {"a": impact.nonfinite_a, "b": impact.nonfinite_b, "whole": impact.elements}
    text = words("nonfinite.elements", **{key: count(value) for key, value in numbers.items()})
    apart = impact.nonfinite_apart
    alone = words("nonfinite.apart", n=count(apart)) if apart else words("nonfinite.same")
    return line(text, words("comma"), alone)


def _gap(result: Result, impact: Impact, words: Words) -> Line:
    if impact.elements and max(impact.nonfinite_a, impact.nonfinite_b) == impact.elements:
        return line(words("gap.nowhere"))
    if impact.max_abs == 0:
        return line(words("gap.zero"))
    parts: list[str | Span] = [strong(size(impact.max_abs))]
    if impact.result:
        parts.append(" " + words("gap.result", name=impact.result))
    parts.append(words("comma") + words("gap.relative", gap=short(impact.max_rel)))
    dtype = narrower(result.a.dtype, result.b.dtype)
    if dtype is not None:
        factor = times(impact.max_rel / EPSILON[dtype])
        parts.append(muted(words("aside", text=words("gap.epsilon", times=factor, dtype=dtype))))
    if impact.nonfinite_a or impact.nonfinite_b:
        parts.append(words("comma") + words("gap.finite"))
    return line(*parts)


def _flips(result: Result, impact: Impact, words: Words) -> tuple[Line, ...]:
    predictions = impact.tokens if impact.predictions is None else impact.predictions
    if not impact.top1_flips:
        return (line(words("flips.none.of", n=count(predictions)) if _some(impact) else words("flips.none")),)
    lines = [line(strong(words.many("flips.some", impact.top1_flips, tokens=count(predictions))))]
    worst = sorted(impact.flips, key=lambda tie: -max(tie.margin_a, tie.margin_b))[:FLIPS_SHOWN]
    lines.extend(_tie(tie, words, brief=alone(result)) for tie in worst)
    rest = impact.top1_flips - len(worst)
    if worst and rest > 0:
        lines.append(line(muted(words.many("flips.more", rest))))
    return tuple(lines)


def _tie(tie: NearTie, words: Words, *, brief: bool) -> Line:
    def side(run: str, token: int, margin: float) -> str:
        return words("flips.pick", run=run, token=token, margin=size(margin))

    place = where(tie.sample, tie.position, None, words, brief=brief)
    a, b = side("A", tie.token_a, tie.margin_a), side("B", tie.token_b, tie.margin_b)
    return line(muted(place + words("colon")), a, words("semicolon"), b)


def evidence(result: Result, words: Words) -> Section | None:
    """What each probe did and showed."""
    probes = result.verdict.evidence
    if not probes:
        return None
    facts = tuple(Fact(words.name("probe", probe.name), (line(finding(probe, words)),)) for probe in probes)
    return Section("evidence", line(words("evidence")), facts)


def finding(probe: ProbeResult, words: Words) -> str:
    """The probe's own sentence; in Chinese, or where it has none, that of its outcome."""
    key = f"outcome.{probe.name}.{probe.outcome}"
    if words.can_say(probe.text) or words.find(key) is None:
        return words.sentence(probe.text or probe.outcome)
    return words(key, figure="?" if probe.figure is None else size(probe.figure))
