"""How something compared, as a word with its role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkpoint.report.document import Role, Span
from forkpoint.result import VerdictKind

if TYPE_CHECKING:
    from forkpoint.report.words import Words

KIND_ROLES = {
    VerdictKind.IDENTICAL: Role.GOOD,
    VerdictKind.ROUNDING: Role.GOOD,
    VerdictKind.SEMANTIC: Role.BAD,
    VerdictKind.NONDETERMINISM: Role.BAD,
    VerdictKind.INPUTS: Role.BAD,
    VerdictKind.UNDETERMINED: Role.CAUTION,
}
_ROLES = {
    "equal": Role.GOOD,
    "differs": Role.BAD,
    "not compared": Role.CAUTION,
    "only in a": Role.CAUTION,
    "only in b": Role.CAUTION,
}


def marked(status: str, words: Words) -> Span:
    """The status in words, coloured by what it means.

    >>> from forkpoint.report.words import Words
    >>> marked("only in b", Words())
    Span(text='only in B', role=<Role.CAUTION: 'caution'>)
    """
    return Span(words.name("status", status), _ROLES.get(status, Role.PLAIN))
