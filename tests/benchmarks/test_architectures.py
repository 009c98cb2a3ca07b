"""The page of architectures is what the script makes of its record."""

from __future__ import annotations

import json

from results import RESULTS
from zoopage import PAGE, page


def test_the_page_has_the_figures_of_the_results() -> None:
    data = json.loads((RESULTS / "architectures.json").read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == page(data), "python benchmarks/architectures.py"
    assert len({key.split(" ")[0] for key, row in data["rows"].items() if "verdict" in row}) >= 60
