"""Lines and grids fitted to a width: from the document's cells to rich's text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import gt

from rich.cells import cell_len
from rich.text import Text

from forkpoint.printable import NO_BREAK, printable
from forkpoint.report.document import Cell, Grid, Line, Meter, Role
from forkpoint.report.wrap import breaks

STYLES = {
    Role.PLAIN: "",
    Role.STRONG: "bold",
    Role.MUTED: "dim",
    Role.CODE: "cyan",
    Role.GOOD: "green",
    Role.CAUTION: "yellow",
    Role.BAD: "red",
}

GAP = 2
"""Cells between two columns."""
LEAST_GAP = 1
"""The same where by that alone no cell has to be cut."""
METER = 24
"""Cells of a bar that has room."""
LEAST_METER = 6
LEAST_COLUMN = 8
USUAL = 0.9
"""Share of the rows by whose cells it is decided which columns stand beside each other."""
MOST = 0.5
"""Where more than this share of the rows would be torn, they become paragraphs."""

_ASCII = {
    "●": "*",
    "…": "...",
    "×": "x",
    "→": "->",
    "–": "-",
    "—": "-",
    "·": ".",
    "━": "=",
    "╸": "-",
}
"""What stands for the report's own characters where the encoding lacks them."""


@dataclass(frozen=True)
class Page:
    """Where the text goes: its width in cells and the characters that it can show."""

    width: int
    encoding: str = "utf-8"

    def text(self, content: Line, style: str = "") -> Text:
        """A line as rich text, with every character that the page can't show replaced."""
        text = Text(style=style, end="")
        for span in content:
            text.append(self._shown(printable(span.text)), STYLES[span.role])
        return text

    def _shown(self, text: str) -> str:
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return "".join(self._character(character) for character in text)
        return text

    def _character(self, character: str) -> str:
        try:
            character.encode(self.encoding)
        except UnicodeEncodeError:
            if character == NO_BREAK:
                return character  # becomes a space when the lines are cut
            plain = _ASCII.get(character, character)
            return plain.encode(self.encoding, "backslashreplace").decode(self.encoding)
        return character

    def bar(self, fraction: float | None, width: int) -> Text:
        """A bar in halves of a cell; the shortest is one half."""
        if fraction is None:
            return Text(end="")
        halves = 1 + round(fraction * (2 * width - 1))
        bar = "━" * (halves // 2) + "╸" * (halves % 2)
        return Text(self._shown(bar), "blue", end="")


def wrapped(text: Text, width: int, hang: int = 0) -> list[Text]:
    """The text cut into lines of at most `width` cells, without spaces at their ends.

    Args:
        text: one paragraph.
        width: cells of a line.
        hang: cells by which the lines after the first are indented.
    """
    if cell_len(text.plain) <= width:
        lines = [text]
    else:
        first, *rest = text.divide(breaks(text.plain, width, width - hang))
        lines = [first, *(indented(part, hang) for part in rest)]
    for part in lines:
        part.rstrip()
    return lines


def indented(text: Text, cells: int) -> Text:
    """The text some cells further to the right."""
    return Text(" " * cells, end="").append_text(text)


def finished(text: Text) -> Text:
    """A line that will not be cut any more: plain spaces, and none at its end."""
    text.rstrip()
    if NO_BREAK in text.plain:
        text.plain = text.plain.replace(NO_BREAK, " ")
    return text


def rows(grid: Grid, page: Page, width: int) -> Iterator[Text]:
    """The grid's lines, its columns narrowed until they fit."""
    sizes = _sizes(grid, page)
    longest = [max(column) for column in zip(*sizes, strict=True)]
    tight = sum(longest) + LEAST_GAP * (len(longest) - 1) <= width < sum(longest) + GAP * (len(longest) - 1)
    gap = LEAST_GAP if tight and not _meters(grid) else GAP
    widths = longest if gap == LEAST_GAP else _fit(sizes, width, _meters(grid))
    torn = sum(any(map(gt, row, widths)) for row in sizes)
    if grid.flows and torn > MOST * len(sizes):
        yield from _stacked(grid, sizes, page, width) if grid.head else _flowing(grid, page, width)
        return
    if grid.head:
        yield from _row(grid.head, widths, grid.right, page, "dim", gap)
    for row in grid.rows:
        if len(row) == 1 < len(widths):
            yield from _row(row, [width], frozenset(), page)
        else:
            yield from _row(row, widths, grid.right, page, gap=gap)


def _flowing(grid: Grid, page: Page, width: int) -> Iterator[Text]:
    """Each row as a paragraph of its cells."""
    gap = NO_BREAK + " " * (GAP - 1)
    for row in grid.rows:
        text = Text(end="")
        for cell in row:
            part = Text(end="") if isinstance(cell, Meter) else page.text(cell)
            text.append_text(Text(gap, end="").append_text(part) if text.plain and part.plain else part)
        yield from wrapped(text, width, 0 if len(row) == 1 else 2 * GAP)


def _stacked(grid: Grid, sizes: list[list[int]], page: Page, width: int) -> Iterator[Text]:
    """Each row on several lines with some of its columns each, those lines aligned among each other.

    How many columns have room beside each other is decided by most rows: a few long cells are torn.
    """
    usual = [sorted(column)[int(USUAL * (len(column) - 1))] for column in zip(*sizes, strict=True)]
    lines: list[list[int]] = []
    room = 0
    for index, size in enumerate(usual):
        if not lines or size + GAP > room:
            room = width - (2 * GAP if lines else 0) + GAP
            lines.append([])
        lines[-1].append(index)
        room -= size + GAP
    widths = [
        _fit([[row[index] for index in line] for row in sizes], width - (2 * GAP if number else 0), set())
        for number, line in enumerate(lines)
    ]
    for row in ((grid.head, "dim"), *((cells, "") for cells in grid.rows)):
        cells, style = row
        if len(cells) == 1:
            yield from _row(cells, [width], frozenset(), page)
            continue
        for number, (line, sized) in enumerate(zip(lines, widths, strict=True)):
            for text in _row(tuple(cells[index] for index in line), sized, frozenset(), page, style):
                if text.plain.strip():
                    yield indented(text, 2 * GAP) if number else text


def _meters(grid: Grid) -> set[int]:
    return {index for row in grid.rows for index, cell in enumerate(row) if isinstance(cell, Meter)}


def _sizes(grid: Grid, page: Page) -> list[list[int]]:
    """The cells that each cell of each row would like, rows of a single cell left out."""
    table = [*((grid.head,) if grid.head else ()), *grid.rows]
    columns = max(len(row) for row in table)
    return [
        [METER if isinstance(cell, Meter) else cell_len(page.text(cell).plain) for cell in row]
        for row in table
        if len(row) == columns
    ]


def _fit(sizes: list[list[int]], width: int, meters: set[int]) -> list[int]:
    """Widths that fit: bars are narrowed first, then whichever column needs the fewest more lines for it."""
    columns = [Counter(column) for column in zip(*sizes, strict=True)]
    widths = [max(column) for column in columns]
    room = width - GAP * (len(widths) - 1)

    def lines(index: int, width: int) -> int:
        return sum(number * math.ceil(size / width) for size, number in columns[index].items())

    def price(index: int) -> tuple[int, int]:
        old = widths[index]
        return lines(index, old - 1) - lines(index, old), -old

    least = LEAST_COLUMN if room >= LEAST_COLUMN * len(widths) else LEAST_COLUMN // 2
    while sum(widths) > room:
        narrow = [index for index in meters if widths[index] > LEAST_METER]
        narrow = narrow or [i for i, size in enumerate(widths) if size > least and i not in meters]
        if not narrow:
            break
        widths[min(narrow, key=price)] -= 1
    return widths


def _row(
    row: tuple[Cell, ...],
    widths: list[int],
    right: frozenset[int],
    page: Page,
    style: str = "",
    gap: int = GAP,
) -> Iterator[Text]:
    cells = [
        [page.bar(cell.fraction, width)]
        if isinstance(cell, Meter)
        else wrapped(page.text(cell, style), width)
        for cell, width in zip(row, widths, strict=False)
    ]
    for number in range(max(len(cell) for cell in cells)):
        text = Text(end="")
        for index, (cell, width) in enumerate(zip(cells, widths, strict=False)):
            part = cell[number] if number < len(cell) else Text()
            padding = width - cell_len(part.plain)
            text.append(" " * (padding if index in right else 0))
            text.append_text(part)
            text.append(" " * ((0 if index in right else padding) + gap))
        yield text
