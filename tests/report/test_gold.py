"""Whole reports against the texts in tests/gold; FORKPOINT_UPDATE_GOLD=1 writes them anew."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console
from tests.report import samples

from forkpoint.report import render, to_text
from forkpoint.report.words import LANGUAGES, Words
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


VERDICTS = ["identical", "rounding", "semantic", "nondeterminism", "inputs", "undetermined"]


def agree_with_gold(name: str, text: str) -> None:
    path = GOLD / f"{name}.txt"
    if os.environ.get("FORKPOINT_UPDATE_GOLD") == "1":
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("case", "lang", "width"), CASES)
def test_report(case: str, lang: str, width: int) -> None:
    result: Result = getattr(samples, case)()
    agree_with_gold(f"report-{case}-{lang}-{width}", to_text(result, lang=lang, width=width))


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("case", VERDICTS)
def test_what_a_terminal_shows(case: str, lang: str) -> None:
    """The short report of each verdict, and the whole one."""
    result: Result = getattr(samples, case)()
    for name, details in (("short", False), ("details", True)):
        console = Console(file=io.StringIO(), width=80)
        with console.capture() as captured:
            render(result, console, details=details, lang=lang)
        agree_with_gold(f"terminal-{case}-{name}-{lang}-80", captured.get().rstrip("\n"))


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("case", VERDICTS)
def test_the_answer_stands_in_the_first_screen(case: str, lang: str) -> None:
    """What it is, whether it matters and what to do in 25 lines; where, right behind."""
    result: Result = getattr(samples, case)()
    words = Words(lang)
    lines = to_text(result, details=False, lang=lang, width=80).split("\n")
    impact = lines.index("要不要紧" if lang == "zh" else "Does it matter")
    end = lines.index("", impact)
    assert any(words(f"kind.{case}") in line for line in lines[:end])
    assert end <= 25
    assert len(lines) <= 32


def test_every_op() -> None:
    console = Console(file=io.StringIO(), width=110)
    with console.capture() as captured:
        render(samples.rounding(), console, ops=True)
    text = captured.get()
    agree_with_gold("report-ops-en-110", text[text.index("Every op") :].rstrip("\n"))
