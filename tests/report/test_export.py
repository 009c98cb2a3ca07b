"""The table of ops in CSV and Parquet, and Model Explorer's files."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import fields, replace

import pytest
from tests.report import samples
from typer.testing import CliRunner

from forkpoint.cli.app import app
from forkpoint.errors import InputError
from forkpoint.report.export import write_model_explorer, write_table
from forkpoint.result import OpRow

RESULT = samples.semantic()
NAMES = [field.name for field in fields(OpRow)]


def test_a_row_of_csv_for_each_op(tmp_path):
    write_table(RESULT, tmp_path / "ops.csv")
    with (tmp_path / "ops.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == NAMES
    assert len(rows) == len(RESULT.ops)
    for row, op in zip(rows, RESULT.ops, strict=True):
        found = dict(zip(head, row, strict=True))
        assert found["op"] == op.op
        assert found["differing"] == str(op.differing)
        assert (tuple(json.loads(found["shape_a"])) if found["shape_a"] else None) == op.shape_a


def test_no_cell_is_a_formula(tmp_path):
    odd = replace(RESULT, ops=(replace(RESULT.ops[0], code='=HYPERLINK("x")', variable="@x", op="a,b\n"),))
    write_table(odd, tmp_path / "ops.csv")
    with (tmp_path / "ops.csv").open(newline="") as file:
        _, row = csv.reader(file)
    found = dict(zip(NAMES, row, strict=True))
    assert (found["code"], found["variable"], found["op"]) == ('\'=HYPERLINK("x")', "'@x", "a,b\n")


def test_parquet_has_types(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(RESULT, tmp_path / "ops.parquet")
    table = parquet.read_table(tmp_path / "ops.parquet")
    assert table.column_names == NAMES
    assert table["differing"].to_pylist() == [op.differing for op in RESULT.ops]
    assert table["floating"].to_pylist() == [op.floating for op in RESULT.ops]
    assert table["variable"].to_pylist() == [op.variable for op in RESULT.ops]


def test_parquet_without_pyarrow_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"Parquet without pyarrow; .*pip install pyarrow"):
        write_table(RESULT, tmp_path / "ops.parquet")
    with pytest.raises(InputError, match=r"\.csv or \.parquet"):
        write_table(RESULT, tmp_path / "ops.xlsx")
    assert not list(tmp_path.iterdir())


def test_model_explorer_gets_a_graph_and_node_data(tmp_path):
    write_model_explorer(RESULT, tmp_path / "model.json")
    graph = json.loads((tmp_path / "model.json").read_text())["graphs"][0]
    data = json.loads((tmp_path / "model.nodes.json").read_text())[graph["id"]]["results"]
    assert {node["id"] for node in graph["nodes"]} == data.keys()
    for node, op in zip(graph["nodes"], RESULT.ops, strict=True):
        assert node["namespace"] == op.module.replace(".", "/")
        assert all(isinstance(attribute["value"], str) for attribute in node["attrs"])
        assert data[node["id"]]["value"] == (op.differing / op.compared if op.compared else 0)
        assert all(edge["sourceNodeId"] in data for edge in node["incomingEdges"])


def test_the_command_writes_them(tmp_path):
    RESULT.to_json(tmp_path / "r.json")
    given = [
        "report",
        str(tmp_path / "r.json"),
        "--table",
        str(tmp_path / "o.csv"),
        "--model-explorer",
        str(tmp_path / "m.json"),
    ]
    assert CliRunner().invoke(app, given).exit_code == 1
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "o.csv", "m.json", "m.nodes.json"}
