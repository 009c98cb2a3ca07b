"""Whatever `--json` wrote, read again: one result, those of several prompts, a table of factors, two ways to generate, a sweep."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forkpoint.errors import InputError
from forkpoint.questions.answers import Factors, Generation
from forkpoint.result import MAX_BYTES, SCHEMA_VERSION, Result
from forkpoint.sweeps.answer import Sweep

if TYPE_CHECKING:
    from pathlib import Path

Answers = list[tuple[str, Result]]
"""Each of several prompts, and its result."""


def read(path: Path) -> Result | Answers | Factors | Generation | Sweep:
    """What the file holds, told by its keys.

    Raises:
        InputError: the file can't be read, or is nothing that `--json` wrote.
    """
    try:
        with path.open("rb") as opened:
            data = json.loads(opened.read(MAX_BYTES + 1))
        return _record(data)
    except (OSError, ValueError, RecursionError) as error:
        expected = f"a result that to_json wrote, schema version {SCHEMA_VERSION}"
        raise InputError(f"{path}: {error}", expected) from error


def _record(data: Any) -> Result | Answers | Factors | Generation | Sweep:
    keys = set(data) if isinstance(data, dict) else set()
    if "matters" in keys:
        return Factors.from_dict(data)
    if "sweep" in keys:
        return Sweep.from_dict(data)
    if "tokens_a" in keys:
        return Generation.from_dict(data)
    if "prompts" in keys:
        answers = [
            (str(item["prompt"]), Result.from_dict(item["result"])) for item in _items(data["prompts"])
        ]
        if not answers:
            raise ValueError("it has no prompts")
        return answers
    return Result.from_dict(data)


def _items(given: Any) -> list[dict[str, Any]]:
    if not isinstance(given, list) or not all(
        isinstance(i, dict) and {"prompt", "result"} <= set(i) for i in given
    ):
        raise ValueError("prompts is no list of prompts with their results")
    return given
