"""StoredRows as columns: what narrow numbers and runs in a file give is what is given one row after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from forkpoint.traces import rows
from forkpoint.traces.rows import Column, StoredRows
from forkpoint.traces.schema import INTS, TABLES

SLOTS = np.array([0, 1, 2, 5])
"""How many digests rows of each form have."""
OPS = 7


def batches(seed: int) -> tuple[list[Any], list[dict[str, Any]]]:
    """Batches of some sizes, and their rows one by one."""
    generator = np.random.default_rng(seed)
    made, plain, done = [], [], 0
    for size in generator.integers(0, 40, 12).tolist():
        some: list[dict[str, Any]] = []
        for _ in range(size):
            form = int(generator.integers(len(SLOTS)))
            has = bool(generator.random() < 0.7)
            some.append({
                "op": int(generator.integers(OPS)), "call": done // 50, "form": form,
                "back": int(generator.integers(done + 1)) if generator.random() < 0.2 else 0,
                "reason": "unreadable" if generator.random() < 0.05 else "",
                "digests": generator.integers(-(1 << 62), 1 << 62, SLOTS[form]).tolist() if has else None,
                "flat": None,
            })  # fmt: skip
            done += 1
        made.append(pa.RecordBatch.from_pylist(some, schema=TABLES["rows"]))
        plain += some
    return made, plain


@pytest.mark.parametrize("in_memory", [1 << 30, 0, 300])
@pytest.mark.parametrize("seed", range(6))
def test_columns_hold_what_the_rows_hold(seed: int, in_memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "IN_MEMORY", in_memory)
    monkeypatch.setattr(rows, "MAPPED", 1 << 17)
    monkeypatch.setattr(rows, "BLOCK", 16)
    made, plain = batches(seed)
    columns = StoredRows(made, OPS, _Forms())
    for name in ("op", "call", "form", "back"):
        assert getattr(columns, name).tolist() == [row[name] for row in plain], name
    for index, row in enumerate(plain):
        start = int(columns.start[index])
        if row["digests"] is None or row["reason"]:
            assert start == -1
        else:
            assert columns.digests[start : start + len(row["digests"])].tolist() == row["digests"]
    order, starts = columns.by_op()
    for op in range(OPS):
        assert order[starts[op] : starts[op + 1]].tolist() == [
            i for i, row in enumerate(plain) if row["op"] == op
        ]


class _Forms:
    slots = ids_length = SLOTS

    def __len__(self) -> int:
        return len(SLOTS)


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [([0, 1, 127], "int8"), ([-128, 5], "int8"), ([128], "int16"), ([-129], "int16"), ([1 << 31], "int64"), ([], "int8")],
)  # fmt: skip
def test_a_column_is_as_narrow_as_its_numbers(numbers: list[int], dtype: str) -> None:
    column = Column()
    column.add(np.array(numbers, dtype=np.int64))
    whole = column.whole()
    assert whole.tolist() == numbers
    assert whole.dtype == dtype


def test_an_op_lies_together_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each op that is looked at has all of the file in memory."""
    monkeypatch.setattr(rows, "IN_MEMORY", 1 << 20)
    count, runs = 1 << 16, 4
    made = []
    for batch in range(runs * 4):
        digests = np.arange(count) + batch * count
        ends = pa.array(np.arange(count + 1, dtype=np.int32))
        made.append(pa.record_batch(
            [
                pa.array(np.arange(count, dtype=np.int32) % OPS), pa.array(np.full(count, batch, dtype=np.int32)),
                pa.array(np.full(count, 1, dtype=np.int32)), pa.array(np.zeros(count, dtype=np.int64)),
                pa.array([""] * count), pa.ListArray.from_arrays(ends, pa.array(digests)), pa.nulls(count, INTS),
            ], schema=TABLES["rows"],
        ))  # fmt: skip
    columns = StoredRows(made, OPS, _Forms())
    order, starts = columns.by_op()
    places = columns.start[order[starts[3] : starts[4]]]
    assert int((np.diff(places) != 1).sum()) < 2 * runs
    assert columns.digests[places[:3]].tolist() == [3, 3 + OPS, 3 + 2 * OPS]
