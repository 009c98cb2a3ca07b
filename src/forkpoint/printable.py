"""Text of others, made safe to print: it may not move the cursor, hide what stands elsewhere, or be a link."""

from __future__ import annotations

NO_BREAK = "\u00a0"
"""A space at which no line may end, as within `[1, 9, 15, 64]`; a renderer shows it as a space."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    r"""The text with every character that can't be seen written as an escape.

    >>> printable("a\x1b[31m\u202eb")
    'a\\x1b[31m\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == NO_BREAK else escaped(c) for c in text)


def one_line(text: str, limit: int) -> str:
    r"""Text as one line that can be printed, cut after `limit` characters.

    >>> one_line("no\n  such '  '\x07", 100), one_line("a long story", 6)
    ("no such '  '\\x07", 'a long…')
    """
    lines = (line.strip() for line in text.splitlines())
    line = printable(" ".join(filter(None, lines)))  # spaces within a line are what was given
    return line if len(line) <= limit else line[:limit] + "…"


def escaped(character: str) -> str:
    """A character as Python escapes it in a string."""
    if character in _SHORT:
        return _SHORT[character]
    if character in '"\\':
        return "\\" + character
    point = ord(character)
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
