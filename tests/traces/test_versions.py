"""The board of two versions: what it shows is what was found, and a fault is planted where it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.traces.versions import Fault, oldest, place_of_fault, planted, table, told
from tests.traces.versions_of import compared

ROOT = Path(__file__).parents[2]
SOURCE = """\
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up = nn.Embedding(9, 8), nn.Linear(8, 8)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        x = torch.relu(x)
        x = self.up(x)
        x = torch.softmax(x, -1)
        return x
"""


def test_the_page_has_the_figures_of_the_file() -> None:
    found = json.loads((ROOT / "benchmarks/results/versions-transformers.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/versions.md").read_text(encoding="utf-8")
    assert table(found) in page
    assert (
        f"transformers {found['old']} against {found['new']}, torch {found['torch'].partition('+')[0]}"
        in page
    )
    assert found["old"] == oldest()
    ops = sum(about["ops"] for about in found["models"].values())
    matched = sum(sum(about["matched"].values()) for about in found["models"].values())
    assert f"Of {ops:,} ops {matched:,} are matched; {ops - matched} are in one version alone" in page
    for about in found["models"].values():
        if about["first"] is not None:
            assert all(f"`{about['first'][key]}`" in page for key in ("source", "code", "source_b", "code_b"))


def test_what_is_told_of_two_traces_is_whole(tmp_path: Path) -> None:
    result = compared(tmp_path, SOURCE, f"# moved\n{SOURCE}".replace("x = self.up(x)", "x = self.up(x * 1)"))
    _, found, wrong = told(tmp_path / "trace-a", tmp_path / "trace-b")
    assert not wrong and found["ops"] == len(result.ops) and found["changed_lines"] == 1
    assert found["matched"]["text"] and sum(found["alone"].values()) == len(result.unmatched_b) == 1
    place = place_of_fault(result)
    assert place is not None and place[1]["source"] == place[0].source_b


def test_a_fault_moves_one_element_by_one_ulp_where_it_is_asked_for() -> None:
    x, line = torch.ones(2, 2).t(), relus.__code__.co_firstlineno + 1
    with planted({"function": "relu", "source": f"test_versions.py:{line}", "nth": 1}):
        found = relus(x)
    assert [bool(torch.equal(one, x)) for one in found] == [True, False, True]
    assert found[1].reshape(-1).tolist() == [
        torch.nextafter(x[0, 0], torch.tensor(2.0)).item(),
        1.0,
        1.0,
        1.0,
    ]


def relus(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.relu(x) for _ in range(3)]


def test_a_fault_that_was_not_planted_is_an_error() -> None:
    with (
        pytest.raises(RuntimeError, match="was not planted"),
        planted({"function": "relu", "source": "no.py:1", "nth": 0}),
    ):
        torch.relu(torch.ones(2))
    assert Fault("relu", "no.py:1", 0).left == 0
