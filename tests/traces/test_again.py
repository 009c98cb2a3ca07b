"""The commands that a comparison of two traces names do what it says, in the environment of each."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import forkpoint as fp
from forkpoint.report.words import Words
from forkpoint.traces.again import again

SCRIPT = """\
import sys, torch
torch.manual_seed(0)
model, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), torch.ones(1, 3, 4)
if sys.argv[1:] == ["--apart"]:
    model[1] = torch.nn.Tanh()
with torch.no_grad():
    model(x)
"""


@pytest.mark.parametrize(
    "options",
    [
        ["-o", "x"],
        ["--output=x"],
        ["--values", "a/*", "-o", "x"],
        ["-o", "x", "--"],
        ["--values=a", "--values", "b", "-ox"],
    ],
)
def test_the_script_and_its_arguments_stay(options: list[str]) -> None:
    command = ["forkpoint", "record", *options, "run me.py", "-o", "its own"]
    said = shlex.split(again("x", {"command": command}, "a.b/mul"))
    assert said == [
        "forkpoint",
        "record",
        "-o",
        "x-values",
        "--values",
        "a.b/mul",
        "run me.py",
        "-o",
        "its own",
    ]


def test_a_run_that_no_command_recorded_is_a_call() -> None:
    assert (
        again("x", {}, "a/mul")
        == again("x", {"command": ["pytest", "record"]}, "a/mul")
        == "fp.record('x-values', values=['a/mul'])"
    )


def test_the_commands_that_are_named_show_the_values(tmp_path: Path) -> None:
    def forkpoint(command: list[str]) -> None:
        path = os.pathsep.join(path for path in sys.path if path)
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "forkpoint", *command], check=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    forkpoint(["record", "-o", "a", "script.py"])
    forkpoint(["record", "-o", "b", "script.py", "--apart"])
    result = fp.compare_traces(tmp_path / "a", tmp_path / "b")
    assert result.first is not None and result.first.value_a is None
    commands = result.verdict.advice.split("`")[1:4:2]
    for command in commands:
        name, *rest = shlex.split(command)
        assert name == "forkpoint"
        forkpoint(rest)
    first = fp.compare_traces(tmp_path / "a-values", tmp_path / "b-values").first
    assert first is not None and first.value_a is not None and first.value_a != first.value_b
    assert "重新记录两者" in Words("zh").sentence(result.verdict.advice)
