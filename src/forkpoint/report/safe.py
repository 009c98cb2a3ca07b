"""Text from models, tokens and source files, made safe to print.

Anything may stand in a token: a newline, an escape sequence, a character that turns the direction
of writing. Shown as they are they would break the layout or lie about the content.
"""

from __future__ import annotations

import unicodedata

from forkpoint.printable import escaped, printable


def quoted(text: str, limit: int = 40) -> str:
    r"""A token between double quotes, so that its spaces can be seen; cut after `limit` characters.

    >>> print(quoted(" lovely"), quoted("\n"), quoted('"'), quoted("\u0301"))
    " lovely" "\n" "\"" "\u0301"
    """
    cut = text[:limit]
    shown = "".join(escaped(c) if not c.isprintable() or c in '"\\' else c for c in cut)
    if shown and unicodedata.combining(cut[0]):
        shown = escaped(cut[0]) + shown[1:]
    return f'"{shown}"' + ("…" if len(text) > limit else "")


def code_line(text: str) -> str:
    r"""A line of source without its indentation.

    >>> code_line("\t\tx = y[0]\t# why\n")
    'x = y[0]    # why'
    """
    return printable(text.strip().replace("\t", "    "))
