"""Whole reports against the texts in tests/gold; FORKPOINT_UPDATE_GOLD=1 writes them anew."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console
from tests.report import samples

from forkpoint.report import render, to_text
from forkpoint.result import Result

GOLD = Path(__file__).parents[1] / "gold"

CASES = [
    ("identical", "en", 100),
    ("rounding", "en", 100),
    ("rounding", "en", 60),
    ("rounding", "zh", 100),
    ("semantic", "en", 100),
    ("semantic", "zh", 80),
    ("inputs", "en", 100),
    ("unprobed", "en", 80),
    ("int8", "en", 100),
    ("int8", "zh", 60),
    ("decode", "en", 100),
]


def agree_with_gold(name: str, text: str) -> None:
    path = GOLD / f"{name}.txt"
    if os.environ.get("FORKPOINT_UPDATE_GOLD") == "1":
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("case", "lang", "width"), CASES)
def test_report(case: str, lang: str, width: int) -> None:
    result: Result = getattr(samples, case)()
    agree_with_gold(f"report-{case}-{lang}-{width}", to_text(result, lang=lang, width=width))


def test_every_op() -> None:
    console = Console(file=io.StringIO(), width=110)
    with console.capture() as captured:
        render(samples.rounding(), console, ops=True)
    text = captured.get()
    agree_with_gold("report-ops-en-110", text[text.index("Every op") :].rstrip("\n"))
