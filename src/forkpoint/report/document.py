"""What a report says, apart from how it looks: sections of facts and grids, made of spans with a role.

A `Document` holds no widths, colours or markup, so that its words can be tested without rendering,
and any renderer can show it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from forkpoint.printable import NO_BREAK


class Role(enum.StrEnum):
    """Why a span is there; a renderer maps it to a style."""

    PLAIN = "plain"
    STRONG = "strong"
    MUTED = "muted"
    CODE = "code"
    GOOD = "good"
    CAUTION = "caution"
    BAD = "bad"


@dataclass(frozen=True)
class Span:
    """A piece of text with one role."""

    text: str
    role: Role = Role.PLAIN


Line = tuple[Span, ...]
"""Text that may be wrapped."""


@dataclass(frozen=True)
class Meter:
    """A bar in a cell of a grid."""

    fraction: float | None
    """Its length from 0 (the shortest bar that can be seen) to 1; None draws none."""


Cell = Line | Meter


@dataclass(frozen=True)
class Grid:
    """Cells in columns, with or without a head."""

    rows: tuple[tuple[Cell, ...], ...]
    """A row of a single cell, in a grid of more columns, is a heading or a remark and spans them all."""
    head: tuple[Line, ...] = ()
    right: frozenset[int] = frozenset()
    """Columns whose cells are aligned to the right."""
    flows: bool = False
    """Where the columns don't fit by far, each row may become a paragraph."""


@dataclass(frozen=True)
class Fact:
    """A label and what it stands for."""

    label: str
    body: tuple[Line, ...] | Grid


@dataclass(frozen=True)
class Paragraph:
    """A line without a label."""

    line: Line
    mark: str = ""
    """Stands before it; further lines of the text are aligned behind the mark."""


Block = Fact | Grid | Paragraph


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    key: str
    """Names the section in any language: `first`, `drift`."""
    title: Line
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    sections: tuple[Section, ...]

    def section(self, key: str) -> Section | None:
        """The section with that key, or None where the report has none."""
        return next((section for section in self.sections if section.key == key), None)


def line(*parts: str | Span) -> Line:
    """A line of strings and spans.

    >>> line("gap ", strong("0.5"))
    (Span(text='gap ', role=<Role.PLAIN: 'plain'>), Span(text='0.5', role=<Role.STRONG: 'strong'>))
    """
    return tuple(Span(part) if isinstance(part, str) else part for part in parts)


def strong(text: str) -> Span:
    return Span(text, Role.STRONG)


def muted(text: str) -> Span:
    return Span(text, Role.MUTED)


def code(text: str) -> Span:
    return Span(text, Role.CODE)


def plain_text(item: Document | Section | Block | Cell) -> str:
    """Every word of an item, one line of text for each line: what a test reads.

    >>> print(plain_text(Fact("gap", (line("0.5"), line("at most")))))
    gap: 0.5
    at most
    """
    match item:
        case Document(sections):
            text = "\n\n".join(map(plain_text, sections))
        case Section(_, title, blocks):
            text = "\n".join(plain_text(part) for part in (title, *blocks) if part)
        case Fact(label, body):
            parts = (body,) if isinstance(body, Grid) else body
            text = f"{label}: " + "\n".join(map(plain_text, parts))
        case Paragraph(content, mark):
            text = mark + plain_text(content)
        case Grid(rows, head):
            table = (head, *rows) if head else rows
            text = "\n".join(" | ".join(map(plain_text, row)) for row in table)
        case Meter(fraction):
            text = "" if fraction is None else f"{fraction:.2f}"
        case tuple():
            text = "".join(span.text for span in item)
    return text.replace(NO_BREAK, " ")
