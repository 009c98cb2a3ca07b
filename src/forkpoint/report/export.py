"""A result's table of ops for other programs: CSV, Parquet, and the graph and node data of Model Explorer."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkpoint.errors import InputError
from forkpoint.result import OpRow
from forkpoint.support.files import write_atomically, write_bytes, write_json

if TYPE_CHECKING:
    from forkpoint.result import Result

SUFFIXES = (".csv", ".parquet")
_COLOURS = {
    "equal": "#d3ead9", "view": "#eef1f5", "differs": "#ffb3ad", "only in a": "#fbe3b5", "only in b": "#fbe3b5",
    "not compared": "#fbe3b5",
}  # fmt: skip
"""By how an op compared; of Model Explorer's nodes."""
_GRAPH = "forkpoint"


def write_table(result: Result, path: Path) -> None:
    """Write a row for each op, in the order of the result, with the columns of `OpRow`; shapes as JSON.

    Args:
        result: what `compare` returned.
        path: the file, `.csv` or `.parquet`.

    Raises:
        InputError: another suffix, no pyarrow for Parquet, or the file can't be written.
    """
    names = [field.name for field in fields(OpRow)]
    rows = [[_plain(getattr(row, name)) for name in names] for row in result.ops]
    match path.suffix.lower():
        case ".csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(names)
            writer.writerows([_cell(value) for value in row] for row in rows)
            write_atomically(path, text.getvalue())
        case ".parquet":
            write_bytes(path, _parquet(names, rows))
        case _:
            raise InputError(f"{path}", "a name that ends with .csv or .parquet")


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, tuple) else value


def _cell(value: Any) -> Any:
    """A cell that a spreadsheet takes for no formula, as OWASP has it: what begins like one gets a quote."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _parquet(names: list[str], rows: list[list[Any]]) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("Parquet without pyarrow", "pyarrow, or a .csv", "pip install pyarrow") from None
    kinds = {"int": pa.int64(), "bool": pa.bool_()}
    types = {field.name: kinds.get(str(field.type), pa.string()) for field in fields(OpRow)}
    columns = {name: pa.array([row[index] for row in rows], types[name]) for index, name in enumerate(names)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


# ---------------------------------------------------------------------- Model Explorer


def write_model_explorer(result: Result, path: Path) -> None:
    """Write a graph and, beside it, node data, as Model Explorer (ai-edge-model-explorer) opens them.

    `model.json` has the ops in their modules, each after the one that ran before it (a result does not hold which value
    went where), and `model.nodes.json` the share of coordinates that differ at each.

    Raises:
        InputError: a file can't be written.
    """
    nodes: list[dict[str, Any]] = []
    results: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(result.ops):
        nodes.append(_node(index, row))
        share = row.differing / row.compared if row.compared else 0.0
        results[str(index)] = {"value": share, "bgColor": _COLOURS.get(row.status, "#ffffff")}
    write_json(path, {"label": path.stem, "graphs": [{"id": _GRAPH, "nodes": nodes}]})
    write_json(node_data_beside(path), {_GRAPH: {"results": results}})


def node_data_beside(path: Path) -> Path:
    """Where the node data of a graph are.

    >>> node_data_beside(Path("model.json")).name
    'model.nodes.json'
    """
    return path.with_name(f"{path.stem}.nodes.json")


def _node(index: int, row: OpRow) -> dict[str, Any]:
    facts = {
        "op": row.op, "compares": row.status, "variable": row.variable, "source": row.source, "code": row.code,
        "shape A": row.shape_a, "shape B": row.shape_b, "dtype A": row.dtype_a, "dtype B": row.dtype_b,
        "coordinates that differ": f"{row.differing} of {row.compared}" if row.compared else None, "why": row.reason,
    }  # fmt: skip
    return {
        "id": str(index),
        "label": row.function,
        "namespace": row.module.replace(".", "/"),
        "attrs": [{"key": key, "value": str(_plain(value))} for key, value in facts.items() if value],
        "incomingEdges": [{"sourceNodeId": str(index - 1)}] if index else [],
    }
