"""Writing a trace as it goes: whatever is on disk can be read, also if the process is killed at this moment."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from forkpoint.capture.coordinates import NONE, CoordinateTable
from forkpoint.capture.digest import torch_impl
from forkpoint.capture.trace import WHOLE, Cells, Form, Op
from forkpoint.errors import CaptureError, InputError
from forkpoint.support.files import write_json
from forkpoint.support.readable import why_unreadable
from forkpoint.traces.schema import CALLS, FORMAT, INTS, MANIFEST, TABLES, VALUES, VERSION


class Rows:
    """Rows that are written in one go."""

    def __init__(self) -> None:
        self.plain: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        self.reasons: list[str] = []
        self.digests: tuple[list[np.ndarray | None], list[np.ndarray | None]] = ([], [])

    def add(
        self, op: int, call: int, form: int, back: int, reason: str, digests: np.ndarray | None, flat: np.ndarray | None
    ) -> None:  # fmt: skip
        """One value that went by; `flat` where it has open cells."""
        for column, number in zip(self.plain, (op, call, form, back), strict=True):
            column.append(number)
        self.reasons.append(reason)
        self.digests[0].append(digests)
        self.digests[1].append(flat)

    def batch(self) -> pa.RecordBatch:
        """The rows as columns of the table of that name."""
        schema = TABLES["rows"]
        plain = [np.asarray(self.plain[i], dtype=np.int64 if i == 3 else np.int32) for i in range(4)]
        columns = [*plain, self.reasons, *map(_lists, self.digests)]
        return pa.record_batch(
            [pa.array(c) if not isinstance(c, pa.Array) else c for c in columns], schema=schema
        )


def _lists(parts: list[np.ndarray | None]) -> pa.Array:
    """A list of numbers for each part, or nothing."""
    there = np.asarray([part is not None for part in parts], dtype=bool)
    if not there.any():
        return pa.nulls(len(parts), INTS)
    sizes = np.asarray([0 if part is None else part.size for part in parts])
    values = np.concatenate([part.reshape(-1) for part in parts if part is not None])
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values), mask=pa.array(~there))


class Writer:
    """Writes the folder of one trace.

    Args:
        folder: a folder that does not exist, or is empty.

    Raises:
        InputError: there is something already, or the folder can't be made.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.broken = False
        """Whether something could not be written: what came after it could not be read."""
        self.manifest = {"format": FORMAT, "version": VERSION, "complete": False, **manifest}
        try:
            str(folder).encode()  # as Arrow wants it
            folder.mkdir(parents=True, exist_ok=True)
            _check_empty(folder)
            (folder / CALLS).mkdir()  # which only one of several recordings can
            self.save_manifest()  # from now on it is a trace
            self._files = {name: pa.OSFile(str(folder / f"{name}.arrow"), "wb") for name in TABLES}
            self._streams = {name: pa.ipc.new_stream(self._files[name], TABLES[name]) for name in TABLES}
        except FileExistsError as error:
            raise InputError(
                f"{folder}, where there is something already", "a folder that is new or empty"
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            said = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{folder}: {said}", "a folder that can be written") from error
        self._waiting: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES if name != "rows"}
        self._ops: dict[Any, int] = {}
        self._forms: dict[Any, int] = {}
        self._coordinates: dict[Any, int] = {}
        self._table: CoordinateTable | None = None
        self._numbers: list[int] = []
        self._seen: dict[int, tuple[Form, int]] = {}
        self.rows = 0

    # ------------------------------------------------------------------ what rows refer to

    def op(self, op: Op, root: int) -> int:
        """The number of an op, written if it is new."""
        key = root, op.key
        number = self._ops.get(key)
        if number is None:
            number = self._ops[key] = len(self._ops)
            plain = not op.is_boundary
            self._add(
                "ops", root=root, module=op.module, function=op.function, output=op.output, file=op.site.file,
                line=op.site.line, column=op.site.column, definition=op.site.function, chain=op.site.chain,
                code=op.site.code if plain else "", variable=op.site.variable if plain else None,
            )  # fmt: skip
        return number

    def coordinates(self, table: CoordinateTable, base: int) -> np.ndarray:
        """The trace's own number of each of a table's ids, those that are new being written.

        Args:
            base: the index in the trace of the table's first call.
        """
        if table is not self._table:
            self._table, self._numbers, self._seen = table, [], {}
        numbers = self._numbers
        for item in range(len(numbers), len(table.kinds)):
            token, members, place = table.tokens[item], table.members[item], table.places[item]
            mapped = sorted(numbers[member] for member in members)
            key: Any = token or (
                tuple(mapped) if mapped else "mixed" if item == table.mixed else (base, item)
            )
            number = self._coordinates.get(key)
            if number is None:
                number = self._coordinates[key] = len(self._coordinates)
                stream, sample, position = token or (None, -1, -1)
                row, at, columns = place
                self._add(
                    "coordinates", kind=table.kinds[item], stream=stream, sample=sample, position=position,
                    members=mapped, row=row, place=at + (base << 32) if at >= 0 else at, columns=columns,
                )  # fmt: skip
            numbers.append(number)
        return np.asarray([*numbers, WHOLE, NONE], dtype=np.int32)  # the last two are for themselves

    def form(self, form: Form, numbers: np.ndarray) -> int:
        """The number of a form, written if it is new.

        Args:
            numbers: what `coordinates` gave for the table of its ids.
        """
        seen = self._seen.get(id(form))
        if seen is None:
            seen = self._seen[id(form)] = form, self._form(form, form.cells, numbers)
        return seen[1]

    def _form(self, form: Form, cells: Cells, numbers: np.ndarray) -> int:
        row: dict[str, Any] = {
            "status": form.status, "shape": form.shape, "dtype": form.dtype, "floating": form.floating,
            "reason": form.reason, "kind": cells.kind, "ids": numbers[cells.ids], "open_dims": cells.open_dims,
            "open_sizes": cells.open_sizes, "row_dims": cells.row_dims,
            "keys": None if cells.keys is None else cells.keys.reshape(-1),
            "width": np.atleast_1d(np.asarray(form.width, dtype=np.int64)),
        }  # fmt: skip
        key = tuple(value.tobytes() if isinstance(value, np.ndarray) else value for value in row.values())
        number = self._forms.get(key)
        if number is None:
            number = self._forms[key] = len(self._forms)
            self._add("forms", **row)
        return number

    # ------------------------------------------------------------------ rows

    def rows_at_once(self, batch: pa.RecordBatch) -> None:
        """Write rows, after whatever they refer to."""
        self.flush()
        if self.broken:
            return
        with self._one_line():
            self._streams["rows"].write_batch(batch)
        self.rows += batch.num_rows

    def weights(self, root: int, model: nn.Module) -> None:
        """The digests of a model's parameters and buffers."""
        named = [("parameter", *one) for one in model.named_parameters()]
        named += [("buffer", *one) for one in model.named_buffers()]
        for kind, name, value in named:
            plain = value.detach()
            digests = columns = None
            if not (why_unreadable(plain) or plain.is_quantized or plain.layout != torch.strided):
                rows = torch_impl.rows(plain[None] if plain.dim() == 0 else plain, (0,))
                digests = rows.cpu().numpy()
                if plain.dim() == 2 and kind == "parameter":
                    columns = torch_impl.rows(plain, (1,)).cpu().numpy()
            self._add(
                "weights", root=root, name=name, kind=kind, shape=list(value.shape),
                dtype=str(value.dtype).removeprefix("torch."), digests=digests, columns=columns,
            )  # fmt: skip
        self.flush()

    def _add(self, table: str, **row: Any) -> None:
        self._waiting[table].append(row)

    def flush(self) -> None:
        """Write what waits; nothing, where something could not be written before."""
        if self.broken:
            return
        for name, waiting in self._waiting.items():
            if waiting:
                columns = TABLES[name]
                arrays = [pa.array([row[f.name] for row in waiting], f.type) for f in columns]
                with self._one_line():
                    self._streams[name].write_batch(pa.record_batch(arrays, schema=columns))
                waiting.clear()

    # ------------------------------------------------------------------ files of their own

    def call(self, index: int, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """What is known of one call; with what was written of its rows."""
        self.flush()
        self._save(Path(CALLS) / f"{index:06d}.safetensors", tensors, about)

    def value(self, row: int, tensors: dict[str, Tensor]) -> None:
        """A value that was asked for, and whose its elements are."""
        self.flush()
        (self.folder / VALUES).mkdir(exist_ok=True)
        self._save(Path(VALUES) / f"{row:09d}.safetensors", tensors, {})

    def _save(self, name: Path, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        if self.broken:
            return
        data = save(_apart(tensors), metadata={"about": json.dumps(about)})
        target = self.folder / name
        with self._one_line():
            unfinished = target.with_suffix(".unfinished")
            try:
                unfinished.write_bytes(data)
                os.replace(unfinished, target)
            except OSError:
                with suppress(OSError):
                    unfinished.unlink()
                raise

    def save_manifest(self) -> None:
        write_json(self.folder / MANIFEST, self.manifest)

    def close(self, *, complete: bool) -> None:
        """The recording is over."""
        try:
            if not self.broken:
                self.flush()
                for stream in self._streams.values():
                    with self._one_line():
                        stream.close()
        finally:
            for file in self._files.values():
                with suppress(OSError, pa.ArrowException):
                    file.close()
            self.manifest.update(complete=complete and not self.broken, rows=self.rows)
            if self.broken:
                with suppress(InputError):  # there was an error that said why
                    self.save_manifest()
            else:
                self.save_manifest()

    @contextmanager
    def _one_line(self) -> Generator[None]:
        """What the system says of a file, as one line that names the folder; nothing more is written then."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            self.broken = True
            said = getattr(error, "strerror", None) or str(error)
            raise CaptureError(
                f"the trace can't be written to {self.folder}: {said}", "room and permission to write",
                "what was written before can be read",
            ) from error  # fmt: skip


def _check_empty(folder: Path) -> None:
    if any(folder.iterdir()):
        raise FileExistsError


def why_unsaved(value: Tensor) -> str:
    """Why the values of a tensor can't be put into a file of tensors; empty where they can.

    >>> why_unsaved(torch.zeros(2)), why_unsaved(torch.eye(2).to_sparse())
    ('', 'a tensor of the layout torch.sparse_coo')
    """
    if value.layout != torch.strided:
        return f"a tensor of the layout {value.layout}"
    reason = why_unreadable(value)
    if not reason and value.dtype not in _SAVED:
        try:
            save({"": torch.empty(0, dtype=value.dtype)})
        except (KeyError, RuntimeError, ValueError, SafetensorError):
            return f"a tensor of {value.dtype}, which files of tensors don't have"
        _SAVED.add(value.dtype)
    return reason


_SAVED: set[torch.dtype] = set()
"""Dtypes that can be saved."""


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the host none of which shares its memory with another, as files of tensors want them."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.nbytes() != plain.nbytes or storage.data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate
