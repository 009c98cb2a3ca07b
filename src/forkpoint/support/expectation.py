"""What a test expects of its comparisons, and what came out of those that it made.

A test says once what its runs may differ by (`@pytest.mark.forkpoint(allow=…)`); `Result.check` asks here.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

USUAL = frozenset({"rounding"})
"""What runs may differ by if nobody says anything else."""


@dataclass
class Expectation:
    """What the comparisons of one test may differ by, and how each came out.

    Attributes:
        allow: kinds of verdicts, or mechanisms.
        kinds: the kind of the verdict of each comparison that was checked, in order.
    """

    allow: frozenset[str] = USUAL
    kinds: list[str] = field(default_factory=list[str])


_CURRENT: ContextVar[Expectation | None] = ContextVar("expectation", default=None)


def names(allow: str | Collection[str]) -> frozenset[str]:
    """What is allowed, given as one name or several.

    >>> sorted(names(("rounding", "int8_outliers"))), sorted(names("rounding"))
    (['int8_outliers', 'rounding'], ['rounding'])
    """
    return frozenset({allow} if isinstance(allow, str) else allow)


def expected(allow: str | Collection[str] | None, kind: str) -> frozenset[str]:
    """What a comparison may differ by: what its caller says, else its test, else rounding alone.

    Args:
        allow: what the caller says, if anything.
        kind: the kind of the comparison's verdict, which the test is told.
    """
    current = _CURRENT.get()
    if current is not None:
        current.kinds.append(kind)
    if allow is not None:
        return names(allow)
    return USUAL if current is None else current.allow


@contextmanager
def expecting(expectation: Expectation) -> Generator[Expectation]:
    """Comparisons that are checked within are of one test.

    >>> with expecting(Expectation(frozenset({"int8_outliers"}))) as test:
    ...     sorted(expected(None, "semantic")), sorted(expected("rounding", "identical")), test.kinds
    (['int8_outliers'], ['rounding'], ['semantic', 'identical'])
    >>> sorted(expected(None, "rounding"))
    ['rounding']
    """
    token = _CURRENT.set(expectation)
    try:
        yield expectation
    finally:
        _CURRENT.reset(token)
