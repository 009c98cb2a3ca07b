"""The join: which op of run A is which op of run B, on which coordinates, and where they differ."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.labels import Label
from forkpoint.layout import DECODER, MAIN, Pairing
from forkpoint.pairs import Pairs
from forkpoint.passes import Passes, meet
from forkpoint.progress import SILENT, Progress
from forkpoint.trace import WHOLE, Cells, Event, Op, Trace

Ints = NDArray[np.int64]

_WHOLE = 0
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
        self._refresh()

    def _refresh(self) -> None:
        a, b = self._table_a, self._table_b
        sizes = (len(a.kinds), len(b.kinds))
        if sizes == self._sizes or self._frozen:
            return
        self._sizes = sizes
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
        self._homes = (_homes(a), _homes(b))
        self._whole_samples = _samples_of_sets(a, self._a)
        self._samples = np.asarray(
            [-1 if (s := self.coordinate(n)[0]) is None else s for n in range(len(self.names))]
        )
        self._rows = (_rows(a, to_a), _rows(b, to_b))
        self._is_token = np.asarray([*(name[0] in (MAIN, DECODER) for name in self.names), False])  # type: ignore[index]

    def _number(self, keys: list[Hashable | None]) -> Ints:
        # Two more entries, so that ids -1 (none) and -2 (whole) find themselves at the end.
        known = self._numbers
        return np.asarray(
            [*(known.get(k, -1) if k is not None else -1 for k in keys), _WHOLE, -1], dtype=np.int64
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
        """The same numbering for two passes of one run, on the coordinates that both runs have."""
        self._refresh()
        same = copy.copy(self)
        Shared._use_one(same, run)
        return same

    def _use_one(self, run: str) -> None:
        side = 0 if run == "a" else 1
        self._table_a = self._table_b = (self._table_a, self._table_b)[side]
        self._a = self._b = (self._a, self._b)[side]
        self._rows = (self._rows[side],) * 2
        self._homes = (self._homes[side],) * 2
        self._frozen = True

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
        """For each id of run A, the sample in whose row it is, padding too; -1 where it has none."""
        self._refresh()
        return self._rows[0]

    @property
    def sample_rows_b(self) -> Ints:
        self._refresh()
        return self._rows[1]

    def place(self, pairs: Pairs, index: int) -> tuple[int | None, int | None]:
        """(sample of run A, position) of one pair of elements."""
        number = pairs.coordinate_of(index)
        return (number, None) if pairs.by_sample else self.coordinate(number)

    def places(self, numbers: Ints, *, by_sample: bool = False) -> list[tuple[int | None, int | None]]:
        """The same for many coordinates."""
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
        return self._whole_samples.get(number), None


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
    """The sample in whose row each id is (under its shared name); padding belongs to its row's sample."""
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


def _samples_of_sets(table: CoordinateTable, numbers: Ints) -> dict[int, int | None]:
    return {
        int(numbers[item]): table.sample_of(item)
        for item, members in enumerate(table.members)
        if members and numbers[item] >= 0
    }


@dataclass
class Difference:
    """The earliest pass of an op at which the runs differ."""

    event_a: int
    event_b: int
    number: int
    """Shared number of the coordinate."""
    sample: int | None = None
    position: int | None = None


@dataclass
class Joined:
    """One op of either run and how its values compare.

    Attributes:
        status: `equal`, `differs`, `view`, `not compared`, `only in a`, `only in b`.
        compared, differing: coordinates.
        left_out: coordinates (or passes) that could not be compared, with `reason`.
    """

    op: Op
    status: str
    first_a: Event | None
    first_b: Event | None
    order: int
    """Place in the order of execution: index of its first event in A (or B where A has none)."""
    passes: int
    compared: int = 0
    differing: int = 0
    left_out: int = 0
    reason: str = ""
    difference: Difference | None = None

    @property
    def floating(self) -> bool:
        event = self.first_a or self.first_b
        return event is not None and event.floating


@dataclass
class _Count:
    compared: int = 0
    differing: int = 0
    left_out: int = 0
    reasons: list[str] = field(default_factory=list[str])
    earliest: Difference | None = None

    def skip(self, count: int, reason: str) -> None:
        if count:
            self.left_out += count
            if reason not in self.reasons:
                self.reasons.append(reason)

    def differ(self, difference: Difference) -> None:
        if self.earliest is None or difference.event_a < self.earliest.event_a:
            self.earliest = difference


