"""The switch between C and Python: all of it moves, and it says so where it can't."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import forkpoint.investigation  # noqa: F401 - so that all seams are there
from forkpoint.capture import ledger, taps
from forkpoint.explain import session
from forkpoint.native import choice, compiled
from forkpoint.runs import modules

compiled_only = pytest.mark.skipif(compiled is None, reason="not compiled")
PARTS = {"Traits", "Reel", "Pattern", "versions", "places", "survey", "Held", "same_weights"}
"""Of the extension, what has a Python of its own; `Tap` is made of it by a class."""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    others = {k: v for k, v in os.environ.items() if not k.startswith("FORKPOINT_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=others | environment, capture_output=True, text=True, check=False
    )


@compiled_only
def test_every_part_that_is_written_twice_is_a_seam():
    names = {getattr(seam.in_c, "__name__", "") for seam in choice.SEAMS}
    assert names == (PARTS - {"survey"}) | {"c_survey", "Tap"}
    assert choice.held_in_c()


@compiled_only
def test_every_seam_moves():
    before = choice.held_in_c()
    assert ("forkpoint.explain.session", "survey") in before
    with choice.python_alone():
        assert choice.held_in_c() == []
        assert session.survey is modules.python_survey
        assert taps.compiled is None
    assert choice.held_in_c() == before


@compiled_only
def test_a_name_that_another_module_took_moves_too(monkeypatch):
    monkeypatch.setattr(ledger, "another", modules.survey, raising=False)
    assert ("forkpoint.capture.ledger", "another") in choice.held_in_c()
    with choice.python_alone():
        assert ledger.another is modules.python_survey  # pyright: ignore[reportAttributeAccessIssue]


def test_without_the_c_not_even_bases_are_of_it():
    code = (
        "import sys, forkpoint.investigation; from forkpoint.capture.tape import Tape; "
        "from forkpoint.capture.functions import Function; from forkpoint.native import IN_USE; "
        "kinds = {k.__module__ for c in (Tape, Function) for k in c.__mro__}; "
        "print(IN_USE, 'forkpoint.native.compiled' in sys.modules, sorted(k for k in kinds if 'native' in k))"
    )
    done = run(code, FORKPOINT_PURE_PYTHON="1")
    assert done.stdout.split("\n")[0] == "False False []", done.stderr


def test_c_that_is_forced_and_missing_is_an_error():
    hide = "import sys; sys.modules['forkpoint.native.compiled'] = None; import forkpoint.native.choice"
    done = run(hide, FORKPOINT_COMPILED="1")
    assert done.returncode == 1
    assert "FORKPOINT_COMPILED is set, but there is no extension" in done.stderr
    assert run(hide).returncode == 0


def test_both_at_once_is_an_error():
    done = run("import forkpoint.native", FORKPOINT_COMPILED="1", FORKPOINT_PURE_PYTHON="1")
    assert "both set" in done.stderr


@compiled_only
def test_c_that_is_forced_is_in_use():
    done = run("from forkpoint.native import IN_USE; print(IN_USE)", FORKPOINT_COMPILED="1")
    assert done.stdout.strip() == "True"
