"""Text from models, tokens and source files, made safe to print.

Anything may stand in a token: a newline, an escape sequence, a character that turns the direction
of writing. Shown as they are they would break the layout or lie about the content.
"""

from __future__ import annotations

import unicodedata

from forkpoint.report.document import NO_BREAK

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    r"""The text with every character that can't be seen written as an escape.

    >>> printable("a\x1b[31m\u202eb")
    'a\\x1b[31m\\u202eb'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == NO_BREAK else _escape(c) for c in text)


def quoted(text: str, limit: int = 40) -> str:
    r"""A token between double quotes, so that its spaces can be seen; cut after `limit` characters.

    >>> print(quoted(" lovely"), quoted("\n"), quoted('"'), quoted("\u0301"))
    " lovely" "\n" "\"" "\u0301"
    """
    cut = text[:limit]
    shown = "".join(_escape(c) if not c.isprintable() or c in '"\\' else c for c in cut)
    if shown and unicodedata.combining(cut[0]):
        shown = _escape(cut[0]) + shown[1:]
    return f'"{shown}"' + ("…" if len(text) > limit else "")


def code_line(text: str) -> str:
    r"""A line of source without its indentation.

    >>> code_line("\t\tx = y[0]\t# why\n")
    'x = y[0]    # why'
    """
    return printable(text.strip().replace("\t", "    "))


def _escape(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character in '"\\':
        return "\\" + character
    point = ord(character)
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"