class Join:
    """The joined traces of two runs, op by op: only one op's digests have to be in memory at a time.

    >>> # Join(trace_a, trace_b, shared).rows is what a report lists
    """

    def __init__(self, a: Trace, b: Trace, shared: Shared, progress: Progress = SILENT) -> None:
        self.a, self.b, self.shared = a, b, shared
        self.same_layout = _same_layout(a.table, b.table, shared.pairing)
        self._columns: dict[Any, Any] = {}
        self._aligned: dict[tuple[int, int], tuple[Ints, Ints, Ints]] = {}
        by_op_a, by_op_b = _by_key(a), _by_key(b)
        self.rows: list[Joined] = []
        progress.count(self.rows.__len__, len(by_op_a.keys() | by_op_b.keys()))
        for key, events in by_op_a.items():
            self.rows.append(self._join(events, by_op_b.get(key)))
        for key, events in by_op_b.items():
            if key not in by_op_a:
                self.rows.append(self._alone(events, "only in b", b))

    def _alone(self, events: list[int], status: str, trace: Trace) -> Joined:
        event = trace.events[events[0]]
        first_a, first_b = (event, None) if status == "only in a" else (None, event)
        return Joined(trace.ops[event.op], status, first_a, first_b, events[0], len(events))

    def _join(self, events_a: list[int], events_b: list[int] | None) -> Joined:
        if events_b is None:
            return self._alone(events_a, "only in a", self.a)
        first_a, first_b = self.a.events[events_a[0]], self.b.events[events_b[0]]
        row = Joined(self.a.ops[first_a.op], "equal", first_a, first_b, events_a[0], len(events_a))
        valued_a = self._valued(self.a, events_a)
        valued_b = self._valued(self.b, events_b)
        if not valued_a or not valued_b:
            statuses = {e.status for e in (first_a, first_b)}
            skipped = next((e.reason for e in (first_a, first_b) if e.status == "skipped"), "")
            row.status = "view" if "view" in statuses and not skipped else "not compared"
            row.reason = skipped
            if not skipped and row.status == "not compared":
                row.status, row.reason = "view", ""
            return row
        count = _Count()
        self._compare(valued_a, valued_b, count)
        row.compared, row.differing, row.left_out = count.compared, count.differing, count.left_out
        row.reason = "; ".join(count.reasons)
        row.difference = count.earliest
        if count.differing:
            row.status = "differs"
        elif not count.compared:
            row.status = "not compared"
            row.reason = row.reason or "the runs share no coordinate of it"
        return row

    @staticmethod
    def _valued(trace: Trace, events: list[int]) -> list[tuple[int, Event, Event]]:
        found: list[tuple[int, Event, Event]] = []
        for index in events:
            event = trace.events[index]
            held = trace.held(index)
            if held.status == "digest" and held.digests is not None:
                found.append((index, event, held))
        return [entry for entry in found if 0 not in entry[1].shape] or found  # idle experts make no value

    # ------------------------------------------------------------------ values

    def _compare(
        self, a: list[tuple[int, Event, Event]], b: list[tuple[int, Event, Event]], count: _Count
    ) -> None:
        lost = next((h.reason for _, _, h in (*a, *b) if h.reason and h.status == "digest"), "")
        if lost and not self.same_layout:
            count.skip(len(a), lost)
            return
        if {e.dtype for _, e, _ in a} != {e.dtype for _, e, _ in b}:
            self._other_dtypes(a, b, count)
            return
        kinds = {h.cells.kind for _, _, h in (*a, *b) if h.cells is not None}
        if kinds in ({"rows", "open"}, {"open"}):
            a, b = self._compare_loop(a, b, count)
            if not a or not b:
                count.skip(len(a) + len(b), "a pass that the other run does not make")
                return
        whole_a, whole_b = ({_is_whole(h) for _, _, h in side} for side in (a, b))
        if kinds == {"rows"} and whole_a != whole_b:
            self._compare_open(a, b, count)
        elif kinds == {"rows"} and len(a) == len(b) == 1 and a[0][1].call == b[0][1].call:
            self._compare_rows(a[0], b[0], count)
        elif kinds in ({"rows"}, {"pair"}):
            self._compare_passes(a, b, count)
        elif "pair" not in kinds:
            self._compare_open(a, b, count)
        else:
            count.skip(len(a), "attention weights of another form in the other run")

    def _other_dtypes(
        self, a: list[tuple[int, Event, Event]], b: list[tuple[int, Event, Event]], count: _Count
    ) -> None:
        """Values of two dtypes have no common digest: they count as different until looked at."""
        for (index_a, _, held_a), (index_b, _, held_b) in zip(a, b, strict=False):
            assert held_a.cells is not None and held_b.cells is not None
            _, _, numbers = self._align(held_a.cells, held_b.cells)
            if not len(numbers):
                count.skip(1, "the runs share no coordinate of it")
                continue
            count.compared += len(numbers)
            count.differing += len(numbers)
            count.differ(self._difference(index_a, index_b, int(numbers[0])))

    def _align(self, a: Cells, b: Cells) -> tuple[Ints, Ints, Ints]:
        """Indices of the cells of A and B that stand for the same coordinate, and its number."""
        found = self._aligned.get((id(a), id(b)))
        if found is None:
            numbers_a, numbers_b = self.shared.a[a.ids], self.shared.b[b.ids]
            common, index_a, index_b = np.intersect1d(numbers_a, numbers_b, return_indices=True)
            keep = common >= 0
            order = np.argsort(index_a[keep], kind="stable")
            found = (index_a[keep][order], index_b[keep][order], common[keep][order])
            self._aligned[id(a), id(b)] = found
        return found

    def _difference(self, event_a: int, event_b: int, number: int) -> Difference:
        return Difference(event_a, event_b, number, *self.shared.coordinate(number))

    def _compare_rows(self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], count: _Count) -> None:
        held_a, held_b = a[2], b[2]
        assert held_a.cells is not None and held_b.cells is not None
        assert held_a.digests is not None and held_b.digests is not None
        index_a, index_b, numbers = self._align(held_a.cells, held_b.cells)
        if not len(numbers):
            self._compare_samples(a, b, count)
            return
        one_width = isinstance(held_a.width, int) and isinstance(held_b.width, int)
        if not one_width or held_a.width != held_b.width:
            widths_a, widths_b = _widths(held_a)[index_a], _widths(held_b)[index_b]
            fits = widths_a == widths_b
            if not fits.all():
                at = int(np.argmin(fits))
                sizes = f"{widths_a[at]} elements a coordinate in A, {widths_b[at]} in B"
                count.skip(int(np.count_nonzero(~fits)), sizes)
                index_a, index_b, numbers = index_a[fits], index_b[fits], numbers[fits]
        wrong = held_a.digests[index_a] != held_b.digests[index_b]
        count.compared += len(numbers)
        found = int(np.count_nonzero(wrong))
        if found:
            count.differing += found
            count.differ(self._difference(a[0], b[0], int(numbers[np.argmax(wrong)])))

    def _compare_samples(
        self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], count: _Count
    ) -> None:
        """Values that hold one vector a sample are that sample's, whichever column it was taken from."""
        held_a, held_b = a[2], b[2]
        if max(len(held_a.shape), len(held_b.shape)) > 2:
            return  # a state, which goes on past the sample's tokens, not a vector taken for the sample
        assert held_a.cells is not None and held_b.cells is not None
        assert held_a.digests is not None and held_b.digests is not None
        rows_a = self.shared.sample_rows_a[held_a.cells.ids]
        rows_b = self.shared.sample_rows_b[held_b.cells.ids]
        once = all(
            len(np.unique(rows[rows >= 0])) == np.count_nonzero(rows >= 0) for rows in (rows_a, rows_b)
        )
        samples, index_a, index_b = np.intersect1d(rows_a, rows_b, return_indices=True)
        keep = samples >= 0
        if not once or not keep.any():
            return
        keep &= _widths(held_a)[index_a] == _widths(held_b)[index_b]
        samples, index_a, index_b = samples[keep], index_a[keep], index_b[keep]
        wrong = held_a.digests[index_a] != held_b.digests[index_b]
        count.compared += len(samples)
        if wrong.any():
            count.differing += int(np.count_nonzero(wrong))
            count.differ(Difference(a[0], b[0], -1, int(samples[np.argmax(wrong)]), None))

    def _compare_passes(
        self, a: list[tuple[int, Event, Event]], b: list[tuple[int, Event, Event]], count: _Count
    ) -> None:
        """Several passes of an op: the k-th at a coordinate meets the k-th.

        A value read again later (keys from a cache) meets the one of its token's own call if the other run
        did not read it again.
        """
        table_a, table_b = (
            self._passes(a, self.shared.a, self.shared.home_a),
            self._passes(b, self.shared.b, self.shared.home_b),
        )
        met, alone = meet(table_a, table_b)
        count.skip(sum(map(len, alone)), "a pass that the other run does not make")
        for left, right in met:
            self._compare_records(table_a, table_b, left, right, count)

    def _compare_loop(
        self, a: list[tuple[int, Event, Event]], b: list[tuple[int, Event, Event]], count: _Count
    ) -> tuple[list[tuple[int, Event, Event]], list[tuple[int, Event, Event]]]:
        """Compare the passes of a loop over columns, each of which works on one; returns what else there is.

        A pass belongs to its column, whichever size a dimension of the state happens to have.
        """
        (work_a, rest_a), (work_b, rest_b) = _at_columns(self.a, a), _at_columns(self.b, b)
        if not work_a or not work_b or not any(event.nth for _, event, _ in (*work_a, *work_b)):
            return a, b
        self._compare_passes(work_a, work_b, count)
        return rest_a, rest_b

    def _passes(self, events: list[tuple[int, Event, Event]], numbers: Ints, homes: Ints) -> _Records:
        parts: list[tuple[Ints, Ints, Ints, Any, Any, Ints]] = []
        for index, event, held in events:
            digests = held.digests if held.flat is None else held.flat
            assert held.cells is not None and digests is not None
            ids = held.cells.ids
            number = numbers[ids]
            keep = np.flatnonzero(number >= 0)
            again = np.where(number[keep] == _WHOLE, event.call > 0, homes[ids[keep]] != event.call)
            parts.append(
                (
                    number[keep],
                    again,
                    np.full(len(keep), index),
                    digests[keep],
                    held.cells.keys[keep]
                    if held.cells.keys is not None
                    else np.zeros((len(keep), 0), dtype=np.int64),
                    _widths(held)[keep],
                )
            )
        return _Records(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _compare_records(self, a: _Records, b: _Records, left: Ints, right: Ints, count: _Count) -> None:
        if not len(left):
            return
        same_width = a.widths[left] == b.widths[right]
        if a.digests.ndim == 2:  # attention weights: keys up to the query, keys after it
            keys_a, keys_b = a.keys_seen[left], b.keys_seen[right]
            past = (keys_a[:, :2] == keys_b[:, :2]).all(axis=1) & same_width
            future = (keys_a[:, 2:] == keys_b[:, 2:]).all(axis=1) & same_width
            wrong = past & (a.digests[left, 0] != b.digests[right, 0])
            wrong |= future & (a.digests[left, 1] != b.digests[right, 1])
            usable = past | future
            reason = "the query sees other keys in the other run"
        else:
            usable = same_width
            wrong = usable & (a.digests[left] != b.digests[right])
            reason = "another number of elements a coordinate in the other run"
        count.skip(int(np.count_nonzero(~usable)), reason)
        count.compared += int(np.count_nonzero(usable))
        if not wrong.any():
            return
        count.differing += int(np.count_nonzero(wrong))
        places = np.flatnonzero(wrong)
        best = places[np.lexsort((left[places], a.events[left[places]]))[0]]
        count.differ(
            self._difference(
                int(a.events[left[best]]), int(b.events[right[best]]), int(a.numbers[left[best]])
            )
        )

    # ------------------------------------------------------------------ open dimensions

    def _compare_open(
        self, a: list[tuple[int, Event, Event]], b: list[tuple[int, Event, Event]], count: _Count
    ) -> None:
        """Values that hold no token, but may have dimensions as long as the tokens (rotary tables)."""
        as_many = len(self.a.lengths) == len(self.b.lengths)
        for entry_a in a:
            partners = [
                e for e in b if e[1].nth == entry_a[1].nth and (e[1].call == entry_a[1].call or not as_many)
            ]
            if not partners:
                count.skip(1, "a pass that the other run does not make")
            for entry_b in partners:
                self._compare_open_pair(entry_a, entry_b, count)

    def _compare_open_pair(
        self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], count: _Count
    ) -> None:
        held_a, held_b = a[2], b[2]
        cells_a, cells_b = held_a.cells, held_b.cells
        assert cells_a is not None and cells_b is not None
        one_has_tokens = (
            (cells_a.ids[0] == WHOLE) != (cells_b.ids[0] == WHOLE)
            if len(cells_a.ids) and len(cells_b.ids)
            else False
        )
        if not one_has_tokens and (held_a.shape == held_b.shape or _same_slices(held_a, held_b)):
            self._compare_flat_or_aligned(a, b, count)
        elif not (_has_grid(held_a) and _has_grid(held_b)):
            count.skip(
                1, f"shape {list(held_a.shape)} in A, {list(held_b.shape)} in B, and no token dimension known"
            )
        elif cells_a.row_dims or cells_b.row_dims:
            self._compare_masks(a, b, count)
        else:
            self._compare_aligned(a, b, count)

    def _compare_flat_or_aligned(
        self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], count: _Count
    ) -> None:
        """Compare whole slices; a dimension as long as the tokens of two layouts alike may follow the tokens, too."""
        flat = _Count()
        self._compare_flat(a, b, flat)
        held_a, held_b = a[2], b[2]
        if flat.differing and not self.same_layout and _has_grid(held_a) and _has_grid(held_b):
            assert held_a.cells is not None and held_b.cells is not None
            aligned = _Count()
            if held_a.cells.row_dims and held_a.cells.open_dims and held_b.cells.open_dims:
                self._compare_masks(a, b, aligned)
            if aligned.compared and not aligned.differing and not aligned.left_out:
                flat = aligned
        count.compared += flat.compared
        count.differing += flat.differing
        if flat.earliest is not None:
            count.differ(flat.earliest)

    def _compare_flat(self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], count: _Count) -> None:
        held_a, held_b = a[2], b[2]
        flat_a = held_a.digests if held_a.flat is None else held_a.flat
        flat_b = held_b.digests if held_b.flat is None else held_b.flat
        assert (
            held_a.cells is not None
            and held_b.cells is not None
            and flat_a is not None
            and flat_b is not None
        )
        index_a, index_b, numbers = self._align(held_a.cells, held_b.cells)
        wrong = flat_a[index_a] != flat_b[index_b]
        count.compared += len(numbers)
        if wrong.any():
            count.differing += int(np.count_nonzero(wrong))
            count.differ(self._difference_inside(a, b, int(np.argmax(wrong)), index_a, index_b, numbers))

    def _compare_masks(self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], count: _Count) -> None:
        """A table over queries and keys (a mask, a position bias) whose tokens are not known in every dimension.

        Its rows and columns are lined up, for each sample, by where the sample's tokens are.
        """
        grid_a, grid_b = _grid(a[2]), _grid(b[2])
        if grid_a[0] != grid_b[0] or len(a[2].shape) != len(b[2].shape):
            whole = grid_a if a[2].cells is not None and a[2].cells.ids[0] == WHOLE else grid_b
            other = grid_b if whole is grid_a else grid_a
            extra = [d for d in other[0] if d not in whole[0]]
            held = a[2] if whole is grid_a else b[2]
            if any(d not in other[0] for d in whole[0]) or any(held.shape[d] != 1 for d in extra):
                count.skip(1, f"shape {list(a[2].shape)} in A, {list(b[2].shape)} in B")
                return
            widened = whole[1].reshape([held.shape[d] for d in other[0]])
            grid_a, grid_b = (
                ((other[0], widened), grid_b) if whole is grid_a else (grid_a, (other[0], widened))
            )
        for sample_a, sample_b in self.shared.pairing.pairs:
            take_a = self._lines(self.a, a, grid_a[0], sample_a)
            take_b = self._lines(self.b, b, grid_b[0], sample_b)
            lines = [self._common(x, y) for x, y in zip(take_a, take_b, strict=True)]
            if any(line is None for line in lines):
                count.skip(1, f"shape {list(a[2].shape)} in A, {list(b[2].shape)} in B")
                return
            left = grid_a[1][np.ix_(*[line[1] for line in lines if line is not None])]
            right = grid_b[1][np.ix_(*[line[2] for line in lines if line is not None])]
            wrong = left != right
            axis = next((i for i, line in enumerate(lines) if line is not None and line[0] is not None), None)
            if axis is None or not wrong.size:
                continue
            by_position = wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis))
            count.compared += len(by_position)
            if by_position.any():
                positions = lines[axis]
                assert positions is not None and positions[0] is not None
                count.differing += int(np.count_nonzero(by_position))
                count.differ(Difference(a[0], b[0], -1, sample_a, positions[0][int(np.argmax(by_position))]))

    def _lines(
        self, trace: Trace, entry: tuple[int, Event, Event], dims: tuple[int, ...], sample: int
    ) -> list[dict[int, int] | int | None]:
        """For each dimension of a grid where the sample's tokens are; or the one row that is the sample's."""
        event, held = entry[1], entry[2]
        found: list[dict[int, int] | int | None] = []
        for d in dims:
            size = held.shape[d]
            columns = (
                self._column_of(trace, self._place(trace, entry), size).get(sample) if size > 1 else None
            )
            if size == 1:
                found.append(0)
            elif d == 0 and (row := self._row_of(trace, event.call, size, sample)) is not None:
                found.append(row)
            else:
                found.append(columns)
        return found

    @staticmethod
    def _common(
        x: dict[int, int] | int | None, y: dict[int, int] | int | None
    ) -> tuple[list[int] | None, Ints, Ints] | None:
        if isinstance(x, int) and isinstance(y, int):
            return None, np.asarray([x]), np.asarray([y])
        if not isinstance(x, dict) or not isinstance(y, dict):
            return None
        positions = sorted(x.keys() & y.keys())
        return (
            positions,
            np.asarray([x[p] for p in positions], int),
            np.asarray([y[p] for p in positions], int),
        )

    @staticmethod
    def _row_of(trace: Trace, call: int, size: int, sample: int) -> int | None:
        grid = trace.table.slots(call, MAIN)
        if grid is None or grid.ndim != 2 or grid.shape[0] != size:
            return None
        for row in range(size):
            if any(
                (t := trace.table.tokens[item]) is not None and t[1] == sample for item in grid[row].tolist()
            ):
                return row
        return None

    def _difference_inside(
        self,
        a: tuple[int, Event, Event],
        b: tuple[int, Event, Event],
        at: int,
        index_a: Ints,
        index_b: Ints,
        numbers: Ints,
    ) -> Difference:
        """Name the token along an open dimension, where there is just one sample to name."""
        difference = self._difference(a[0], b[0], int(numbers[at]))
        held_a, held_b = a[2], b[2]
        cells = held_a.cells
        if cells is None or cells.kind != "open" or held_b.digests is None or held_a.digests is None:
            return difference
        if held_a.digests.shape != held_b.digests.shape or difference.position is not None:
            return difference
        wrong = np.argwhere(held_a.digests[index_a[at]] != held_b.digests[index_b[at]])
        if not len(wrong):
            return difference
        place, index = self._place(self.a, a), [0] * len(held_a.shape)
        for d, i in zip(cells.open_dims, wrong[0].tolist(), strict=True):
            index[d] = i
        found = self.token_at(place, None, held_a.shape, tuple(index)) or self._any_token_at(
            place, [(held_a.shape[d], index[d]) for d in cells.open_dims]
        )
        if found is not None:
            difference.sample, difference.position = found
        return difference

    def _any_token_at(self, place: tuple[Op, int], lines: list[tuple[int, int]]) -> tuple[int, int] | None:
        """A token of run A in the column at an index along the first of some dimensions that has tokens."""
        for size, index in lines:
            for sample, by_position in self._column_of(self.a, place, size).items():
                for position, column in by_position.items():
                    if column == index:
                        return sample, position
        return None

    @staticmethod
    def _place(trace: Trace, entry: tuple[int, Event, Event]) -> tuple[Op, int]:
        return trace.ops[entry[1].op], entry[1].call

    def _column_of(self, trace: Trace, place: tuple[Op, int], size: int) -> dict[int, dict[int, int]]:
        """For each sample, by position, the index of its tokens along a dimension of that size.

        Where both streams of a call have as many columns, the decoder's own modules speak of its own.
        """
        op, call = place
        decoder = "decoder" in op.module
        key = (id(trace), call, size, decoder)
        found = self._columns.get(key)
        if found is None:
            found = {}
            table = trace.table
            for stream in (DECODER, MAIN) if decoder else (MAIN, DECODER):
                for grid in (table.slots(call, stream), table.slots_so_far(call, stream)):
                    if not found and grid is not None and grid.ndim == 2 and grid.shape[-1] == size:
                        for row, column in np.ndindex(*grid.shape):
                            token = table.tokens[int(grid[row, column])]
                            if token is not None:
                                found.setdefault(token[1], {})[token[2]] = column
            self._columns[key] = found
        return found

    def _compare_aligned(
        self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], count: _Count
    ) -> None:
        held_a, held_b = a[2], b[2]
        cells_a, cells_b = held_a.cells, held_b.cells
        assert cells_a is not None and cells_b is not None
        assert held_a.digests is not None and held_b.digests is not None
        different = [
            d for d in range(max(len(held_a.shape), len(held_b.shape)))
            if d >= len(held_a.shape) or d >= len(held_b.shape) or held_a.shape[d] != held_b.shape[d]
        ]  # fmt: skip
        if len(held_a.shape) != len(held_b.shape) or any(
            (d not in cells_a.open_dims and held_a.shape[d] != 1)
            or (d not in cells_b.open_dims and held_b.shape[d] != 1)
            for d in different
        ):
            count.skip(1, f"shape {list(held_a.shape)} in A, {list(held_b.shape)} in B")
            return
        index_a, index_b, numbers = self._align(cells_a, cells_b)
        for row in range(len(numbers)):
            sample, _ = self.shared.coordinate(int(numbers[row]))
            pairs = [p for p in self.shared.pairing.pairs if sample is None or p[0] == sample]
            self._compare_cells(a, b, held_a.digests[index_a[row]], held_b.digests[index_b[row]],
                                different, pairs, int(numbers[row]), count)  # fmt: skip

    def _compare_cells(
        self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], digests_a: Ints, digests_b: Ints,
        different: list[int], pairs: list[tuple[int, int]], number: int, count: _Count,
    ) -> None:  # fmt: skip
        held_a, held_b = a[2], b[2]
        assert held_a.cells is not None and held_b.cells is not None
        dims = sorted({*held_a.cells.open_dims, *held_b.cells.open_dims})
        digests_a = digests_a.reshape([held_a.shape[d] if d in held_a.cells.open_dims else 1 for d in dims])
        digests_b = digests_b.reshape([held_b.shape[d] if d in held_b.cells.open_dims else 1 for d in dims])
        for sample_a, sample_b in pairs:
            take_a: list[Any] = []
            take_b: list[Any] = []
            positions: list[int] | None = None
            rows = self._rows_of(a, b, sample_a, sample_b) if len(dims) > 1 else None
            for axis, d in enumerate(dims):
                if d == 0 and rows is not None:
                    if (digests_a.shape[axis], digests_b.shape[axis]) != (held_a.shape[0], held_b.shape[0]):
                        count.skip(1, "the rows are told apart in one run alone")
                        return
                    take_a.append(np.asarray(rows[:1]))
                    take_b.append(np.asarray(rows[1:]))
                    continue
                if d not in different:
                    everything = np.arange(max(digests_a.shape[axis], digests_b.shape[axis]))
                    take_a.append(everything if digests_a.shape[axis] > 1 else np.zeros(1, dtype=int))
                    take_b.append(everything if digests_b.shape[axis] > 1 else np.zeros(1, dtype=int))
                    if digests_a.shape[axis] != digests_b.shape[axis]:
                        count.skip(1, f"dimension {d} follows the tokens in one run alone")
                        return
                    continue
                columns_a = self._column_of(self.a, self._place(self.a, a), held_a.shape[d]).get(sample_a, {})
                columns_b = self._column_of(self.b, self._place(self.b, b), held_b.shape[d]).get(sample_b, {})
                common = sorted(columns_a.keys() & columns_b.keys())
                positions = common if positions is None else positions
                take_a.append(np.asarray([columns_a[p] for p in common], dtype=int))
                take_b.append(np.asarray([columns_b[p] for p in common], dtype=int))
            left, right = digests_a[np.ix_(*take_a)], digests_b[np.ix_(*take_b)]
            if left.shape != right.shape or not left.size:
                continue
            wrong = left != right
            followed = [i for i, d in enumerate(dims) if d in different and (d or rows is None)]
            axis = followed[0] if followed else 0
            by_position = wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis))
            count.compared += len(by_position)
            if by_position.any():
                count.differing += int(np.count_nonzero(by_position))
                at = int(np.argmax(by_position))
                position = positions[at] if positions is not None and at < len(positions) else None
                count.differ(Difference(a[0], b[0], number, sample_a, position))

    def _rows_of(
        self, a: tuple[int, Event, Event], b: tuple[int, Event, Event], sample_a: int, sample_b: int
    ) -> tuple[int, int] | None:
        """Where two values have a sample's row, if their first dimension follows the rows or is one for all."""
        row_a = self._row_in(self.a, a[1].call, a[2].shape[0], sample_a)
        row_b = self._row_in(self.b, b[1].call, b[2].shape[0], sample_b)
        return None if row_a is None or row_b is None else (row_a, row_b)

    def _row_in(self, trace: Trace, call: int, size: int, sample: int) -> int | None:
        return 0 if size == 1 else self._row_of(trace, call, size, sample)

    def token_at(
        self, place: tuple[Op, int], label: Label | None, shape: tuple[int, ...], index: tuple[int, ...]
    ) -> tuple[int, int] | None:
        """The token of run A that an element of a table belongs to, by the table's sizes.

        A table without labels, [rows, columns, ...], holds each row's tokens. One whose keys alone are known, [rows,
        heads, queries, keys], belongs to the queries.
        """
        op, call = place
        if label is not None and (
            label.k is not None or len(shape) < 4 or label.q.shape[-1] == 1 or label.q.shape[-2] > 1
        ):
            return None
        for stream in (DECODER, MAIN) if "decoder" in op.module else (MAIN, DECODER):
            grid = self.a.table.slots(call, stream)
            if grid is None or grid.ndim != 2 or not shape or shape[0] not in (grid.shape[0], 1):
                continue
            dims = range(1, len(shape)) if label is None else [len(shape) - 2]
            d = next((d for d in dims if shape[d] == grid.shape[1]), None)
            if d is not None and (shape[0] > 1 or grid.shape[0] == 1):
                token = self.a.table.tokens[int(grid[index[0], index[d]])]
                return None if token is None else token[1:]
        return None

    def pair_open(
        self,
        sample: int | None,
        place_a: tuple[Op, int],
        place_b: tuple[Op, int],
        shape_a: tuple[int, ...],
        shape_b: tuple[int, ...],
    ) -> Pairs:
        """Pair the elements of two values whose token dimensions only the join could line up.

        Args:
            place_a, place_b: the op that made each value, and the call.
            shape_a, shape_b: shapes of the values.
            sample: the sample (of run A) by whose columns they are lined up; None for all, one after the other.
        """
        if len(shape_a) != len(shape_b):
            return Pairs.none(f"shape {list(shape_a)} in A, {list(shape_b)} in B")
        partners = [p for p in self.shared.pairing.pairs if sample is None or p[0] == sample]
        flat_a: list[Ints] = []
        flat_b: list[Ints] = []
        for sample_a, sample_b in partners:
            take_a: list[Ints] = []
            take_b: list[Ints] = []
            columns_a = [self._column_of(self.a, place_a, size).get(sample_a, {}) for size in shape_a]
            columns_b = [self._column_of(self.b, place_b, size).get(sample_b, {}) for size in shape_b]
            row_a = self._row_in(self.a, place_a[1], shape_a[0], sample_a) if shape_a else None
            row_b = self._row_in(self.b, place_b[1], shape_b[0], sample_b) if shape_b else None
            behind = any(x and y for x, y in zip(columns_a[1:], columns_b[1:], strict=True))
            for d, (size_a, size_b) in enumerate(zip(shape_a, shape_b, strict=True)):
                if size_a == size_b:
                    take_a.append(np.arange(size_a))
                    take_b.append(np.arange(size_b))
                elif d == 0 and behind and row_a is not None and row_b is not None:
                    take_a.append(np.asarray([row_a]))
                    take_b.append(np.asarray([row_b]))
                else:
                    common = sorted(columns_a[d].keys() & columns_b[d].keys())
                    take_a.append(np.asarray([columns_a[d][p] for p in common], dtype=np.int64))
                    take_b.append(np.asarray([columns_b[d][p] for p in common], dtype=np.int64))
            flat_a.append(np.ravel_multi_index(np.ix_(*take_a), shape_a).reshape(-1))
            flat_b.append(np.ravel_multi_index(np.ix_(*take_b), shape_b).reshape(-1))
        if not flat_a or not sum(map(len, flat_a)):
            return Pairs.none("no token dimension known")
        index_a, index_b = np.concatenate(flat_a), np.concatenate(flat_b)
        return Pairs(index_a, index_b, np.zeros(len(index_a), dtype=np.int64))


