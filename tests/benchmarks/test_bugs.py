"""The scripts that show what looks like a bug in transformers: short, without forkpoint, and what they say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from zoopage import BUGS

FOLDER = Path(__file__).parents[2] / "benchmarks" / "bugs"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_shows_a_gap_that_is_no_rounding(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    assert "forkpoint" not in text
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    gaps = re.findall(r"([\d.e+-]+) of ([\d.e+-]+)|image: ([\d.e+-]+)", made.stdout)
    assert gaps
    for gap, whole, image in gaps:
        assert float(gap or image) > 1e-5 * float(whole or 1)


def test_the_page_names_each_script() -> None:
    assert {path.name for path in SCRIPTS} == set(re.findall(r"bugs/(\w+\.py)\)", BUGS))
