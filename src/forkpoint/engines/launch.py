"""Starts an engine in a process and an environment of its own, and has it record what it computes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import forkpoint
from forkpoint.errors import InputError, ModelError
from forkpoint.support.files import write_json

_ERROR = re.compile(r"\b\w*(?:Error|Exception): .*")
_LINES = 400
"""Lines of what the engine said that an error may come from."""


def interpreter(python: str | None) -> str:
    """The Python of an environment that has vLLM: the one that was given, or this one.

    Raises:
        InputError: it has none.
    """
    if python is None and importlib.util.find_spec("vllm") is not None:
        return sys.executable
    if python is None:
        raise InputError(
            "vLLM, which is not installed in this environment", "the Python of an environment that has it",
            "--python PATH; docs/engines.md says how to make one",
        )  # fmt: skip
    command = [python, "-c", "import importlib.util as u; raise SystemExit(u.find_spec('vllm') is None)"]
    try:
        missing = subprocess.run(command, capture_output=True, check=False).returncode
    except OSError as error:
        raise InputError(
            f"--python {python}: {error.strerror or error}", "the Python of an environment with vLLM"
        ) from error
    if missing:
        raise InputError(f"--python {python}, which has no vLLM", "the Python of an environment that has it")
    return python


def run_vllm(
    python: str,
    model: str,
    prompts: Sequence[Sequence[int]],
    folder: Path,
    *,
    max_tokens: int = 1,
    sampling: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
) -> None:
    """Have vLLM answer prompts in a process of its own, and write the recording.

    Args:
        python: of an environment with vLLM.
        model: a local folder or a hub id.
        prompts: token ids of each.
        folder: where to write the recording; new or empty.
        max_tokens: tokens to generate after each prompt.
        sampling: arguments of `vllm.SamplingParams`.
        engine: arguments of `vllm.LLM`.

    Raises:
        ModelError: the engine ended with an error; its last line is said.
    """
    root = str(Path(forkpoint.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory(prefix="forkpoint-engine-") as work:
        job, log = Path(work) / "job.json", Path(work) / "said.txt"
        write_json(job, {
            "model": model, "prompts": [list(map(int, p)) for p in prompts], "folder": str(folder.resolve()),
            "max_tokens": max_tokens, "sampling": dict(sampling or {}), "engine": dict(engine or {}),
        })  # fmt: skip
        with log.open("wb") as output:
            ended = subprocess.run(
                [python, "-m", "forkpoint.engines.driver", str(job)], stdout=output, stderr=subprocess.STDOUT,
                env=environment, check=False,
            )  # fmt: skip
        if ended.returncode:
            raise ModelError(f"vLLM ended with an error: {_last(log)}", "a model and options that vLLM takes")


def _last(log: Path) -> str:
    """The line of an error, of all that was said."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES:]
    errors = [error for line in lines if (error := _ERROR.search(line))]
    return (
        errors[-1][0].strip()
        if errors
        else next((x.strip() for x in reversed(lines) if x.strip()), "nothing was said")
    )


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` arguments, values as JSON where they are.

    >>> parse_arguments(["max_num_batched_tokens=16", "quantization=fp8", "enforce_eager=true"])
    {'max_num_batched_tokens': 16, 'quantization': 'fp8', 'enforce_eager': True}
    """
    arguments: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"--engine-arg {text}", "NAME=VALUE, an argument of vllm.LLM")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


__all__ = ["interpreter", "parse_arguments", "run_vllm"]
