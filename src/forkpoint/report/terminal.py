"""The report in a terminal, in colour or plain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from forkpoint.report.brief import brief
from forkpoint.report.build import document
from forkpoint.report.document import Block, Document, Fact, Grid, Line, Paragraph, Section, line, muted
from forkpoint.report.grid import GAP, Page, finished, indented, rows, wrapped
from forkpoint.report.summary import summary
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from forkpoint.result import Result

INDENT = 2
NARROW = 48
"""Below this width a label stands above its value, not beside it."""


def render(
    result: Result, console: Console, *, details: bool = True, ops: bool = False, matching: str | None = None,
    more: str = "more.command", lang: str = "en",
) -> None:  # fmt: skip
    """Print the report of a result.

    Args:
        result: what `compare` returned; nothing else is read.
        console: gives width, colours and encoding.
        details: the whole report; without, the short one.
        ops: add the table of every captured op.
        matching: of that table only what this pattern fits.
        more: key of the phrase that ends the short report and says how to get the rest.
        lang: `en` or `zh`.

    Raises:
        InputError: there is no such language.
    """
    if details:
        report = document(result, every_op=ops, matching=matching, lang=lang)
    else:
        report = brief(result, every_op=ops, matching=matching, more=more, lang=lang)
    show(report, console)


def show(report: Document, console: Console) -> None:
    """Print a document, fitted to the console."""
    page = Page(console.width, console.encoding)
    whole = Text("\n").join(lines(report, page))
    console.print(whole, no_wrap=True, overflow="ignore", crop=False, highlight=False)


def render_summary(
    answers: Sequence[tuple[str, Result]], worst: int, console: Console, *, lang: str = "en"
) -> None:
    """Print a line for each of several prompts.

    Args:
        answers: each prompt and its result.
        worst: index of the one whose report follows.
        console, lang: as for `render`.
    """
    show(Document((summary(answers, worst, Words(lang)),)), console)
    console.print()


def to_text(result: Result, *, lang: str = "en", width: int = 100, details: bool = True) -> str:
    """The report as plain text.

    Args:
        result: what `compare` returned.
        lang: `en` or `zh`.
        width: cells of a line.
        details: the whole report; without, the verdict, whether it matters and the first divergence alone.

    Raises:
        InputError: there is no such language.
    """
    report = document(result, lang=lang) if details else brief(result, lang=lang, more="more.python")
    return written(report, width)


def written(report: Document, width: int) -> str:
    """A document as plain text."""
    return "\n".join(text.plain for text in lines(report, Page(width)))


def lines(report: Document, page: Page) -> Iterator[Text]:
    """The document's lines, each at most as wide as the page."""
    labels = [
        cell_len(page.text(_label(block)).plain)
        for section in report.sections
        for block in section.blocks
        if isinstance(block, Fact)
    ]
    column = max(labels, default=0) + GAP
    shown = [section for section in report.sections if section.title or section.blocks]
    for number, section in enumerate(shown):
        if number:
            yield Text()
        yield from map(finished, _section(section, page, column))


def _label(block: Fact) -> Line:
    return line(muted(block.label))


def _section(section: Section, page: Page, column: int) -> Iterator[Text]:
    if section.title:
        yield from wrapped(page.text(section.title, "bold"), page.width, INDENT)
    for block in section.blocks:
        for text in _block(block, page, column):
            yield indented(text, INDENT)


def _block(block: Block, page: Page, column: int) -> Iterator[Text]:
    width = page.width - INDENT
    match block:
        case Paragraph(content, mark):
            yield from wrapped(
                page.text((*line(mark), *content)), width, cell_len(page.text(line(mark)).plain)
            )
        case Grid():
            yield from rows(block, page, width)
        case Fact():
            yield from _fact(block, page, column, width)


def _fact(fact: Fact, page: Page, column: int, width: int) -> Iterator[Text]:
    label = page.text(_label(fact))
    beside = page.width >= NARROW
    room = width - (column if beside else INDENT)
    if isinstance(fact.body, Grid):
        body = list(rows(fact.body, page, room))
    else:
        body = [part for content in fact.body for part in wrapped(page.text(content), room)]
    if not beside:
        yield label
        yield from (indented(text, INDENT) for text in body)
        return
    for number, text in enumerate(body):
        start = label if number == 0 else Text()
        start.append(" " * (column - cell_len(start.plain)))
        start.append_text(text)
        yield start
