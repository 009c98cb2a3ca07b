"""Reading a trace: as far as it was written, without the models and on any machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.labels import Label, Labels
from forkpoint.capture.sites import Site
from forkpoint.capture.trace import WHOLE, Op
from forkpoint.errors import InputError
from forkpoint.explain.session import Results
from forkpoint.runs.layout import Coordinates, Layout
from forkpoint.runs.run import Run
from forkpoint.traces.elsewhere import copied, is_elsewhere
from forkpoint.traces.schema import CALLS, FORMAT, MANIFEST, TABLES, VALUES, VERSION
from forkpoint.traces.stored import StoredTrace

_EXPECTED = "a folder that forkpoint record or fp.record wrote"


@dataclass(frozen=True)
class RecordedSite(Site):
    """A place in the source of another machine: the line's text was recorded with it."""

    text: str = ""
    assigns: str | None = None

    @property
    def code(self) -> str:
        return self.text

    @property
    def variable(self) -> str | None:
        return self.assigns


class RecordedRun(Run):
    """The inputs and the layout of a run whose model is elsewhere."""

    def __init__(self, calls: tuple[dict[str, Any], ...], layout: Layout, name: str) -> None:
        self.model, self.call, self.name = None, None, name
        self.calls, self.layout, self.layout_is_read = calls, layout, False
        self.returns = ""

    @property
    def roots(self) -> tuple[nn.Module, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ()

    @property
    def modules(self) -> nn.Module | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return None


@dataclass(frozen=True)
class WeightDigests:
    """The digests of one parameter or buffer.

    Attributes:
        digests: one for each index of its first dimension.
        columns: of a matrix, one for each index of the second; None where they were not recorded.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    digests: np.ndarray | None
    columns: np.ndarray | None = None


@dataclass
class TraceFolder:
    """A trace that was read.

    Attributes:
        manifest: what ran, and where.
        complete: whether the recording came to its end.
        left_out: by result, why its values are not in the trace.
        failed: by the call that ended in an error, which.
        remarks: what is to be known of how it was recorded.
        values: files of the values that were asked for, by row.
    """

    folder: Path
    manifest: dict[str, Any]
    run: RecordedRun
    trace: StoredTrace
    labels: Labels
    results: Results
    weights: dict[str, WeightDigests]
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    failed: dict[int, str] = field(default_factory=dict[int, str])
    remarks: list[str] = field(default_factory=list[str])
    values: dict[int, Path] = field(default_factory=dict[int, Path])
    copied: tempfile.TemporaryDirectory[str] | None = None
    """Where what was copied from elsewhere lies, until `close`."""

    def close(self) -> None:
        """Remove what was copied from elsewhere; no value can be read any more."""
        if self.copied is not None:
            self.copied.cleanup()

    @property
    def complete(self) -> bool:
        return self.manifest["complete"] is True

    def value(self, row: int) -> tuple[Tensor, Label | None] | None:
        """A value that was kept, and whose its elements are.

        Raises:
            InputError: its file can't be read, or is that of another value.
        """
        path = self.values.get(row)
        if path is None:
            return None
        with _one_line(path):
            tensors, _ = _tensors_of(path)
            value, event = tensors["value"], self.trace.events[row]
            if (str(value.dtype).removeprefix("torch."), tuple(value.shape)) != (event.dtype, event.shape):
                raise ValueError("a value of another shape or dtype than its row's")
            return value, _label_of(self.labels, tensors.get("q"), tensors.get("k"), value)


def read(folder: str | Path, name: str) -> TraceFolder:
    """Read a trace.

    Args:
        folder: a folder, or where fsspec finds one (`s3://…`), which is copied first.
        name: what to call its run.

    Raises:
        InputError: it is no trace, of another version of the format, or damaged.
    """
    copy = copied(str(folder), _EXPECTED) if is_elsewhere(folder) else None
    path = Path(folder if copy is None else copy.name)
    try:
        with _one_line(folder):
            return replace(_read(path, _manifest(path), name), copied=copy)
    except InputError:
        if copy is not None:
            copy.cleanup()
        raise


@contextmanager
def _one_line(what: str | Path) -> Generator[None]:
    """What is wrong with a file of a trace, as one line."""
    try:
        yield
    except (
        pa.ArrowException,
        SafetensorError,
        OSError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ) as error:
        said = str(error) or type(error).__name__
        raise InputError(f"{what}, a trace that can't be read: {said}", _EXPECTED) from error


def _read(path: Path, manifest: dict[str, Any], name: str) -> TraceFolder:
    coordinates = _table(path, "coordinates")
    calls, layout, ids = _calls(path, manifest)
    table = _coordinate_table(coordinates, layout, ids)
    trace = _trace(path, manifest, table)
    trace.lengths = [frozenset(map(int, about["lengths"])) for _, (_, about) in calls]
    labels = Labels(table)
    results, left_out = _results(calls, labels)
    run = RecordedRun(tuple(inputs for inputs, _ in calls), layout, name)
    files = {int(file.stem): file for file in sorted((path / VALUES).glob("*.safetensors"))}
    values = {
        row: file for row, file in files.items() if row < len(trace)
    }  # else the row was not written any more
    abouts = [about for _, (_, about) in calls]
    failed = {call: about["failed"] for call, about in enumerate(abouts) if about.get("failed")}
    return TraceFolder(
        path, manifest, run, trace, labels, results, _weights(path, manifest), left_out, failed, _remarks(abouts, manifest), values,
    )  # fmt: skip


def _remarks(abouts: list[dict[str, Any]], manifest: dict[str, Any]) -> list[str]:
    """What was not looked into, and what ran in another way than it would have."""
    prefixes = [str(model["prefix"]) for model in manifest["models"]]
    unseen = dict.fromkeys(
        ".".join(part for part in (prefixes[about["root"]], path) if part) or "(model)"
        for about in abouts
        for path in about.get("opaque", ())
    )
    remarks = [f"not looked into, since that would change its bits: {path}" for path in unseen]
    if any(about.get("uncompiled") for about in abouts):
        remarks.append("compiled functions were traced as the Python that they were made from")
    return [*remarks, *_noted_in(manifest)]


def _noted_in(manifest: dict[str, Any]) -> list[str]:
    """What whoever recorded should know, by a manifest; traces of earlier versions say nothing."""
    noted = manifest.get("remarks")
    return [str(remark) for remark in noted] if isinstance(noted, list) else []


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}, which has no {MANIFEST} that can be read", _EXPECTED) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}, which is no trace", _EXPECTED)
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{path}, a trace of format version {manifest.get('version')!r}", f"version {VERSION}",
            "record it again with this forkpoint, or compare it with the one that wrote it",
        )  # fmt: skip
    for name, kind in _FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise InputError(f"{path}: {MANIFEST} without {name}", _EXPECTED)
    for model in manifest["models"]:
        sound = isinstance(model, dict) and isinstance(model.get("prefix"), str)
        if not sound or not isinstance(model.get("configuration"), dict):
            raise InputError(f"{path}: {MANIFEST} with a model that is none", _EXPECTED)
    return manifest


_FIELDS: dict[str, type] = {
    "complete": bool, "versions": dict, "settings": dict, "models": list, "values": list,
}  # fmt: skip


def _table(path: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a small table, as far as they were written."""
    return [row for batch in _batches(path, name) for row in batch.to_pylist()]


def _batches(path: Path, name: str) -> Generator[pa.RecordBatch]:
    """The batches of a table, as far as they were written whole."""
    file = path / f"{name}.arrow"
    if not file.exists():
        if not _manifest(path)["complete"]:
            return
        raise FileNotFoundError(f"no {name}.arrow")
    with suppress(pa.ArrowInvalid, OSError, StopIteration), pa.OSFile(str(file), "rb") as opened:
        stream = pa.ipc.open_stream(opened)
        schema = TABLES[name]
        earlier = pa.schema([field for field in schema if field.name not in _ADDED.get(name, ())])
        if stream.schema not in (schema, earlier):
            raise ValueError(f"{name}.arrow has other columns")
        while True:
            batch = stream.read_next_batch()
            batch.validate(full=True)
            _check_cells(batch, name)
            yield batch


_ADDED = {"weights": ("columns",)}
"""By table, columns that traces have not which were written before there were any."""

_MAY_LACK = {
    "ops": ("variable",), "coordinates": ("stream",), "forms": ("keys",), "rows": ("digests", "flat"), "weights": ("digests", "columns"),
}  # fmt: skip
"""By table, the columns in which a row may have nothing."""


def _check_cells(batch: pa.RecordBatch, name: str) -> None:
    for column in batch.schema.names:
        if batch.column(column).null_count and column not in _MAY_LACK[name]:
            raise KeyError(f"{name}.arrow has a row without {column}")


def _tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(str(path), "pt") as file:
        about = json.loads((file.metadata() or {}).get("about", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - it is no mapping


Call = tuple[dict[str, Any], tuple[dict[str, Tensor], dict[str, Any]]]


def _calls(path: Path, manifest: dict[str, Any]) -> tuple[list[Call], Layout, list[dict[str, np.ndarray]]]:
    """Of each call its inputs and all else that is known; the layout; the coordinates' numbers of its columns."""
    calls: list[Call] = []
    entries: list[dict[str, Coordinates]] = []
    ids: list[dict[str, np.ndarray]] = []
    for file in sorted((path / CALLS).glob("*.safetensors")):
        tensors, about = _tensors_of(file)
        _check_about(about, len(manifest["models"]))
        inputs = {n.removeprefix("input."): v for n, v in tensors.items() if n.startswith("input.")}
        streams = sorted({n.split(".")[1] for n in tensors if n.startswith("layout.")}, reverse=True)
        entries.append(
            {s: Coordinates(tensors[f"layout.{s}.sample"], tensors[f"layout.{s}.position"]) for s in streams}
        )
        ids.append({s: tensors[f"layout.{s}.ids"].numpy() for s in streams})
        calls.append((inputs, (tensors, about)))
    if not calls and manifest["complete"]:
        raise ValueError("it holds no call of a model")
    names = {int(sample): name for sample, name in manifest.get("names", {}).items()}
    return calls, Layout(entries, names), ids


def _check_about(about: Any, models: int) -> None:
    """What the metadata of a call say is of the kinds that it should be; what recordings of before lack may lack."""
    texts = [*about["results"], *about["left_out"], *about["left_out"].values(), *about.get("opaque", ())]
    texts.append(about.get("failed", ""))
    numbers = [about["root"], *about["lengths"]]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a call whose metadata are of another kind")
    if not 0 <= about["root"] < models:
        raise IndexError("a call of a model that there is not")


def _coordinate_table(
    rows: list[dict[str, Any]], layout: Layout, ids: list[dict[str, np.ndarray]]
) -> CoordinateTable:
    """The table with the numbers that the trace has."""
    tokens = [(r["stream"], r["sample"], r["position"]) if r["stream"] else None for r in rows]
    members = [frozenset(r["members"]) for r in rows]
    places = [(r["row"], r["place"], r["columns"]) for r in rows]
    if any(not 0 <= member < index for index, group in enumerate(members) for member in group):
        raise ValueError("a set of coordinates that there are not")
    for entry in ids:
        for grid in entry.values():
            _check_ids(grid, len(rows))
    return CoordinateTable.of(layout, [r["kind"] for r in rows], tokens, members, places, ids)


def _trace(path: Path, manifest: dict[str, Any], table: CoordinateTable) -> StoredTrace:
    prefixes = [str(model["prefix"]) for model in manifest["models"]]
    ops = [_op(row, prefixes) for row in _table(path, "ops")]
    return StoredTrace(table, ops, _batches(path, "forms"), _batches(path, "rows"))


def _op(row: dict[str, Any], prefixes: list[str]) -> Op:
    parts = prefixes[row["root"]], row["module"]
    site = RecordedSite(
        row["file"], row["line"], row["column"], row["chain"], row["definition"], row["code"], row["variable"]
    )
    return Op(".".join(part for part in parts if part), row["function"], site, row["output"])


def _check_ids(ids: np.ndarray, items: int) -> None:
    if ids.dtype != np.int32 or (ids.size and not (ids.min() >= WHOLE and ids.max() < items)):
        raise ValueError("a coordinate that there is not")


def _results(calls: list[Call], labels: Labels) -> tuple[Results, dict[str, str]]:
    results: Results = []
    left_out: dict[str, str] = {}
    for _, (tensors, about) in calls:
        returned: dict[str, tuple[Tensor, Label | None]] = {}
        for name in about["results"]:
            value = tensors.get(f"result.{name}")
            if value is not None:
                q, k = tensors.get(f"label.{name}.q"), tensors.get(f"label.{name}.k")
                returned[name] = value, _label_of(labels, q, k, value)
        results.append(returned)
        left_out.update(about["left_out"])
    return results, left_out


def _label_of(labels: Labels, q: Tensor | None, k: Tensor | None, value: Tensor) -> Label | None:
    """The label of a value, as it was recorded."""
    if q is None:
        return None
    arrays = [None if ids is None else ids.numpy() for ids in (q, k)]
    for ids in arrays:
        if ids is not None:
            _check_ids(ids, len(labels.table.kinds))
            if len(ids.shape) != value.dim() or np.broadcast_shapes(ids.shape, value.shape) != value.shape:
                raise ValueError("a label of another shape than its value's")
    return labels.make(*arrays)  # type: ignore[arg-type]


def _weights(path: Path, manifest: dict[str, Any]) -> dict[str, WeightDigests]:
    """The weights of all models by name, each once."""
    weights: dict[str, WeightDigests] = {}
    prefixes = [str(model["prefix"]) for model in manifest["models"]]
    for row in _table(path, "weights"):
        name = ".".join(part for part in (prefixes[row["root"]], row["name"]) if part)
        rows, columns = (
            None if row.get(key) is None else np.asarray(row[key], dtype=np.int64)
            for key in ("digests", "columns")
        )
        weights.setdefault(
            name, WeightDigests(name, row["kind"], tuple(row["shape"]), row["dtype"], rows, columns)
        )
    return weights


__all__ = ["RecordedRun", "TraceFolder", "WeightDigests", "read"]
