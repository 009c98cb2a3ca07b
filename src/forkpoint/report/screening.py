"""The report of a screening: the cause in one sentence, what each token costs, what was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkpoint.report.document import Document, Fact, Paragraph, Role, Section, Span, line
from forkpoint.report.numbers import count, short

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.screening.answer import Screening


def document(screening: Screening, words: Words) -> Document:
    """The cause, what it costs, what was tried."""
    role = Role.GOOD if screening.agrees else Role.CAUTION if screening.cause == "unknown" else Role.BAD
    title = Span("● " + words(f"screening.{screening.cause}"), role)
    sections = [Section("verdict", line(title), (Paragraph(line(words.sentence(screening.summary))),))]
    if screening.tokens:
        facts = [
            Fact(words("screening.gap"), (line(words("screening.gaps", mean=short(screening.mean_abs), most=short(screening.max_abs))),)),
            Fact(words("screening.ratio"), (line(short(screening.ratio)),)),
        ]  # fmt: skip
        if screening.logit_noise is not None:
            facts.append(Fact(words("screening.logit"), (line(short(screening.logit_noise)),)))
        if screening.kept_mass is not None:
            facts.append(Fact(words("screening.kept"), (line(short(screening.kept_mass)),)))
        if screening.only_a or screening.only_b:
            out = words("screening.out.figures", a=count(screening.only_a), b=count(screening.only_b))
            facts.append(Fact(words("screening.out"), (line(out),)))
        compared = words(
            "screening.compared", tokens=count(screening.tokens), sequences=count(screening.sequences)
        )
        facts.append(Fact(words("compared"), (line(compared),)))
        sections.append(Section("cost", line(words("screening.cost")), tuple(facts)))
    if screening.evidence:
        tried = tuple(Paragraph(line(words.sentence(text))) for text in screening.evidence)
        sections.append(Section("tried", line(words("screening.tried")), tried))
    return Document(tuple(sections))
