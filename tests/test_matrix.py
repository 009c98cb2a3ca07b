"""The list of what is tried together, and of the tests that are run for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests import matrix
from tests.matrix import ROOT, Site, cells, lower_bound, tried
from tests.native import sanitized

from forkpoint.capture.shortcuts import CHECKED_PYTHONS, CHECKED_TORCHES


def test_every_python_is_listed_with_each_torch_there_is_for_it(tmp_path):
    for python, torch in (("3.11", "2.13.0"), ("3.11", "2.14.1"), ("3.13", "2.14.1")):
        (tmp_path / f"{torch}/python{python}/torch-{torch}.dist-info").mkdir(parents=True)
    sites = [Site.of(path) for path in sorted(tmp_path.glob("*/*"))]
    assert [(site.python, site.torch) for site in sites] == [
        ("3.11", "2.13.0"),
        ("3.11", "2.14.1"),
        ("3.13", "2.14.1"),
    ]
    oldest = f"transformers=={lower_bound('transformers')}"
    assert list(map(str, cells(sites)))[:4] == [
        f"Python 3.11, torch 2.13.0, {oldest}",
        f"Python 3.11, torch 2.14.1, {oldest}",
        "Python 3.11, torch 2.13.0, transformers",
        "Python 3.11, torch 2.14.1, transformers",
    ]
    assert len(list(cells(sites))) == 8


def test_what_is_not_there_is_not_tried_and_says_so(monkeypatch, tmp_path):
    [first, *_] = cells([])
    monkeypatch.setattr(matrix, "interpreter", lambda version: "python")
    assert tried(first, tmp_path, tmp_path, (), 1)[2].startswith("not tried: no torch for this Python here")
    monkeypatch.setattr(matrix, "interpreter", lambda version: None)
    assert tried(first, tmp_path, tmp_path, (), 1)[2] == "not tried: no such Python here"


@pytest.mark.parametrize("path", [*matrix.TESTS, *sanitized.TESTS])
def test_the_tests_that_are_run_exist(path):
    assert (ROOT / Path(path)).exists()


def test_shortcuts_are_made_with_what_the_tests_run_with():
    """Else their own tests would be left out, and nobody would see it."""
    pinned = re.search(r"^torch==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None and pinned[1] in CHECKED_TORCHES
    assert (3, 11) in CHECKED_PYTHONS
