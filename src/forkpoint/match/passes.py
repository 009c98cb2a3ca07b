"""Which pass of an op in one run is which in the other: at each coordinate the k-th pass meets the k-th."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_FIELD = 1 << 24
"""PassTable at one coordinate that can be told apart."""


@dataclass
class PassTable:
    """The passes of one op in one run as a table, with a row for each coordinate of each pass.

    A value read again in a later call (keys from a cache) counts apart from the passes in its token's own call.

    Args:
        numbers: [rows], shared number of the coordinate.
        again: [rows], whether the coordinate's own call is another one.
        events: [rows], the event that the row is of, ascending.
        calls: [rows], the call that the row is in.

    Attributes:
        keys: [rows], a number that no other row has; equal for the same pass in the other run.
        ranks: [rows], which pass of its call it is at its coordinate, from 0.
    """

    numbers: Ints
    again: NDArray[np.bool_]
    events: Ints
    calls: Ints

    @cached_property
    def keys(self) -> Ints:
        group = self.numbers * 2 + self.again
        return group * _FIELD + _ranks(group)

    @cached_property
    def ranks(self) -> Ints:
        return _ranks(self.numbers * (int(self.calls.max(initial=0)) + 1) + self.calls)

    @cached_property
    def _own(self) -> tuple[Ints, Ints]:
        """The rows in the coordinate's own call, and a key for each (its coordinate and rank); ascending by the keys."""
        home = np.flatnonzero(~self.again)
        keys = self.numbers[home] * _FIELD + self.ranks[home]
        order = np.argsort(keys, kind="stable")
        return home[order], keys[order]

    def same_as(self, other: PassTable) -> bool:
        """Whether both tables have the same coordinates in the same order, and the same of them in later calls."""
        return np.array_equal(self.numbers, other.numbers) and np.array_equal(self.again, other.again)

    def own(self, numbers: Ints, ranks: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Look up passes in the coordinates' own calls.

        Args:
            numbers: the coordinates.
            ranks: which pass of the call to look for at each.

        Returns:
            The row for each, and whether there is one. Where the own call has a single pass, it is that, whatever the rank.
        """
        rows, exact = self._find(numbers * _FIELD + ranks)
        first, any_pass = self._find(numbers * _FIELD)
        alone = any_pass & ~self._find(numbers * _FIELD + 1)[1]
        return np.where(exact, rows, first), exact | alone

    def _find(self, keys: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        rows, own = self._own
        if not len(rows):
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
        place = np.minimum(np.searchsorted(own, keys), len(rows) - 1)
        return rows[place], own[place] == keys


def _ranks(groups: Ints) -> Ints:
    """For each row how many rows before it are of its group.

    >>> _ranks(np.array([5, 7, 5, 5, 7])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(groups, kind="stable")
    ascending = groups[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]][: len(groups)])
    lengths = np.diff(np.r_[starts, len(groups)])
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, lengths)
    return ranks


def meet(a: PassTable, b: PassTable) -> tuple[list[tuple[Ints, Ints]], tuple[Ints, Ints]]:
    """The rows of A and B that meet, in three parts, and for each run the rows that meet none.

    A value that one run reads again later meets the one of its token's own call if the other run did not read it again:
    the k-th pass of the later call meets the k-th there, since one line may be passed for keys and then for values.
    """
    if a.same_as(b):
        every, none = np.arange(len(a.numbers)), np.zeros(0, dtype=np.int64)
        return [(every, every)], (none, none)
    _, rows_a, rows_b = np.intersect1d(a.keys, b.keys, assume_unique=True, return_indices=True)
    pairs, alone = [(rows_a, rows_b)], list[Ints]()
    for mine, theirs, rows, swap in ((a, b, rows_a, False), (b, a, rows_b, True)):
        rest = np.delete(np.arange(len(mine.keys)), rows)
        again = rest[mine.again[rest]]
        partner, has_partner = theirs.own(mine.numbers[again], mine.ranks[again])
        again, partner = again[has_partner], partner[has_partner]
        pairs.append((partner, again) if swap else (again, partner))
        alone.append(np.setdiff1d(rest, again))
    return pairs, (alone[0], alone[1])
