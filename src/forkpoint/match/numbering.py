"""One numbering of token coordinates, and of sets of them, for both runs."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.match.pairs import Pairs
from forkpoint.runs.layout import DECODER, IMAGE, MAIN
from forkpoint.runs.pairing import Pairing

Ints = NDArray[np.int64]

WHOLE_NUMBER = 0
"""Shared number of "the whole call"; tokens and sets count from 1, -1 is what one run alone has."""


class Shared:
    """One numbering of coordinates for both runs.

    A later pass may meet sets of tokens that no earlier one made, so the tables can grow; numbers
    once given stay.
    """

    def __init__(self, a: CoordinateTable, b: CoordinateTable, pairing: Pairing) -> None:
        self.pairing = pairing
        self.names: list[Hashable] = [("whole",)]
        self._numbers: dict[Hashable, int] = {}
        self._table_a, self._table_b = a, b
        self._sizes = (-1, -1)
        self._frozen = False
        self._worked_out: dict[Hashable, Any] = {}
        self._refresh()

    def _refresh(self) -> None:
        a, b = self._table_a, self._table_b
        sizes = (len(a.kinds), len(b.kinds))
        if sizes == self._sizes or self._frozen:
            return
        self._sizes = sizes
        self._worked_out = {}
        self._last_places: tuple[bytes, list[tuple[int | None, int | None]]] = (b"", [])
        to_a = {sample: sample for sample, _ in self.pairing.pairs}
        to_b = {sample_b: sample_a for sample_a, sample_b in self.pairing.pairs}
        keys_a, keys_b = a.keys(to_a), b.keys(to_b)
        common = {k for k in keys_a if k is not None} & {k for k in keys_b if k is not None}
        for key in keys_a:
            if key in common and key not in self._numbers:
                self._numbers[key] = len(self.names)
                self.names.append(key)
        self._a, self._b = self._number(keys_a), self._number(keys_b)
        self._may_enter = (
            _may_enter(a, self._a, _streams(b, to_b), to_a),
            _may_enter(b, self._b, _streams(a, to_a), to_b),
        )
        self._homes = (_homes(a), _homes(b))
        self._whole_samples = _samples_of_sets(a, self._a)
        self._samples = np.asarray(
            [-1 if (s := self.coordinate(n)[0]) is None else s for n in range(len(self.names))]
        )
        self._rows = (_rows(a, to_a), _rows(b, to_b))
        self._stands = tuple(
            np.where(_are_tokens(table) & (numbers < 0), -1, rows)
            for table, numbers, rows in zip((a, b), (self._a, self._b), self._rows, strict=True)
        )
        self._is_token = np.asarray([*(name[0] in (MAIN, DECODER) for name in self.names), False])  # type: ignore[index]

    def _number(self, keys: list[Hashable | None]) -> Ints:
        # Two more entries, so that ids -1 (none) and -2 (whole) find themselves at the end.
        numbers = self._numbers
        return np.asarray(
            [*(numbers.get(k, -1) if k is not None else -1 for k in keys), WHOLE_NUMBER, -1], dtype=np.int64
        )

    @property
    def a(self) -> Ints:
        """For each id of run A its shared number; -1 for what one run alone has."""
        self._refresh()
        return self._a

    @property
    def b(self) -> Ints:
        """The same for run B."""
        self._refresh()
        return self._b

    def within(self, run: str) -> Shared:
        """A numbering to compare two passes of one run ("a" or "b") with each other, on the coordinates that both runs have."""
        self._refresh()
        same = copy.copy(self)
        Shared._use_one(same, run)
        return same

    def _use_one(self, run: str) -> None:
        side = 0 if run == "a" else 1
        self._table_a = self._table_b = (self._table_a, self._table_b)[side]
        self._a = self._b = (self._a, self._b)[side]
        self._rows = (self._rows[side],) * 2
        self._stands = (self._stands[side],) * 2
        self._may_enter = (self._may_enter[side],) * 2
        self._homes = (self._homes[side],) * 2
        self._worked_out = {}
        self._frozen = True

    @property
    def may_enter_a(self) -> NDArray[np.bool_]:
        """For each id of run A whether a value that both runs have may rightly depend on it.

        True for coordinates that both have, and for tokens of shared samples that the other run may have been given in a
        cache: earlier ones, and those of a stream that the other run has no token of. False for padding, batch mates and later
        tokens.
        """
        self._refresh()
        return self._may_enter[0]

    @property
    def may_enter_b(self) -> NDArray[np.bool_]:
        """The same for run B."""
        self._refresh()
        return self._may_enter[1]

    @property
    def home_a(self) -> Ints:
        """For each id of run A the call in which its token goes in."""
        self._refresh()
        return self._homes[0]

    @property
    def home_b(self) -> Ints:
        self._refresh()
        return self._homes[1]

    @property
    def worked_out(self) -> dict[Hashable, Any]:
        """A cache of what depends on labels and shapes alone, emptied when the coordinate tables grow."""
        self._refresh()
        return self._worked_out

    @property
    def samples(self) -> Ints:
        """For each shared number, the sample of run A that it belongs to, or -1."""
        self._refresh()
        return self._samples

    @property
    def is_token(self) -> NDArray[np.bool_]:
        """For each shared number whether it is one token; False for -1, at the end."""
        self._refresh()
        return self._is_token

    @property
    def sample_rows_a(self) -> Ints:
        """For each id of run A, padding included, the sample in whose row of the input it is; -1 for none."""
        self._refresh()
        return self._rows[0]

    @property
    def sample_rows_b(self) -> Ints:
        self._refresh()
        return self._rows[1]

    @property
    def stands_for_a(self) -> Ints:
        """For each id of run A, the sample for which a value of this id may stand, where each row has one such value.

        That is `sample_rows_a`, whichever column or padding the value was taken from; but -1 for a token that only run A has,
        whose value the other run can't have.
        """
        self._refresh()
        return self._stands[0]

    @property
    def stands_for_b(self) -> Ints:
        self._refresh()
        return self._stands[1]

    def place(self, pairs: Pairs, index: int) -> tuple[int | None, int | None]:
        """(sample of run A, position) of one pair of elements."""
        number = pairs.coordinate_of(index)
        return (number, None) if pairs.by_sample else self.coordinate(number)

    def places(self, numbers: Ints, *, by_sample: bool = False) -> list[tuple[int | None, int | None]]:
        """(sample of run A, position) of many shared numbers; with `by_sample` the numbers are samples themselves."""
        if by_sample:
            return [(number, None) for number in numbers.tolist()]
        key = numbers.tobytes()
        if self._last_places[0] != key:
            self._last_places = key, [self.coordinate(number) for number in numbers.tolist()]
        return self._last_places[1]

    def coordinate(self, number: int) -> tuple[int | None, int | None]:
        """(sample of run A, position) of a shared number; None where it has none."""
        key = self.names[number]
        if isinstance(key, tuple) and key[0] in (MAIN, DECODER):
            return key[1], key[2]
        if isinstance(key, tuple) and key[0] == IMAGE:
            return key[1], None
        return self._whole_samples.get(number), None


def _streams(table: CoordinateTable, names: Mapping[int, int]) -> set[tuple[str, int]]:
    """Every (stream, sample) of which a run has a token, under the shared names of its samples."""
    return {(t[0], names[t[1]]) for t in table.tokens if t is not None and t[1] in names}


def _may_enter(
    table: CoordinateTable, numbers: Ints, others: set[tuple[str, int]], names: Mapping[int, int]
) -> NDArray[np.bool_]:
    """See `Shared.may_enter_a`.

    Args:
        table: of the run.
        numbers: of its ids.
        others: what the other run has tokens of.
        names: the shared name of each sample that both have.
    """
    enters = numbers >= 0
    tokens = {
        item: token for item, token in enumerate(table.tokens) if token is not None and token[1] in names
    }
    last: dict[tuple[str, int], int] = {}
    for item, (stream, sample, position) in tokens.items():
        if enters[item]:
            last[stream, sample] = max(position, last.get((stream, sample), position))
    shared = {sample for _, sample in last}
    for item, (stream, sample, position) in tokens.items():
        if sample in shared:
            enters[item] |= position < last.get((stream, sample), -1) or (stream, names[sample]) not in others
    return enters


def _homes(table: CoordinateTable) -> Ints:
    """For each id, the call in which its token goes in (for a set, the last of them)."""
    homes = np.zeros(len(table.kinds) + 2, dtype=np.int64)
    for call in range(len(table.layout.calls) - 1, -1, -1):
        for stream in (MAIN, DECODER):
            slots = table.slots(call, stream)
            if slots is not None:
                homes[slots.reshape(-1)] = call
    for item, members in enumerate(table.members):
        if members:
            homes[item] = max(homes[m] for m in members)
    return homes


def _rows(table: CoordinateTable, names: Mapping[int, int]) -> Ints:
    """For each id, the sample in whose row of the input it is, by the name that both runs share; -1 for none."""
    rows = np.full(len(table.kinds) + 2, -1, dtype=np.int64)
    for call in range(len(table.layout.calls)):
        for stream in (MAIN, DECODER):
            slots = table.slots(call, stream)
            for row in slots if slots is not None and slots.ndim == 2 else ():
                samples = {t[1] for item in row.tolist() if (t := table.tokens[item]) is not None}
                if len(samples) == 1:
                    rows[row] = names.get(samples.pop(), -1)
    for item, members in enumerate(table.members):
        sample = table.sample_of(item) if members else None
        if sample is not None:
            rows[item] = names.get(sample, -1)
    return rows


def _are_tokens(table: CoordinateTable) -> NDArray[np.bool_]:
    """For each id whether it is one token."""
    return np.asarray([*(token is not None for token in table.tokens), False, False])


def _samples_of_sets(table: CoordinateTable, numbers: Ints) -> dict[int, int | None]:
    return {
        int(numbers[item]): table.sample_of(item)
        for item, members in enumerate(table.members)
        if members and numbers[item] >= 0
    }
