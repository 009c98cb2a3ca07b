"""Tables and drawings against the texts in tests/gold; FORKPOINT_UPDATE_GOLD=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.benchmarks import reports

import plot
import results
import table

GOLD = Path(__file__).parents[1] / "gold"


@pytest.mark.parametrize("name", ["peers", "alone"])
def test_tables(name: str) -> None:
    text = table.section("NAME", getattr(reports, name)()) + "\n"
    path = GOLD / f"benchmarks-{name}.md"
    if os.environ.get("FORKPOINT_UPDATE_GOLD") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_a_version_has_a_column_and_a_measurement_a_row() -> None:
    case = {"on": "CPU", "with_c": True, "what": "pair", "tokens": 4093, "version": "before", "ratio": 0.967}
    case |= {"ratio_least": 0.5, "ratio_most": 1.5}
    other = case | {"with_c": False, "what": "verdict", "version": "held.c", "ratio": 1.005}
    about = {"date": "today", "machine": "one", "versions": {"torch": "2"}, "models": {"CPU": "a Llama"}}
    rows = table.parts(about | {"cases": [case, other]}).splitlines()[-4:]
    assert rows == [
        "|  | before | held.c |",
        "| --- | --: | --: |",
        "| CPU, 4,093 tokens | 0.97 (0.50–1.50) |  |",
        "| CPU, without C, first verdict |  | 1.00 (0.50–1.50) |",
    ]


def test_only_what_is_between_the_markers_changes() -> None:
    page = f"before {table.BEGIN}\nold\\1\n{table.END} after"
    assert table.updated(page, r"new \1") == f"before {table.BEGIN}\n\nnew \\1\n\n{table.END} after"
    assert table.updated(table.updated(page, "x"), "x") == table.updated(page, "x")


@pytest.mark.parametrize("page", ["", table.BEGIN, table.END + table.BEGIN, table.BEGIN + table.END * 2])
def test_a_page_without_markers_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        table.updated(page, "new")


def test_the_documentation_has_the_figures_of_the_results() -> None:
    reports = results.load()
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.updated(page, table.tables()) == page, "python benchmarks/table.py"
    for name, report in reports.items():
        drawn = (results.DOCS / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn == plot.drawing(report), "python benchmarks/plot.py"
    assert {path.stem for path in results.DOCS.glob("tracing-*.svg")} == set(reports)


def test_a_drawing_has_a_bar_for_each_ratio() -> None:
    root = ET.fromstring(plot.drawing(reports.peers()))
    tags = [element.tag.rpartition("}")[2] for element in root.iter()]
    bars = (
        6 + 2
    )  # at 509 and at 4,093 tokens: what has a ratio, with the physical floor, without the plain pair
    assert tags.count("rect") == 1 + bars
    assert tags.count("polyline") == 2 * 3
    said = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "37.0×" in said
    width = float(root.attrib["width"])
    assert all(0 <= float(e.attrib["x"]) <= width for e in root.iter() if "x" in e.attrib)
    ET.fromstring(plot.drawing(reports.alone()))
