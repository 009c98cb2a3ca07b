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
    outcome = judge(case)
    assert outcome.right, outcome.complaint


@pytest.mark.parametrize("case", [c for c in ASKED if c.origin], ids=[c.id for c in ASKED if c.origin])
def test_origin(case: Case) -> None:
    outcome = judge(case)
    assert outcome.origin_right is not False, outcome.origin_complaint


@pytest.mark.parametrize("case", ASKED, ids=[case.id for case in ASKED])
def test_the_verdict_is_said_in_chinese(case: Case) -> None:
    """Each statement holds Chinese characters, a label's apart, and no clause of English beside names and numbers."""
    for statement in judge(case).chinese:
        said = statement.partition(": ")[2] or statement
        assert re.search(r"[\u4e00-\u9fff]", said), statement
        assert not re.search(r"\b[a-z]+ (?:[a-z]+ ){3,}", said), statement
