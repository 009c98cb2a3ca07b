"""The report of a screening: the cause in one sentence, what each token costs, what was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkpoint.report.document import Document, Fact, Paragraph, Role, Section, Span, line
from forkpoint.report.numbers import count, short

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.screening.answer import Screening


def document(found: Screening, words: Words) -> Document:
    """The cause, what it costs, what was tried."""
    role = Role.GOOD if found.agrees else Role.CAUTION if found.cause == "unknown" else Role.BAD
    title = Span("● " + words(f"screening.{found.cause}"), role)
    sections = [Section("verdict", line(title), (Paragraph(line(words.sentence(found.summary))),))]
    if found.tokens:
        facts = [
            Fact(words("screening.gap"), (line(words("screening.gaps", mean=short(found.mean_abs), most=short(found.max_abs))),)),
            Fact(words("screening.ratio"), (line(short(found.ratio)),)),
        ]  # fmt: skip
        if found.logit_noise is not None:
            facts.append(Fact(words("screening.logit"), (line(short(found.logit_noise)),)))
        if found.kept_mass is not None:
            facts.append(Fact(words("screening.kept"), (line(short(found.kept_mass)),)))
        if found.only_a or found.only_b:
            out = words("screening.out.figures", a=count(found.only_a), b=count(found.only_b))
            facts.append(Fact(words("screening.out"), (line(out),)))
        compared = words("screening.compared", tokens=count(found.tokens), sequences=count(found.sequences))
        facts.append(Fact(words("compared"), (line(compared),)))
        sections.append(Section("cost", line(words("screening.cost")), tuple(facts)))
    if found.evidence:
        tried = tuple(Paragraph(line(words.sentence(text))) for text in found.evidence)
        sections.append(Section("tried", line(words("screening.tried")), tried))
    return Document(tuple(sections))
