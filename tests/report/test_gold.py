"""Whole reports against the texts in tests/gold; FORKPOINT_UPDATE_GOLD=1 writes them anew.

Those of each verdict are of comparisons that are made here (tests/report/tiny.py); others are of results made by hand, for what
no small model shows.
"""

from __future__ import annotations

import io
import os
import re
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console
from tests.report import samples, tiny

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
    ("unprobed", "zh", 80),
    ("int8", "en", 80),
    ("int8", "en", 100),
    ("int8", "zh", 60),
    ("int8", "zh", 80),
    ("decode", "en", 100),
    ("backward", "en", 100),
    ("backward", "zh", 80),
]


VERDICTS = ["identical", "rounding", "semantic", "nondeterminism", "inputs", "undetermined"]
REPORTS = [*VERDICTS, "nan"]
"""Those of values that are not finite read otherwise."""


def agree_with_gold(name: str, text: str) -> None:
    path = GOLD / f"{name}.txt"
    if os.environ.get("FORKPOINT_UPDATE_GOLD") == "1":
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("case", "lang", "width"), CASES)
def test_report(case: str, lang: str, width: int) -> None:
    result: Result = getattr(samples, case)()
    agree_with_gold(f"report-{case}-{lang}-{width}", to_text(result, lang=lang, width=width))


VOLATILE = {
    r"python \S+, torch \S+, transformers \S+, forkpoint \S+": "python …, torch …, transformers …, forkpoint …",
    r"(own rounding makes|自身的舍入为) \d\.\de-\d\d": r"\1 …",
}
"""All in a report of these models that is not the same everywhere: versions, and what float64's sums of products round."""
compared = cache(tiny.compared)


def shown(kind: str, lang: str, *, details: bool) -> str:
    """What a terminal of 80 columns shows of a comparison."""
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as captured:
        render(compared(kind), console, details=details, lang=lang)
    text = captured.get().rstrip("\n")
    for pattern, put in VOLATILE.items():
        text = re.sub(pattern, put, text)
    return text


@pytest.mark.parametrize("kind", VERDICTS)
def test_each_verdict_is_of_a_comparison_that_was_made(kind: str) -> None:
    found = compared(kind)
    assert found.verdict.kind.value == kind
    assert found.verdict.probed


def test_the_report_of_nan_is_of_one_that_was_made() -> None:
    assert compared("nan").verdict.mechanism == "nan"


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", REPORTS)
def test_what_a_terminal_shows(kind: str, lang: str) -> None:
    """The short report of each verdict, and the whole one."""
    agree_with_gold(f"terminal-{kind}-short-{lang}-80", shown(kind, lang, details=False))
    agree_with_gold(f"terminal-{kind}-details-{lang}-80", shown(kind, lang, details=True))


@pytest.mark.parametrize("kind", REPORTS)
def test_a_report_in_chinese_has_no_english_sentence(kind: str) -> None:
    """Names, code and versions are the same in every language; words in a row are English."""
    text = shown(kind, "zh", details=True)
    said = [line for line in text.splitlines() if "tiny.py" not in line and "hidden" not in line]
    assert [line for line in said if re.search(r"\b[a-z]{2,} [a-z]{2,} [a-z]{2,}\b", line)] == []


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("case", VERDICTS)
def test_the_answer_stands_in_the_first_screen(case: str, lang: str) -> None:
    """What it is, whether it matters and what to do in 25 lines; where, right behind."""
    words = Words(lang)
    for result in (compared(case), getattr(samples, case)()):
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
