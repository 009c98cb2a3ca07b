"""Whatever `--json` wrote, read again: one result, those of several prompts, an answer of another kind."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forkpoint.auditing.record import Audit
from forkpoint.cli.outcome import Fixed
from forkpoint.engines.answer import EngineComparison
from forkpoint.errors import InputError
from forkpoint.questions.answers import Factors, Generation
from forkpoint.result import MAX_BYTES, SCHEMA_VERSION, Result
from forkpoint.screening import Screening
from forkpoint.support.answers import Answer
from forkpoint.support.files import reason
from forkpoint.sweeps.answer import Sweep

if TYPE_CHECKING:
    from pathlib import Path

Answers = list[tuple[str, Result]]
"""Each of several prompts, and its result."""
_KINDS: dict[str, type[Answer]] = {
    "matters": Factors, "sweep": Sweep, "tokens_a": Generation, "breaks": Audit, "engine": EngineComparison,
    "logit_noise": Screening,
}  # fmt: skip
"""A key that the JSON of each kind has, and no other."""


def read(path: Path) -> Result | Answers | Answer | Fixed:
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
        raise InputError(f"{path}: {reason(error)}", expected) from error


def _record(data: Any) -> Result | Answers | Answer | Fixed:
    keys = set(data) if isinstance(data, dict) else set()
    for key, kind in _KINDS.items():
        if key in keys:
            return kind.from_dict(data)
    if set(Fixed._fields) <= keys:
        return Fixed(*(_answers(data[key]) for key in Fixed._fields))
    return _answers(data) if "prompts" in keys else Result.from_dict(data)


def _answers(data: Any) -> Answers:
    if not isinstance(data, dict) or "prompts" not in data:
        return [("", Result.from_dict(data))]
    answers = [(str(item["prompt"]), Result.from_dict(item["result"])) for item in _items(data["prompts"])]
    if not answers:
        raise ValueError("it has no prompts")
    return answers


def _items(items: Any) -> list[dict[str, Any]]:
    if not isinstance(items, list) or not all(
        isinstance(i, dict) and {"prompt", "result"} <= set(i) for i in items
    ):
        raise ValueError("prompts is no list of prompts with their results")
    return items
