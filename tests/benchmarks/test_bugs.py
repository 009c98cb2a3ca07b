"""The scripts that show what looks like a bug in transformers: short, without forkpoint, and what they say is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from zoopage import BUGS

FOLDER = Path(__file__).parents[2] / "benchmarks" / "bugs"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_shows_a_gap_that_is_no_rounding(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    assert "forkpoint" not in text
    with torch.random.fork_rng():
        runpy.run_path(str(script), run_name="__main__")
    gaps = re.findall(r"([\d.e+-]+) of ([\d.e+-]+)|image: ([\d.e+-]+)", capsys.readouterr().out)
    assert gaps
    for gap, whole, image in gaps:
        assert float(gap or image) > 1e-5 * float(whole or 1)


def test_the_page_names_each_script() -> None:
    assert {path.name for path in SCRIPTS} == set(re.findall(r"bugs/(\w+\.py)\)", BUGS))
