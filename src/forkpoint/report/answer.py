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
    found = result.verdict
    role = Role.CAUTION if found.by_design else KIND_ROLES[found.kind]
    meaning = words(f"meaning.{_meaning(result)}")
    title = line(Span("● " + words(f"kind.{found.kind.value}"), role), f" — {meaning}")
    blocks: list[Paragraph | Fact] = []
    summary = _summary(found, words)
    if summary and words.phrase(found.summary) != meaning:
        blocks.append(Paragraph(line(summary)))
    if found.mechanism is not None:
        blocks.append(Fact(words("cause"), (_cause(found.mechanism, words),)))
    if found.kind is VerdictKind.SEMANTIC:
        design = {True: "true", False: "false", None: "none"}[found.by_design]
        blocks.append(Fact(words("design"), (line(words(f"design.{design}")),)))
    advice = _advice(found, words)
    if advice:
        blocks.append(Fact(words("advice"), (line(advice),)))
    return Section("verdict", title, tuple(blocks))


def _meaning(result: Result) -> str:
    """Which phrase says what the verdict means: a kind's own, or one for what its experiments did not show."""
    found = result.verdict
    if _unprobed(found):
        return "unprobed"
    if found.kind is VerdictKind.IDENTICAL:
        others = any(left.op.startswith("result ") for left in result.not_compared)
        return "valued" if others else "identical"
    if found.kind is not VerdictKind.SEMANTIC:
        return found.kind.value
    if found.mechanism == "nan":
        return "nan"  # float64 need not have it
    shown = {(probe.name, probe.outcome) for probe in found.evidence}
    if shown & _AS_IT_RAN:
        return "native"
    if ("content", "changes") in shown and ("precision", "vanishes") in shown:
        return "content"
    return "semantic"


def _summary(found: Verdict, words: Words) -> str:
    """The summary; in Chinese only if it can be said, or says what nothing else does: what is missing."""
    text = found.summary.removeprefix(_SAID_ABOVE)
    show = words.can_say(text) or found.kind is VerdictKind.UNDETERMINED
    return words.sentence(text) if show else ""


def _cause(mechanism: str, words: Words) -> Line:
    meaning = words.find(f"mechanism.{mechanism}")
    return line(meaning, muted(words("aside", text=mechanism))) if meaning else line(mechanism)


def _unprobed(found: Verdict) -> bool:
    """Nothing is proved because nobody asked for probes."""
    return found.kind is VerdictKind.UNDETERMINED and not found.probed


def _advice(found: Verdict, words: Words) -> str | None:
    """The probes' own advice; in Chinese, or where they give none, that of the mechanism or of the kind."""
    if words.can_say(found.advice):
        return words.sentence(found.advice)
    general = "advice.unprobed" if _unprobed(found) else f"advice.kind.{found.kind.value}"
    return words.find(f"advice.{found.mechanism}") or words.find(general)


def impact(result: Result, words: Words) -> Section:
    """Does it matter: loss, the largest gap, KL, flipped predictions."""
    title = line(words("impact"))
    found = result.impact
    if found is None:
        return Section("impact", title, (Paragraph(line(words("impact.none"))),))
    facts: list[Fact] = []
    if found.loss_a is not None and found.loss_b is not None:
        facts.append(Fact(words("loss"), _losses(found, found.loss_a, found.loss_b, words)))
    if found.result or not found.discrete_compared:
        facts.append(Fact(words("gap"), (_gap(result, found, words),)))
    if found.discrete_compared:
        facts.append(Fact(words("discrete"), (_discrete(found, words),)))
    if found.nonfinite_a or found.nonfinite_b:
        facts.append(Fact(words("nonfinite"), (_nonfinite(found, words),)))
    if found.predictions == 0:
        facts.append(Fact(words("flips"), (line(words("predictions.none")),)))
    elif found.max_kl is not None:
        facts.append(Fact(words("kl"), (line(_kl(found, found.max_kl, words)),)))
    if found.top1_flips is not None and found.predictions != 0:
        facts.append(Fact(words("flips"), _flips(result, found, words)))
    facts.append(Fact(words("compared"), (line(words.many("tokens", found.tokens)),)))
    return Section("impact", title, tuple(facts))


