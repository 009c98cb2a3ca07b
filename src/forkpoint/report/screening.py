"""The report of a screening: the cause in one sentence, what each token costs, what was tried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from forkpoint.report.document import Document, Fact, Paragraph, Section, line, strong
from forkpoint.report.grid import Page
from forkpoint.report.numbers import count, short
from forkpoint.report.terminal import lines
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from forkpoint.screening.answer import Screening


def render_screening(found: Screening, console: Console, *, lang: str = "en") -> None:
    """Print the report."""
    page = Page(console.width, console.encoding)
    whole = Text("\n").join(lines(document(found, lang), page))
    console.print(whole, no_wrap=True, overflow="ignore", crop=False, highlight=False)


def to_text(found: Screening, *, lang: str = "en", width: int = 100) -> str:
    """The report as plain text."""
    return "\n".join(text.plain for text in lines(document(found, lang), Page(width)))


def document(found: Screening, lang: str) -> Document:
    words = Words(lang)
    title = strong(words(f"screening.{found.cause}"))
    sections = [Section("cause", line(title), (Paragraph(line(words.sentence(found.summary))),))]
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
