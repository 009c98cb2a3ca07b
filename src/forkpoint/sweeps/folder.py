"""The folder of a sweep: an answer a file, each there whole or not at all, and the table collected from them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from forkpoint.errors import InputError
from forkpoint.support.files import write_bytes, write_json
from forkpoint.support.records import from_plain, to_plain
from forkpoint.sweeps.answer import SweepRow
from forkpoint.sweeps.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from forkpoint.sweeps.cells import Cell, CellOutcome

CELLS, RESULTS, TABLE, LOG, LOCK = "cells", "results", "sweep.parquet", "workers.log", ".lock"
OWN = {CELLS, RESULTS, TABLE, LOG, LOCK}


class Folder:
    """Answers on disk, each under the digest of its question's description."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, cell: Cell) -> tuple[SweepRow, ...] | None:
        """The rows of a question that was answered before; None where it was not, or has a reason instead."""
        try:
            record = json.loads(self._cell(cell).read_bytes())
            same = record["description"] == json.loads(json.dumps(cell.description))
            rows: tuple[SweepRow, ...] = from_plain(tuple[SweepRow, ...], record["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return rows if same and all(row.status is not None for row in rows) else None

    def keep(self, cell: Cell, answer: CellOutcome) -> tuple[SweepRow, ...]:
        """Write an answer, what the command wrote first, and give its rows.

        Raises:
            InputError: there is no room, or no permission.
        """
        rows = rows_of(cell, answer)
        if answer.document is not None:
            write_json(self.path / RESULTS / f"{cell.key}.json", answer.document)
        write_json(self._cell(cell), {"description": cell.description, "rows": to_plain(rows)})
        return rows

    def write_table(self, rows: Iterable[SweepRow]) -> None:
        """Write the rows as Parquet, a column for each field.

        Raises:
            InputError: there is no room, or no permission.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([(field.name, _column(str(field.type), pa)) for field in fields(SweepRow)])
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_bytes(self.path / TABLE, sink.getvalue().to_pybytes())

    def _cell(self, cell: Cell) -> Path:
        return self.path / CELLS / f"{cell.key}.json"


def _column(kind: str, pa: Any) -> Any:
    types = {"float": pa.float64(), "int": pa.int64(), "bool": pa.bool_()}
    return types.get(kind.partition(" ")[0], pa.string())


@contextmanager
def opened(path: Path) -> Generator[Folder]:
    """A folder for one sweep alone, for as long as it is entered.

    Raises:
        InputError: it can't be made, another sweep is writing to it, or something else is in it.
    """
    try:
        others = {entry.name for entry in path.iterdir()} - OWN if path.exists() else set[str]()
        if any(not name.startswith(".forkpoint-") for name in others):
            raise InputError(
                f"{path}, where there is something else", "a folder that is new, empty, or a sweep's"
            )
        for name in (CELLS, RESULTS):
            (path / name).mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{path}, to which another sweep is writing", "another folder, or its end") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} can't be written: {reason}", "room and permission to write") from error
    try:
        yield Folder(path)
    finally:
        lock.release()