class _Records(Passes):
    """The passes of one op in one run, with what is compared of each.

    Attributes:
        digests: [rows, ...].
        keys_seen: [rows, 4], for attention weights the keys that the query sees; else without columns.
        widths: [rows], elements.
    """

    def __init__(
        self, numbers: Ints, again: Any, events: Ints, digests: Any, keys_seen: Ints, widths: Ints
    ) -> None:
        super().__init__(numbers, again.astype(bool), events)
        self.digests, self.keys_seen, self.widths = digests, keys_seen, widths


def _grid(held: Event) -> tuple[tuple[int, ...], Ints]:
    """All dimensions along which an event has cells, and its digests over them."""
    cells = held.cells
    assert cells is not None and held.digests is not None
    dims = tuple(sorted((*cells.row_dims, *cells.open_dims)))
    given = (*cells.row_dims, *cells.open_dims)
    digests = held.digests.reshape([held.shape[d] for d in given])
    return dims, digests.transpose([given.index(d) for d in dims])


def _same_slices(a: Event, b: Event) -> bool:
    """Whether both events have a known token for every cell, and as many elements in each."""
    if (
        a.cells is None
        or b.cells is None
        or _is_whole(a)
        or _is_whole(b)
        or not len(a.cells.ids)
        or not len(b.cells.ids)
    ):
        return False
    sizes = {int(width) for event in (a, b) for width in np.unique(_widths(event))}
    return len(sizes) == 1