def _losses(found: Impact, a: float, b: float, words: Words) -> tuple[Line, ...]:
    """The losses, where they come from, and what each of several calls returned."""
    source = ""
    if found.loss_source == "returned":
        source = words("loss.returned")
    elif found.loss_source is not None:
        source = words("loss.recomputed", labels=found.loss_source.split()[-1])
    lines = [line(*_loss(a, b, found.loss_gap, words), muted(words("aside", text=source)) if source else "")]
    for run, losses in (("A", found.losses_a), ("B", found.losses_b)):
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


def _discrete(found: Impact, words: Words) -> Line:
    whole = count(found.discrete_compared)
    if not found.discrete_differing:
        return line(words("discrete.same", whole=whole))
    return line(strong(words("discrete.some", part=count(found.discrete_differing), whole=whole)))


def _kl(found: Impact, value: float, words: Words) -> str:
    text = words("kl.most", kl=short(value)) if math.isfinite(value) else words("kl.infinite")
    if _some(found):
        numbers = {"n": count(found.predictions or 0), "tokens": count(found.tokens)}
        text += words("comma") + words("predictions.some", **numbers)
    return text


def _some(found: Impact) -> bool:
    """Whether some tokens have no prediction in one run, since their logits are NaN."""
    return found.predictions is not None and found.predictions < found.tokens


def _nonfinite(found: Impact, words: Words) -> Line:
    """How many elements of the results are NaN or infinite."""
    numbers = {"a": found.nonfinite_a, "b": found.nonfinite_b, "whole": found.elements}
    text = words("nonfinite.elements", **{key: count(value) for key, value in numbers.items()})
    apart = found.nonfinite_apart
    alone = words("nonfinite.apart", n=count(apart)) if apart else words("nonfinite.same")
    return line(text, words("comma"), alone)


def _gap(result: Result, found: Impact, words: Words) -> Line:
    if found.elements and max(found.nonfinite_a, found.nonfinite_b) == found.elements:
        return line(words("gap.nowhere"))
    if found.max_abs == 0:
        return line(words("gap.zero"))
    parts: list[str | Span] = [strong(size(found.max_abs))]
    if found.result:
        parts.append(" " + words("gap.result", name=found.result))
    parts.append(words("comma") + words("gap.relative", gap=short(found.max_rel)))
    dtype = narrower(result.a.dtype, result.b.dtype)
    if dtype is not None:
        factor = times(found.max_rel / EPSILON[dtype])
        parts.append(muted(words("aside", text=words("gap.epsilon", times=factor, dtype=dtype))))
    if found.nonfinite_a or found.nonfinite_b:
        parts.append(words("comma") + words("gap.finite"))
    return line(*parts)


def _flips(result: Result, found: Impact, words: Words) -> tuple[Line, ...]:
    known = found.tokens if found.predictions is None else found.predictions
    if not found.top1_flips:
        return (line(words("flips.none.of", n=count(known)) if _some(found) else words("flips.none")),)
    lines = [line(strong(words.many("flips.some", found.top1_flips, tokens=count(known))))]
    worst = sorted(found.flips, key=lambda tie: -max(tie.margin_a, tie.margin_b))[:FLIPS_SHOWN]
    lines.extend(_tie(tie, words, brief=alone(result)) for tie in worst)
    rest = found.top1_flips - len(worst)
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
    found = result.verdict.evidence
    if not found:
        return None
    facts = tuple(Fact(words.name("probe", probe.name), (line(finding(probe, words)),)) for probe in found)
    return Section("evidence", line(words("evidence")), facts)


def finding(probe: ProbeResult, words: Words) -> str:
    """The probe's own sentence; in Chinese, or where it has none, that of its outcome."""
    key = f"outcome.{probe.name}.{probe.outcome}"
    if words.can_say(probe.text) or words.find(key) is None:
        return words.sentence(probe.text or probe.outcome)
    return words(key, figure="?" if probe.figure is None else size(probe.figure))
