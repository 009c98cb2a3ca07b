"""Where a line of text may end, in English, Chinese, paths and shapes.

Rich breaks at spaces only, which tears Chinese sentences and long module paths at any character.
"""

from __future__ import annotations

import unicodedata

from rich.cells import get_character_cell_size

_NOT_FIRST = frozenset("，。、；：？！）】」』》”’…—·,.;:!?)]}%")
_NOT_LAST = frozenset("（【「『《“‘([{")
_PATH = frozenset("./,_")


def breaks(text: str, width: int, rest: int | None = None) -> list[int]:
    """Offsets at which the text is cut into lines of at most `width` cells.

    A line ends after a space or between Chinese characters; in a word longer than a line after one
    of `. / , _`; where there is none, anywhere.

    Args:
        text: one paragraph.
        width: cells of the first line.
        rest: cells of the other lines; by default the same.

    >>> breaks("one two three", 8)
    [8]
    >>> breaks("model.layers.0.self_attn", 10)
    [6, 15]
    """
    rest = width if rest is None else rest
    cuts: list[int] = []
    start = used = 0
    space = path = 0
    room = max(width, 1)
    index = 0
    while index < len(text):
        cells = get_character_cell_size(text[index])
        if used + cells > room and text[index] != " " and index > start:
            cut = space if space > start else path if path > start else index
            cuts.append(cut)
            start = index = cut
            used, space, path, room = 0, 0, 0, max(rest, 1)
            continue
        used += cells
        index += 1
        if index < len(text):
            if _between(text[index - 1], text[index]):
                space = index
            elif text[index - 1] in _PATH and text[index] not in _NOT_FIRST:
                path = index
    return cuts


def _between(left: str, right: str) -> bool:
    if left == " ":
        return right != " "
    if left in _NOT_LAST or right in _NOT_FIRST:
        return False
    return right != " " and (_wide(left) or _wide(right))


def _wide(character: str) -> bool:
    return character > "\u1100" and unicodedata.east_asian_width(character) in "WF"