def _at_columns(
    trace: Trace, entries: list[tuple[int, Event, Event]]
) -> tuple[list[tuple[int, Event, Event]], list[tuple[int, Event, Event]]]:
    """The events that work on one column of each row, of several; and the others."""
    found: tuple[list[tuple[int, Event, Event]], ...] = ([], [])
    for entry in entries:
        cells = entry[2].cells
        found[cells is None or not trace.table.one_of_many(cells.ids)].append(entry)
    return found[0], found[1]


def _is_whole(held: Event) -> bool:
    return held.cells is not None and len(held.cells.ids) > 0 and held.cells.ids[0] == WHOLE


def _has_grid(held: Event) -> bool:
    """Whether an event's digests lie on a grid over dimensions of its value."""
    cells = held.cells
    if cells is None or held.digests is None or cells.kind == "pair":
        return False
    rows = 1
    for d in cells.row_dims:
        rows *= held.shape[d]
    return rows == len(cells.ids)


def _widths(event: Event) -> Ints:
    """Elements of each cell of an event, [cells]."""
    assert event.cells is not None
    return np.broadcast_to(np.asarray(event.width, dtype=np.int64), event.cells.ids.shape)


def _by_key(trace: Trace) -> dict[Hashable, list[int]]:
    found: dict[Hashable, list[int]] = {}
    keys = [trace.key(op) for op in trace.ops]
    for index, event in enumerate(trace.events):
        found.setdefault(keys[event.op], []).append(index)
    return found


def _same_layout(a: CoordinateTable, b: CoordinateTable, pairing: Pairing) -> bool:
    if any(x != y for x, y in pairing.pairs) or pairing.only_a or pairing.only_b:
        return False
    if len(a.layout.calls) != len(b.layout.calls):
        return False
    for entry_a, entry_b in zip(a.layout.calls, b.layout.calls, strict=True):
        if entry_a.keys() != entry_b.keys():
            return False
        for stream, mine in entry_a.items():
            theirs = entry_b[stream]
            if mine.shape != theirs.shape or not bool((mine.sample == theirs.sample).all()):
                return False
            if not bool((mine.position == theirs.position).all()):
                return False
    return True
