"""The page of architectures is what the script makes of its record."""

from __future__ import annotations

import json

from results import RESULTS
from zoopage import EXPLAINED, PAGE, page


def test_the_page_has_the_figures_of_the_results() -> None:
    data = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(data), "python benchmarks/architectures.py"
    assert len({key.split(" ")[0] for key, row in data["rows"].items() if "verdict" in row}) >= 60


def test_what_is_undetermined_is_explained_and_little_is_not_compared() -> None:
    rows = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))["rows"]
    asked = {key: row for key, row in rows.items() if "verdict" in row}
    told = {
        key
        for key, row in asked.items()
        if row["verdict"] == "undetermined" or (row["verdict"] == "semantic" and row["mechanism"] is None)
    }
    assert told == set(EXPLAINED)
    assert sum(row["missing_floats"] for row in asked.values()) < 0.01 * sum(
        row["floats"] for row in asked.values()
    )
