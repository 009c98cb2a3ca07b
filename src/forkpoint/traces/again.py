"""What to type to record a run once more, with what only its own environment can tell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

_TAKE_A_VALUE = ("-o", "--output", "--values")
_RECORDERS = ("forkpoint", "__main__.py")


def again(name: str, manifest: Mapping[str, Any], op: str) -> str:
    """The command, or the call where it was none, that records a run again with the values of an op.

    >>> again("old", {"command": ["forkpoint", "record", "-o", "old", "script.py", "--steps", "3"]}, "lm_head/linear")
    'forkpoint record -o old-values --values lm_head/linear script.py --steps 3'
    >>> again("old", {"command": ["train.py"]}, "lm_head/linear")
    "fp.record('old-values', values=['lm_head/linear'])"
    """
    folder = f"{name}-values"
    command = [str(part) for part in manifest.get("command", ())]
    if command[:1] and command[0] in _RECORDERS and command[1:2] == ["record"]:
        return shlex.join(["forkpoint", "record", "-o", folder, "--values", op, *_script(command[2:])])
    return f"fp.record({folder!r}, values=[{op!r}])"


def _script(arguments: list[str]) -> list[str]:
    """The script and its arguments, behind the recorder's own options."""
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        if arguments[at] == "--":
            return arguments[at + 1 :]
        at += 2 if arguments[at] in _TAKE_A_VALUE else 1
    return arguments[at:]
