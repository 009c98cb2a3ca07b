"""A sample of damaged files, and that what is looked for would be found."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from forkpoint.errors import SceneError

from . import damage, targets
from .many import fuzz
from .targets import TARGETS, Target, check_script

SAMPLE = {
    "manifests": 400, "tensors": 200, "results": 300, "traces": 60, "records": 200, "configurations": 200, "prompts": 200, "sizes": 500,
    "models": 4,
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_damaged_files_are_read_or_refused_in_one_line(target):
    found = fuzz(target, 0, range(SAMPLE[target.name]))
    assert found.wrong == []
    assert found.inputs == SAMPLE[target.name]
    assert target.name == "models" or 0 < found.read < found.inputs


def test_what_is_not_refused_in_one_line_is_found(monkeypatch):
    [target] = [target for target in TARGETS if target.name == "manifests"]
    for wrong in (KeyError("x"), RecursionError(), SceneError("x" * 3000)):
        if isinstance(wrong, SceneError):
            wrong.args = ("a\nb",)

        def fail(*_: object, wrong: Exception = wrong) -> None:
            raise wrong

        with monkeypatch.context() as patched:
            patched.setattr(targets, "parsed", fail)
            found = fuzz(target, 0, range(5))
        assert found.wrong  # not all: some are read from the disk


def test_processes_share_the_inputs():
    command = [sys.executable, "-m", "tests.fuzz", "--target", "sizes", "--each", "41", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    [sizes] = [target for target in TARGETS if target.name == "sizes"]
    assert done.stdout.startswith(f"sizes: 41 inputs, {fuzz(sizes, 0, range(41)).read} read, ")


@pytest.mark.parametrize("text", ["import os\nos.system('x')", "print('\u202e')", "x = ("])
def test_a_script_that_holds_more_than_data_is_found(text):
    with pytest.raises((AssertionError, SyntaxError)):
        check_script(text, frozenset(["print", "x"]))


def test_an_input_follows_from_its_number(tmp_path):
    text = '{"a": [1, 2, {"b": "c"}], "d": null}'
    paths = damage.places({"a": [1, 2, {"b": "c"}], "d": None})
    assert paths == [("a",), ("a", 0), ("a", 1), ("a", 2), ("a", 2, "b"), ("d",)]
    first, again = ([damage.damaged_json(text, paths, [], random.Random(n)) for n in range(50)] for _ in "ab")
    assert first == again
    assert len(set(first)) > 40
    assert len({damage.damaged_bytes(b"0123456789", random.Random(n)) for n in range(50)}) > 40


def test_each_target_has_a_share():
    assert sum(target.share for target in TARGETS) == 1000
    assert all(isinstance(target, Target) and target.share for target in TARGETS)
