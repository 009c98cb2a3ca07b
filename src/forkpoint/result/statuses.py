"""Exit statuses of commands: 0 where nothing but rounding was seen, 1 where more was, 3 where it can't be told."""

from __future__ import annotations

from collections.abc import Iterable

from forkpoint.result.records import VerdictKind

EXIT_STATUS = {
    VerdictKind.IDENTICAL: 0,
    VerdictKind.ROUNDING: 0,
    VerdictKind.SEMANTIC: 1,
    VerdictKind.NONDETERMINISM: 1,
    VerdictKind.INPUTS: 1,
    VerdictKind.UNDETERMINED: 3,
}
SEVERITY = {0: 0, 3: 1, 1: 2}
"""By exit status."""


def worst_status(kinds: Iterable[VerdictKind]) -> int:
    """The exit status of several verdicts: 1 before 3 before 0.

    >>> worst_status([VerdictKind.UNDETERMINED, VerdictKind.SEMANTIC]), worst_status([])
    (1, 0)
    """
    return max((EXIT_STATUS[kind] for kind in kinds), key=SEVERITY.__getitem__, default=0)
