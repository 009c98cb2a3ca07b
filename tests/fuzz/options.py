"""Files of options from strangers: a command takes them as if they were typed, or refuses them in one line."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import typer

import forkpoint as fp
from forkpoint.cli import main
from forkpoint.cli.app import app
from forkpoint.errors import ForkpointError

from . import damage
from .results import Input, expect_one_line

SHARED = """# a comparison
model = "./my-model"
dtype = "float16"
no-probes = false
lang = "zh"
json = "out.json"
max-memory = "1.5 GiB"
"""
PROMPTS = SHARED + 'prompt = ["Hello there", "How are you?"]\n'
SOUND = {
    "padding": PROMPTS + 'pad-to = 50\nside = "left"\nall-sources = true\n',
    "batch": PROMPTS + "size = 3\nsame-length = true\n",
    "factors": PROMPTS + 'pad_to = 50\nonly = "cache"\n',
    "generate": PROMPTS + 'new-tokens = 5\nagainst = "no-cache"\n',
    "embed": SHARED + 'texts = "texts.txt"\nbatch-size = "1,2"\npooling = "mean"\n',
}
KEYS = (
    "prompts", "config", "help", "pad_to", "PAD-TO", "html", "scene", "attn", "device", "texts", "batch-size", "against",
    "only", "new-tokens", "trust-remote-code", '"\\u001b"', '"\\n"', "'a b'", "a.b", "model.x", "[a]", "[[a]]", "",
)  # fmt: skip
VALUES = (
    *(json.dumps(value) for value in (*damage.HOSTILE, 0, -1, 7, 2**70, 0.5, 1e308, [], ["a", 1], [["a"]], [True])),
    "true", "{a = 1}", "1979-05-27", "07:32:00", "inf", "nan", "0x1F", "[[1], [2]]", "'up'", '"right"', '"float32"', "1e999",
    "[" * 2000, "'\\u001b'", '"""a\nb"""', "9" * 5000,
)  # fmt: skip


def configurations(folder: Path) -> Callable[[random.Random], Input]:
    """A file of options, damaged; the command gets no further than to its options."""
    file = folder / "options.toml"
    commands: Any = typer.main.get_command(app)

    def draw(rng: random.Random) -> Input:
        name, whole = rng.choice(list(SOUND)), rng.random() < 0.04
        if rng.random() < 0.4:
            data = damage.damaged_bytes(SOUND[name].encode(), rng)
        else:
            data = _changed(SOUND[name].splitlines(), rng).encode("utf-8", "surrogatepass")

        def read() -> bool:
            file.write_bytes(data)
            if whole:
                return got_there(name, file)
            try:
                commands.commands[name].make_context(name, ["--config", str(file)])
            except ForkpointError as error:
                expect_one_line(error)
                return False
            except Exception as error:
                if not hasattr(error, "format_message"):  # of typer's, of which the command makes one line
                    raise
                return False
            return True

        return read

    return draw


def _changed(changed: list[str], rng: random.Random) -> str:
    """Lines of which some have another key or another value, or are there twice."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(1, len(changed))
        key, _, value = changed[at].partition(" = ")
        match rng.randrange(5):
            case 0:
                changed.insert(rng.randrange(len(changed)), changed[at])
            case 1 | 2:
                changed[at] = f"{rng.choice(KEYS)} = {value}"
            case _:
                changed[at] = f"{key} = {rng.choice(VALUES)}"
    return "\n".join(changed)


def got_there(name: str, file: Path) -> bool:
    """Whether a command gets past its options; what it says otherwise is one line that can be printed."""
    said = io.StringIO()
    stop = patch.object(fp, "load", side_effect=fp.InputError("got there"))
    with stop, redirect_stderr(said), pytest.raises(SystemExit) as ended:
        main([name, "--config", str(file)])
    assert ended.value.code == 2, f"exit status {ended.value.code}"
    line = said.getvalue()
    assert line.startswith("forkpoint: "), f"not one line: {line[:200]!r}"
    assert line.endswith("\n"), f"not one line: {line[:200]!r}"
    assert line[:-1].isprintable(), f"not one line that can be printed: {line[:200]!r}"
    return "got there" in line
