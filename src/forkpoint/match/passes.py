"""Which pass of an op in one run is which in the other: at each coordinate the k-th pass meets the k-th."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_FIELD = 1 << 24
"""Passes at one coordinate that can be told apart."""


@dataclass
class Passes:
    """The passes of one op in one run, a row for each coordinate of each pass.

    A value read again in a later call (keys from a cache) counts apart from the passes in its token's own call.

    Args:
        numbers: [rows], shared number of the coordinate.
        again: [rows], whether the coordinate's own call is another one.
        events: [rows], the event that the row is of, ascending.

    Attributes:
        keys: [rows], a number that no other row has; equal for the same pass in the other run.
        first_numbers, first_rows: of each coordinate's first pass in its own call, by ascending number.
    """

    numbers: Ints
    again: NDArray[np.bool_]
    events: Ints

    def __post_init__(self) -> None:
        group = self.numbers * 2 + self.again
        order = np.argsort(group, kind="stable")
        ascending = group[order]
        starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]][: len(group)])
        lengths = np.diff(np.r_[starts, len(group)])
        nth = np.empty(len(group), dtype=np.int64)
        nth[order] = np.arange(len(group)) - np.repeat(starts, lengths)
        self.keys = group * _FIELD + nth
        home = np.flatnonzero(~self.again & (nth == 0))
        self.first_rows = home[np.argsort(self.numbers[home], kind="stable")]
        self.first_numbers = self.numbers[self.first_rows]

    def first(self, numbers: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """The row of the first pass at some coordinates in their own call, and whether there is one."""
        if not len(self.first_rows):
            return np.zeros(len(numbers), dtype=np.int64), np.zeros(len(numbers), dtype=bool)
        place = np.minimum(np.searchsorted(self.first_numbers, numbers), len(self.first_rows) - 1)
        return self.first_rows[place], self.first_numbers[place] == numbers


def meet(a: Passes, b: Passes) -> tuple[list[tuple[Ints, Ints]], tuple[Ints, Ints]]:
    """The rows of A and B that meet, in three parts, and for each run the rows that meet none.

    A value that one run reads again later meets the one of its token's own call if the other run did not read it again.
    """
    _, rows_a, rows_b = np.intersect1d(a.keys, b.keys, assume_unique=True, return_indices=True)
    met, alone = [(rows_a, rows_b)], list[Ints]()
    for mine, theirs, rows, swap in ((a, b, rows_a, False), (b, a, rows_b, True)):
        rest = np.delete(np.arange(len(mine.keys)), rows)
        again = rest[mine.again[rest]]
        partner, found = theirs.first(mine.numbers[again])
        again, partner = again[found], partner[found]
        met.append((partner, again) if swap else (again, partner))
        alone.append(np.setdiff1d(rest, again))
    return met, (alone[0], alone[1])
