"""What a row says of what a command wrote: of one result, of several, of factors, of generated text, of an engine."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf

import pytest
from tests.report import samples

import forkpoint as fp
from forkpoint.engines.answer import Cost, EngineComparison
from forkpoint.questions.answers import FactorRow, Factors, Generation
from forkpoint.result import VerdictKind
from forkpoint.support.records import to_plain
from forkpoint.sweeps import Cell, CellOutcome
from forkpoint.sweeps.rows import rows_of

CELL = Cell(
    "padding", {"model": "./m", "prompt": ["Hello"], "revision": "main", "pad-to": 8}, {"torch": "2.13"}
)


def row_of(document, cell=CELL):
    (row,) = rows_of(cell, CellOutcome(1, json.loads(json.dumps(document)), 2.5))
    return row


def test_one_result():
    result = samples.semantic()
    row = row_of(result.to_dict())
    assert (row.model, row.revision, row.question, row.prompt) == ("./m", "main", "padding", "Hello")
    assert json.loads(row.options) == {"pad-to": 8}
    assert (row.verdict, row.mechanism) == (result.verdict.kind, result.verdict.mechanism)
    assert row.by_design is result.verdict.by_design
    assert row.origin == result.origin.op and row.first == result.first.op
    assert (row.max_abs, row.top1_flips, row.tokens) == (
        result.impact.max_abs, result.impact.top1_flips, result.impact.tokens,
    )  # fmt: skip
    assert (row.status, row.seconds, row.torch, row.reason) == (1, 2.5, "2.13", "")


def test_a_result_without_figures():
    data = samples.semantic().to_dict() | {"impact": None, "origin": None, "first": None}
    row = row_of(data)
    assert row.max_abs is row.origin is row.first is row.tokens is None


def test_a_row_for_each_of_several_prompts():
    result = samples.semantic().to_dict()
    document = {"prompts": [{"prompt": "one", "result": result}, {"prompt": "two", "result": result}]}
    cell = Cell("packed", {"model": "m", "prompt": ["one", "two"]})
    assert [row.prompt for row in rows_of(cell, CellOutcome(1, document))] == ["one", "two"]
    (row,) = rows_of(cell, CellOutcome(reason="no"))
    assert row.prompt == '["one", "two"]'
    assert (row.reason, row.status, row.verdict) == ("no", None, None)


def test_a_row_for_each_factor():
    run = samples.semantic().a
    rows = (
        FactorRow("none", "as it is", VerdictKind.ROUNDING, "reduction_order", max_abs=inf, seconds=3.0),
        FactorRow("device", "cuda", reason="no such device"),
    )
    one, two = rows_of(CELL, CellOutcome(0, Factors(run, run, rows).to_dict(), 9.0))
    assert (one.setting, one.verdict, one.max_abs, one.seconds) == (
        "as it is",
        VerdictKind.ROUNDING,
        inf,
        3.0,
    )
    assert (two.setting, two.verdict, two.reason, two.status) == ("cuda", None, "no such device", 0)


@pytest.mark.parametrize("result", [None, samples.semantic()])
def test_generated_text(result):
    row = row_of(Generation("a", "b", 1, (1,), (1,), "x", "x", result=result).to_dict())
    assert row.verdict is (None if result is None else VerdictKind.SEMANTIC)


def test_an_engine():
    found = EngineComparison(
        "vllm", "1", "m", VerdictKind.SEMANTIC, "position_ids", "", (), (), None, Cost(7, 0.1, 0.2, 0.01, 0.03, 1.0, 2), None
    )  # fmt: skip
    row = row_of(found.to_dict())
    assert (row.verdict, row.mechanism, row.max_kl, row.top1_flips, row.tokens) == (
        VerdictKind.SEMANTIC, "position_ids", 0.03, 2, 7,
    )  # fmt: skip
    assert row.max_abs == 0.2 and row.first is None
    assert row_of(replace(found, cost=None).to_dict()).max_abs is None


def test_a_sweep_is_read_again():
    rows = rows_of(CELL, CellOutcome(1, samples.semantic().to_dict()))
    sweep = fp.Sweep("out", rows, 1, 0, {"torch": "2"}, "forkpoint sweep x.toml")
    assert fp.Sweep.from_dict(json.loads(json.dumps(sweep.to_dict()))) == sweep
    assert sweep.to_dict()["status"] == 1
    assert repr(sweep) == "<Sweep: 1 questions, 0 of them without an answer>"
    with pytest.raises(TypeError, match="neither true nor false"):
        bool(sweep)
    assert to_plain(sweep)["rows"][0]["verdict"] == "semantic"


@pytest.mark.parametrize(
    ("statuses", "worst"), [([0, 0], 0), ([0, 3, 1], 1), ([0, 3], 3), ([0, None], 3), ([None, 1], 1)]
)
def test_the_worst_status(statuses, worst):
    rows = tuple(fp.SweepRow("c", "m", "padding", "{}", status=status) for status in statuses)
    assert fp.Sweep("out", rows, len(rows)).status == worst
