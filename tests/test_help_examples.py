"""The example of each `--help` runs as it stands there, on a small model in place of the demo."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer

import forkpoint as fp
from forkpoint.cli import main
from forkpoint.cli.app import app
from forkpoint.questions import factors

RUN = """
import sys, torch
model = torch.nn.Linear(4, 4)
with torch.no_grad():
    model(torch.ones(1, 3, 4))
assert sys.argv[1:] == ["--my-option"]
"""
SWEEP = """
model = "./my-model"
prompt = "Hello there"

[[question]]
ask = "repeat"
"""
LINE = {"token_ids": [3, 4, 5], "logprobs": [-0.5, -0.25, -1.5]}
SLOW = ("audit", "compile", "sweep")
"""Commands whose example takes more than seconds, be it of a small model."""
NEEDS = {"device": torch.cuda.is_available(), "engines": importlib.util.find_spec("vllm") is not None}
"""Commands whose example needs what is not everywhere; elsewhere it is refused in one line."""


def _commands(group: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    for name, command in group.commands.items():
        path = (*above, name)
        if hasattr(command, "commands"):
            yield from _commands(command, path)
        else:
            yield " ".join(path), command.epilog or ""


EXAMPLES = dict(_commands(typer.main.get_command(app)))


def test_each_command_has_an_example() -> None:
    assert len(EXAMPLES) > 25
    for name, epilog in EXAMPLES.items():
        assert re.fullmatch(rf"Example: forkpoint {name} .+", epilog), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples take as given."""
    here = tmp_path_factory.mktemp("examples")
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    model.save_pretrained(here / "my-model")
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(here / "my-model")
    (here / "texts.txt").write_text("w3 w4\nw5 w6 w7\n")
    (here / "sweep.toml").write_text(SWEEP)
    (here / "run.py").write_text(RUN)
    for name in ("trainer", "engine"):
        (here / f"{name}.jsonl").write_text(json.dumps(LINE) + "\n")
    for name in ("trace-a", "trace-b"):
        with fp.record(here / name), torch.no_grad():
            model(torch.tensor([[5, 6, 7]]))
    result = fp.dtype(model, tokenizer, "w5 w6", "bfloat16", probes=False)
    result.to_json(here / "result.json")
    result.save_scene(here / "scene")
    return here


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name.split()[-1] in SLOW else []) for name in EXAMPLES],
)
def test_the_example_runs(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load = fp.load
    monkeypatch.setattr(
        fp, "load", lambda model, **given: load("my-model" if model == "demo" else model, **given)
    )
    monkeypatch.setattr(factors, "IMPLEMENTATIONS", ("eager",))
    monkeypatch.setattr(factors, "WIDTHS", ("float64",))
    monkeypatch.setattr(factors, "quantized", lambda model, kind: 1 / 0)  # which takes seconds
    monkeypatch.chdir(folder)
    arguments = shlex.split(EXAMPLES[name].removeprefix("Example: forkpoint "))
    if name == "record":
        arguments[arguments.index("trace-a")] = "trace-c"
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    if NEEDS.get(name, True):
        assert ended.value.code in (0, 1, 3), err
        assert out or name in ("record", "script")
    else:
        assert ended.value.code == 2
        assert (out, err.count("\n")) == ("", 1)
