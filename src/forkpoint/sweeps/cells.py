"""One question of a sweep, and what is known of its answer."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

LOADING = ("model", "revision", "dtype", "device", "attn", "load-in-8bit")
"""What says which model is loaded, and how."""


@dataclass(frozen=True)
class Cell:
    """One question of one model. Its description is what it is known by when a sweep is resumed.

    Attributes:
        question: the name of the command that asks it.
        given: its arguments and options, by their names without dashes.
        versions: of what an answer is about: forkpoint, torch and transformers.
        files: of each file or folder that `given` names, what tells it from what it was: names, sizes, times of change.
    """

    question: str
    given: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict[str, str])
    files: dict[str, list[list[Any]]] = field(default_factory=dict[str, "list[list[Any]]"])

    @property
    def description(self) -> dict[str, Any]:
        """All that it is known by, as plain JSON types."""
        return {
            "question": self.question, "given": self.given, "versions": self.versions, "files": self.files,
        }  # fmt: skip

    @cached_property
    def key(self) -> str:
        """The description's digest."""
        text = json.dumps(self.description, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def loading(self) -> str:
        """The same for cells that want the same model, loaded in the same way."""
        return json.dumps([self.given.get(name) for name in LOADING])


@dataclass(frozen=True)
class CellOutcome:
    """What came of a cell.

    Attributes:
        status: the exit status of its command: 0, 1 or 3; None where there was no answer.
        document: what its command wrote as JSON.
        seconds: what it took, with loading the model where that was not there yet.
        reason: why there is no answer.
    """

    status: int | None = None
    document: Any = None
    seconds: float = 0.0
    reason: str = ""


def described(question: str, given: dict[str, Any], versions: dict[str, str]) -> Cell:
    """The cell of a question, with the files as they are."""
    named = {key: value for key, value in given.items() if key != "prompt" and isinstance(value, str)}
    files = {key: stamp for key, value in named.items() if (stamp := _stamp(value))}
    return Cell(question, given, versions, files)


def _stamp(path: str) -> list[list[Any]]:
    """Name, size and time of change of a file, or of each file in a folder; nothing where there is none."""
    try:
        if os.path.isfile(path):
            stat = os.stat(path)
            return [["", stat.st_size, stat.st_mtime_ns]]
        with os.scandir(path) as entries:
            files = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return []
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in sorted(files, key=lambda one: one[0])]
