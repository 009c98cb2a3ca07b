"""Every case of the corpus: that it is what it claims to be, and that the verdict says so."""

from __future__ import annotations

import re

import pytest

from . import CASES, Case
from .judge import judge
from .truth import prove

ASKED = [case for case in CASES.values() if not case.pending]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Which bits differ by rounding depends on how a kernel splits its work."""
    import torch

    torch.set_num_threads(1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_truth(case: Case) -> None:
    """Plain forward passes, without forkpoint: a case that fails here is wrong, not the library."""
    prove(case)


@pytest.mark.parametrize("case", ASKED, ids=[case.id for case in ASKED])
def test_verdict(case: Case) -> None:
    """The verdict, where it has its cause, and that it is said in Chinese: in one test, as workers share no verdicts."""
    outcome = judge(case)
    assert outcome.right, outcome.complaint
    assert outcome.origin_right is not False, outcome.origin_complaint
    for statement in outcome.chinese:
        assert said_in_chinese(statement), statement


def said_in_chinese(statement: str) -> bool:
    """Whether it holds Chinese characters, a label's apart, and no clause of English beside names and numbers."""
    said = statement.partition(": ")[2] or statement
    return bool(re.search(r"[\u4e00-\u9fff]", said)) and not re.search(r"\b[a-z]+ (?:[a-z]+ ){3,}", said)


def test_english_is_found() -> None:
    assert said_in_chinese("原因: 掩码 attention_mask 不同")
    assert not said_in_chinese("原因: the mask differs")
    assert not said_in_chinese("原因: 掩码 is not what it was before")
