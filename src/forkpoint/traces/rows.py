"""The rows of a trace as columns, in little memory: narrow numbers, and digests ordered so that those of an op lie together."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pyarrow import compute

from forkpoint.capture.series import Ints, spans

IN_MEMORY = 1 << 25
"""Most bytes of digests that wait in memory; more of them are put one after the other in a temporary file."""

MAPPED = 1 << 25
"""About how many bytes of that file are looked at before the memory that maps them is given back."""

BLOCK = 1 << 18
"""How many numbers of a column are narrowed at once."""

_AT_ONCE = 1 << 16
"""Bytes that a system maps around the one that is looked at."""


class Sizes(Protocol):
    """What is asked of forms.

    Attributes:
        slots: [forms], how many digests a row has.
        ids_length: [forms], how many cells.
    """

    slots: Ints
    ids_length: Ints

    def __len__(self) -> int: ...


class StoredRows:
    """The columns of all rows, from batches that are let go of one by one.

    Args:
        batches: record batches of the table of rows, read once.
        ops: how many ops there are.
        forms: what is known of their forms.

    Attributes:
        op, call, form: [rows], in as few bytes as they need.
        back: [rows], how many rows back a value was before; 0 where it is a new one.
        start: [rows], where the digests of a row begin in `digests`; -1 where it has none.
        digests: those of all rows.
        flats: by row, for open cells, the digests with those dimensions taken in.
        skipped: by row, why it was not digested after all.
        counts: [ops], how many rows each op has.

    Raises:
        ValueError, IndexError: something refers to what there is not.
    """

    def __init__(self, batches: Iterable[Any], ops: int, forms: Sizes) -> None:
        columns = {name: Column() for name in ("op", "call", "form", "back")}
        self.flats: dict[int, Ints] = {}
        self.skipped: dict[int, str] = {}
        self.counts = np.zeros(ops, dtype=np.int64)
        self.digests = FiledDigests()
        done = 0
        for batch in batches:
            numbers = {name: batch.column(name).to_numpy() for name in columns}
            _check(numbers, done, ops, len(forms))
            reasons = batch.column("reason")
            given = np.flatnonzero(compute.call_function("binary_length", [reasons]).to_numpy())
            self.skipped.update({done + i: reasons[i].as_py() for i in given.tolist()})
            lists = batch.column("digests")
            lengths = lengths_of(lists)
            there = lengths >= 0
            there[given] = False
            lengths = np.maximum(lengths, 0)
            if (lengths[there] != forms.slots[numbers["form"][there]]).any():
                raise ValueError("a row with more or fewer digests than its form has cells")
            self.digests.add(numbers["op"], there, lengths, lists.flatten().to_numpy())
            self._flat(batch.column("flat"), done, numbers["form"], forms)
            for name, column in columns.items():
                column.add(numbers[name])
            self.counts += np.bincount(numbers["op"], minlength=ops)
            done += batch.num_rows
        self.op, self.call, self.form = (columns[n].whole() for n in ("op", "call", "form"))
        self.back, self.start = columns["back"].whole(), self.digests.finish()

    def _flat(self, column: Any, done: int, form: Ints, forms: Sizes) -> None:
        if column.null_count == len(column):
            return
        for i in np.flatnonzero(lengths_of(column) >= 0).tolist():
            flat = column[i].values.to_numpy().copy()
            if len(flat) != forms.ids_length[form[i]]:
                raise ValueError("a row with more or fewer digests than its form has cells")
            self.flats[done + i] = flat

    def by_op(self) -> tuple[Ints, Ints]:
        """The rows ordered by their ops, ascending in each; and where those of each op begin, and the last ones end."""
        starts = np.r_[0, np.cumsum(self.counts)]
        order: Any = np.empty(len(self.op), dtype=np.int32 if len(self.op) < 1 << 31 else np.int64)
        ends = starts[:-1].copy()
        for first in range(0, len(self.op), BLOCK):
            ops = self.op[first : first + BLOCK]
            here = np.argsort(ops, kind="stable")
            counts = np.bincount(ops, minlength=len(ends))
            order[spans(ends, counts)] = first + here
            ends += counts
        return order, starts


def _check(columns: dict[str, Ints], done: int, ops: int, forms: int) -> None:
    for name, most in (("op", ops), ("form", forms)):
        if len(columns[name]) and not 0 <= columns[name].min() <= columns[name].max() < most:
            raise IndexError(f"a row of an {name} that there is not")
    back = columns["back"]
    if (back < 0).any() or (back > np.arange(done, done + len(back))).any():
        raise ValueError("a row that is that of a row before all others")


def lengths_of(lists: Any) -> Ints:
    """How long each list of an Arrow column is; -1 where there is none."""
    lengths: Any = compute.call_function("list_value_length", [lists])
    return lengths.fill_null(-1).to_numpy().astype(np.int64)


class Column:
    """Whole numbers one after the other, in as few bytes as the largest of them needs.

    >>> column = Column()
    >>> column.add(np.array([1, 2])), column.add(np.array([300]))
    (None, None)
    >>> column.whole()
    array([  1,   2, 300], dtype=int16)
    """

    def __init__(self) -> None:
        self._block = np.empty(BLOCK, dtype=np.int64)
        self._filled = 0
        self._narrow: list[Ints] = []

    def add(self, numbers: NDArray[Any]) -> None:
        """More numbers, which are copied."""
        while len(numbers):
            some = numbers[: BLOCK - self._filled]
            self._block[self._filled : self._filled + len(some)] = some
            self._filled += len(some)
            numbers = numbers[len(some) :]
            if self._filled == BLOCK:
                self._put_away()

    def _put_away(self) -> None:
        numbers = self._block[: self._filled]
        least, most = int(numbers.min(initial=0)), int(numbers.max(initial=0))
        self._narrow.append(numbers.astype(np.min_scalar_type(min(least, -most - 1))))
        self._filled = 0

    def whole(self) -> Any:
        """All numbers, which leaves the column empty: what is added from then on begins anew."""
        self._put_away()
        narrow, self._narrow = self._narrow, []
        return np.concatenate(narrow)


class FiledDigests:
    """The digests of all rows: in memory, or in a temporary file where they are many.

    In the file they lie in runs: one after the other has the digests of some rows, ordered by their ops. Traces are compared
    op by op: what is looked at then is a few stretches of the file, not one page for each row.
    """

    def __init__(self) -> None:
        self._starts = Column()
        self._ops, self._there, self._lengths = Column(), Column(), Column()
        self._values: list[NDArray[np.int64]] = []
        self._waiting = 0
        self._written = self._runs = 0
        self._file: Any = None
        self._map: mmap.mmap | None = None
        self._looked_at = 0
        self._all: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(
        self, ops: NDArray[Any], there: NDArray[np.bool_], lengths: Ints, values: NDArray[np.int64]
    ) -> None:
        """The digests of more rows.

        Args:
            ops: [rows], the number of each one's op.
            there: [rows], whether it has digests.
            lengths: [rows], how many values it has.
            values: [sum of `lengths`], those of all, one after the other; copied.
        """
        self._ops.add(ops)
        self._there.add(there)
        self._lengths.add(lengths)
        self._values.append(values.copy())
        self._waiting += values.nbytes
        if self._waiting > IN_MEMORY:
            self._put_away()

    def _put_away(self) -> None:
        """Write what waits to the file, as a run."""
        values, lengths, there = self._next_run()
        order = np.argsort(self._ops.whole(), kind="stable")
        starts = np.cumsum(lengths) - lengths
        ordered = lengths[order]
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="forkpoint-digests-")  # noqa: SIM115 - as long as the values
        self._file.write(values[spans(starts[order], ordered)].data)
        places = np.empty_like(starts)
        places[order] = np.cumsum(ordered) - ordered + self._written
        self._starts.add(np.where(there, places, -1))
        self._written += len(values)
        self._runs += 1

    def _next_run(self) -> tuple[NDArray[np.int64], Ints, NDArray[np.bool_]]:
        values = np.concatenate(self._values) if self._values else np.zeros(0, dtype=np.int64)
        self._values.clear()
        self._waiting = 0
        return values, self._lengths.whole().astype(np.int64), self._there.whole().astype(bool)

    def finish(self) -> Ints:
        """Where the digests of each row begin; -1 where it has none. Nothing can be added any more."""
        if self._file is None:
            self._all, lengths, there = self._next_run()
            self._starts.add(np.where(there, np.cumsum(lengths) - lengths, -1))
        else:
            self._put_away()
            with self._file:  # what is mapped stays, also when it is closed
                self._file.flush()
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._all = np.frombuffer(self._map, dtype=np.int64)
        return self._starts.whole()

    @property
    def in_file(self) -> bool:
        """Whether they are too many to stay in memory."""
        return self._map is not None

    def __getitem__(self, where: slice | Ints) -> NDArray[np.int64]:
        """Some of the values."""
        values = self._all[where]
        if self._map is not None:
            self._looked_at += values.nbytes + _AT_ONCE * self._runs
            if self._looked_at > MAPPED and hasattr(mmap, "MADV_DONTNEED"):
                self._map.madvise(mmap.MADV_DONTNEED)  # what a slice still shows is read again
                self._looked_at = 0
        return values


__all__ = ["Column", "FiledDigests", "StoredRows", "lengths_of"]
