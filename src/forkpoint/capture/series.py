"""The passes of one op as columns: long traces are compared by them, since an object for each pass would take too long."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(eq=False, slots=True)
class Series:
    """The passes of one op in one run that have digests by coordinate, a row for each coordinate of each pass.

    Attributes:
        kind: `rows` or `pair`, as `Cells` has it.
        dtypes: of the values as they passed by.
        whole: whether passes have no token coordinate at all; both, where some have and others don't.
        passes: how many there are.
        ids: [rows], the coordinate.
        events, calls: [rows], the event and the call of the pass.
        digests: [rows]; [rows, 2] for `pair`.
        keys: [rows, 4] for `pair`, else [rows, 0].
        widths: [rows], elements.
    """

    kind: str
    dtypes: frozenset[str]
    whole: frozenset[bool]
    passes: int
    ids: NDArray[np.int32]
    events: Ints
    calls: Ints
    digests: Ints
    keys: Ints
    widths: Ints


def spans(starts: Ints, lengths: Ints) -> Ints:
    """The indices of several stretches, one stretch after the other.

    >>> spans(np.array([10, 0, 5]), np.array([2, 0, 3])).tolist()
    [10, 11, 5, 6, 7]
    """
    total = int(lengths.sum())
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(total)
