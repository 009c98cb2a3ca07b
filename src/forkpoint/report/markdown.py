"""The report in Markdown, as GitHub and GitLab read it, and the same as an issue for strangers to read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from forkpoint.printable import NO_BREAK, printable
from forkpoint.report.build import document
from forkpoint.report.document import Cell, Fact, Grid, Line, Meter, Paragraph, Role, Section, Span
from forkpoint.report.page.parts import reproduce
from forkpoint.report.public import public
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from forkpoint.result import Result

ISSUE = ("header", "verdict", "impact", "first", "origin", "evidence", "runs", "notes")
"""Sections of an issue."""
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|^[-+](?=\s)|(?<=^\d)[.)](?=\s)")
"""What Markdown would read as more than text; an underscore within a word is one."""
_ENTITIES = {"<": "&lt;", ">": "&gt;", "@": "&#64;", "#": "&#35;", "://": "&#58;//"}
"""What HTML would, and what GitHub makes links of: mentions, numbers of issues, addresses."""


def to_markdown(result: Result, *, lang: str = "en") -> str:
    """The report in Markdown.

    Args:
        result: what `compare` returned.
        lang: `en` or `zh`.

    Raises:
        InputError: there is no such language.
    """
    return _written(document(result, lang=lang).sections)


def to_issue(result: Result, *, lang: str = "en", private: bool = False) -> str:
    """An issue that is ready to paste: verdict, first divergence, versions, and how to get a script.

    Args:
        result: what `compare` returned.
        lang: `en` or `zh`.
        private: with the texts of tokens, names, paths and notes, which are left out otherwise.

    Raises:
        InputError: there is no such language.
    """
    words = Words(lang)
    shown = result if private else public(result)
    report = document(shown, lang=lang)
    parts = [section for key in ISSUE if (section := report.section(key)) is not None]
    steps = reproduce(shown, words)
    place = shown.origin or shown.first
    title = words(f"kind.{shown.verdict.kind.value}")
    if place is not None and not shown.identical:
        title += f": {_text(place.op)}"
    about = words("issue.about" if private else "issue.about.public")
    return f"## {title}\n\n<!-- {about} -->\n\n{_written((*parts, *([steps] if steps else [])))}"


def quoted(text: str) -> str:
    r"""Somebody's text, as Markdown shows it unread: in a paragraph, a cell of a table or a summary.

    >>> print(quoted("tests/test_x.py::test_b[a|b]"))
    tests/test_x.py::test_b\[a\|b\]
    """
    return _text(text)


def _written(sections: tuple[Section, ...]) -> str:
    return "\n\n".join(filter(None, map(_section, sections))) + "\n"


def _section(section: Section) -> str:
    title = [f"### {_line(section.title)}"] if section.title else []
    parts: list[str] = []
    for block in section.blocks:
        match block:
            case Fact():
                if parts and parts[-1].startswith("- "):  # one list of all
                    parts[-1] += "\n" + _fact(block)
                else:
                    parts.append(_fact(block))
            case Grid():
                parts.append(_table(block))
            case Paragraph(content, mark):
                parts.append(_text(mark) + _line(content))
    return "\n\n".join([*title, *parts])


def _fact(fact: Fact) -> str:
    head = f"- **{_text(fact.label)}**: "
    if isinstance(fact.body, Grid):
        return head.rstrip() + "".join(
            f"\n  - {' '.join(filter(None, map(_cell, row)))}" for row in fact.body.rows
        )
    first, *more = map(_line, fact.body)
    return head + first + "".join(f"\n  - {text}" for text in more)


def _table(grid: Grid) -> str:
    """A table; bars are left out, and what spans all columns stands in the first."""
    width = max(map(len, (*grid.rows, grid.head)), default=0)
    columns = [column for column in range(width) if not any(_is_bar(row, column) for row in grid.rows)]

    def row(cells: tuple[Cell, ...]) -> str:
        return "| " + " | ".join(_cell(cells[n]) if n < len(cells) else "" for n in columns) + " |"

    ruler = "| " + " | ".join("--:" if column in grid.right else "---" for column in columns) + " |"
    return "\n".join([row(grid.head), ruler, *map(row, grid.rows)])


def _is_bar(row: tuple[Cell, ...], column: int) -> bool:
    return column < len(row) and isinstance(row[column], Meter)


def _cell(cell: Cell) -> str:
    return "" if isinstance(cell, Meter) else _line(cell)


def _line(line: Line) -> str:
    return "".join(map(_span, line))


def _span(span: Span) -> str:
    text = span.text.strip()
    if not text:
        return " " if span.text else ""
    before, after = (" " if space else "" for space in (span.text[0].isspace(), span.text[-1].isspace()))
    match span.role:
        case Role.CODE:
            markup = _code(text)
        case Role.STRONG | Role.CAUTION | Role.BAD:
            markup = f"**{_text(text)}**"
        case _:
            markup = _text(text)
    return before + markup + after


def _text(text: str) -> str:
    r"""Text that Markdown, HTML and GitHub (mentions, numbers of issues) read as nothing but text.

    >>> print(_text("a_b _c_ <b> @someone"))
    a_b \_c\_ &lt;b&gt; &#64;someone
    """
    shown = printable(text).replace(NO_BREAK, " ").replace("&", "&amp;")
    shown = _SPECIAL.sub(r"\\\g<0>", shown)
    return re.sub("[<>@#]|://", lambda match: _ENTITIES[match[0]], shown)


def _code(text: str) -> str:
    """A span of code between more backticks than stand in it; a bar in it would end a cell of a table."""
    shown = printable(text).replace(NO_BREAK, " ").replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"
