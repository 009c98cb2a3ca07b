"""A trace that lies in Arrow files, as columns: an object is made only of what somebody looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.series import Ints, Series, spans
from forkpoint.capture.trace import WHOLE, Cells, Event, Form, Op, Trace
from forkpoint.traces.rows import StoredRows, lengths_of

TOGETHER = 512
"""Batches of a table that are made one at once: a recording leaves one for each call, and each has a size of its own."""


class StoredTrace(Trace):
    """A finished trace with a few numbers for each row; the digests of all rows lie one after the other.

    Args:
        table: the coordinates.
        ops: by their numbers.
        forms: record batches of the table of this name.
        rows: record batches of the table of this name, read once.

    Raises:
        ValueError, IndexError: something refers to what there is not.
    """

    def __init__(
        self, table: CoordinateTable, ops: list[Op], forms: Iterable[Any], rows: Iterable[Any]
    ) -> None:
        super().__init__(table)
        self.completed = True
        self._ops = ops
        self._forms = _Forms(forms, len(table.kinds))
        self._rows = columns = StoredRows(rows, len(ops), self._forms)
        self.op, self.call, self.form = columns.op, columns.call, columns.form
        self.back, self.start, self.values = columns.back, columns.start, columns.digests
        self.flats, self.skipped = columns.flats, columns.skipped
        self._asked: tuple[int, Ints] = (-1, np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.op)

    @property
    def ops(self) -> list[Op]:
        return self._ops

    def rename(self, by: Callable[[Op], Op]) -> None:
        """Put others in the place of the ops."""
        self._ops = [by(op) for op in self._ops]

    @cached_property
    def events(self) -> Sequence[Event]:
        return _Events(self)

    @cached_property
    def _by_op(self) -> tuple[Any, Any]:
        """The rows ordered by their ops, and where those of each op begin."""
        return self._rows.by_op()

    def rows_of(self, op: int) -> Ints:
        """The rows of an op, ascending."""
        order, starts = self._by_op
        return order[starts[op] : starts[op + 1]]

    def by_op(self) -> list[Sequence[int]]:
        return [self.rows_of(op) for op in range(len(self._ops))]  # type: ignore[misc] - arrays will do

    def first_of(self, op: int) -> int:
        """The first row of an op; beyond all rows, where it has none."""
        rows = self.rows_of(op)
        return int(rows[0]) if len(rows) else len(self)

    def op_of(self, index: int) -> int:
        return int(self.op[index])

    def nth(self, index: int) -> int:
        op = int(self.op[index])
        if self._asked[0] != op:
            self._asked = op, self.rows_of(op)
        rows = self._asked[1]
        first = np.searchsorted(self.call[rows], self.call[index])
        return int(np.searchsorted(rows, index) - first)

    def event(self, index: int) -> Event:
        form = self._forms[int(self.form[index])]
        event = Event(
            int(self.op[index]), int(self.call[index]), form.status, form.shape, form.dtype, form.floating,
            self.nth(index), reason=form.reason,
        )  # fmt: skip
        back = int(self.back[index])
        if back:
            event.alias, event.status, event.reason = index - back, "alias", ""
        elif index in self.skipped:
            event.status, event.reason = "skipped", self.skipped[index]
        elif self.start[index] >= 0:
            event.cells, event.width = form.cells, form.width
            event.digests, event.flat = self._digests(index, form.cells), self.flats.get(index)
        return event

    def _digests(self, index: int, cells: Cells) -> NDArray[np.int64]:
        first, count = int(self.start[index]), len(cells.ids)
        if cells.kind == "pair":
            return np.asarray(self.values[first : first + 2 * count]).reshape(count, 2)
        if cells.kind == "open":
            shape = (count, *cells.open_sizes)
            return np.asarray(self.values[first : first + int(np.prod(shape))]).reshape(shape)
        return np.asarray(self.values[first : first + count])

    def series(self, events: Sequence[int]) -> Series | None:
        rows = np.asarray(events, dtype=np.int64)
        held = rows
        while (back := self.back[held]).any():
            held = held - back
        form, forms = self.form[held], self._forms
        if forms.skipped[form].any() or (self.skipped and any(row in self.skipped for row in held.tolist())):
            return None
        having = (self.start[held] >= 0) & forms.digested[form]
        elements = ~forms.empty[self.form[rows]]
        if (having & elements).any():
            having &= elements
        rows, held, form = rows[having], held[having], form[having]
        kinds = np.unique(forms.kind[form])
        if len(kinds) > 1 or (len(kinds) and kinds[0] == _OPEN) or forms.reasoned[form].any():
            return None
        dtypes = frozenset(forms.dtypes[code] for code in np.unique(forms.dtype[self.form[rows]]).tolist())
        kind = "pair" if len(kinds) and kinds[0] == _PAIR else "rows"
        lengths = forms.ids_length[form]
        cells = spans(forms.ids_start[form], lengths)
        width = 2 if kind == "pair" else 1
        digests = self.values[spans(self.start[held].astype(np.int64), lengths * width)]
        keys = np.zeros((len(cells), 0), dtype=np.int64)
        if kind == "pair":
            digests = digests.reshape(-1, 2)
            if (forms.keys_start[form] >= 0).all():
                keys = forms.keys[spans(forms.keys_start[form], 4 * lengths)].reshape(-1, 4)
        return Series(
            kind, dtypes, frozenset(np.unique(forms.whole[form]).tolist()), len(rows), forms.ids[cells],
            np.repeat(rows, lengths), np.repeat(self.call[rows].astype(np.int64), lengths), digests, keys, forms.widths[cells],
        )  # fmt: skip


class _Events(Sequence[Event]):
    """The events of a trace, each made when it is asked for."""

    def __init__(self, trace: StoredTrace) -> None:
        self.trace = trace

    def __len__(self) -> int:
        return len(self.trace)

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | Sequence[Event]:
        if isinstance(index, slice):
            return [self.trace.event(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.trace.event(int(index) % len(self))


# ---------------------------------------------------------------------- forms


_KINDS = {"rows": 0, "pair": 1, "open": 2}
_PAIR, _OPEN = 1, 2


class _Forms:
    """How values lie that were digested, by number; columns of what is asked for every row."""

    def __init__(self, batches: Iterable[Any], items: int) -> None:
        self.table = _one_table(batches)
        self.made: dict[int, Form] = {}
        columns = {name: _column(self.table, name) for name in ("status", "dtype", "kind", "reason")}
        self.count = len(columns["status"])
        statuses, kinds = columns["status"], columns["kind"]
        self.digested = np.asarray([s == "digest" for s in statuses], dtype=bool)
        self.skipped = np.asarray([s == "skipped" for s in statuses], dtype=bool)
        self.reasoned = np.asarray([bool(r) for r in columns["reason"]], dtype=bool)
        self.kind = np.asarray([_KINDS[k] for k in kinds], dtype=np.int8)
        self.dtypes = [*dict.fromkeys(columns["dtype"])]
        codes = {name: code for code, name in enumerate(self.dtypes)}
        self.dtype = np.asarray([codes[name] for name in columns["dtype"]], dtype=np.int32)
        sizes, starts, lengths = _lists(self.table, "shape")
        self.empty = np.zeros(self.count, dtype=bool)
        owner = np.repeat(np.arange(self.count), lengths)
        self.empty[owner[sizes[spans(starts, lengths)] == 0]] = True
        ids, self.ids_start, self.ids_length = _lists(self.table, "ids")
        self.ids = ids.astype(np.int32)
        if len(ids) and not (ids.min() >= WHOLE and ids.max() < items):
            raise ValueError("a coordinate that there is not")
        first = (
            self.ids[np.minimum(self.ids_start, max(len(ids) - 1, 0))] if len(ids) else np.zeros(self.count)
        )
        self.whole = (self.ids_length > 0) & (first == WHOLE)
        self.keys, keys_start, keys_length = _lists(self.table, "keys")
        self.keys_start = np.where(keys_length == 4 * self.ids_length, keys_start, -1)
        widths, width_start, width_length = _lists(self.table, "width")
        if not ((width_length == 1) | (width_length == self.ids_length)).all():
            raise ValueError("widths of another number than cells")
        self.widths = np.zeros(len(ids), dtype=np.int64)
        if len(ids):
            one = width_length == 1
            place = np.repeat(width_start, self.ids_length)
            within = spans(np.zeros(self.count, dtype=np.int64), self.ids_length)
            place = place + np.where(np.repeat(one, self.ids_length), 0, within)
            self.widths[spans(self.ids_start, self.ids_length)] = widths[place]
        self.slots = self._slots()

    def _slots(self) -> Ints:
        """How many digests a row of each form has."""
        slots = self.ids_length.copy()
        slots[self.kind == _PAIR] *= 2
        sizes, starts, lengths = _lists(self.table, "open_sizes")
        for form in np.flatnonzero(self.kind == _OPEN).tolist():
            of = sizes[starts[form] : starts[form] + lengths[form]]
            slots[form] *= int(np.prod(of, dtype=np.int64))
        return slots

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Form:
        form = self.made.get(number)
        if form is None:
            assert self.table is not None
            form = self.made[number] = _form(
                {n: self.table[n][number].as_py() for n in self.table.column_names}
            )
        return form


def _one_table(batches: Iterable[Any]) -> Any:
    """What many batches hold, as one table; None of no batches."""
    tables: list[Any] = []
    some: list[Any] = []
    for batch in batches:
        some.append(batch)
        if len(some) == TOGETHER:
            tables.append(pa.Table.from_batches(some).combine_chunks())
            some.clear()
    if some:
        tables.append(pa.Table.from_batches(some).combine_chunks())
    return pa.concat_tables(tables).combine_chunks() if tables else None


def _form(row: dict[str, Any]) -> Form:
    ids = np.asarray(row["ids"], dtype=np.int32)
    keys = None if row["keys"] is None else np.asarray(row["keys"], dtype=np.int64).reshape(-1, 4)
    cells = Cells(
        row["kind"], ids, tuple(row["open_dims"]), tuple(row["open_sizes"]), keys, tuple(row["row_dims"])
    )
    width: Any = row["width"][0] if len(row["width"]) == 1 else np.asarray(row["width"], dtype=np.int64)
    return Form(
        row["status"], tuple(row["shape"]), row["dtype"], row["floating"], cells, width, row["reason"]
    )


def _column(table: Any, name: str) -> list[Any]:
    return [] if table is None else table[name].to_pylist()


def _lists(table: Any, name: str) -> tuple[Ints, Ints, Ints]:
    """All entries of a column of lists, and where that of each row begins and how long it is; of nothing, 0."""
    if table is None or not table.num_rows:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    column = table[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    lengths = np.maximum(lengths_of(column), 0)
    entries = column.flatten().to_numpy().astype(np.int64)
    return entries, np.cumsum(lengths) - lengths, lengths


__all__ = ["StoredTrace"]
