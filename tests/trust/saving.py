"""What is saved of a comparison, so that it can be disturbed: what is there afterwards is whole, old or new."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tests.trust.interrupts import two_runs
from torch import nn

import forkpoint as fp
from forkpoint import scene
from forkpoint.scene.script import script


@dataclass(frozen=True)
class Saving:
    """One thing that is saved, in a folder.

    Attributes:
        prepare: makes the folder hold what it held before.
        act: saves.
        wrong: what in the folder is not whole.
    """

    name: str
    prepare: Callable[[Path], Any]
    act: Callable[[Path], Any]
    wrong: Callable[[Path], list[str]]


def comparing() -> tuple[nn.Module, Callable[..., fp.Result]]:
    """A model, and a comparison of two runs of it that has been made before."""
    model, runs = two_runs()

    def compare(**options: Any) -> fp.Result:
        torch.manual_seed(0)
        return fp.compare(*runs, **options)

    compare()
    return model, compare


def savings(result: fp.Result, room: Path) -> list[Saving]:
    """All that is saved of a result; `room` is for what it looks like when nobody disturbs it."""
    model, (run, _) = two_runs()
    fp.compare(run, fp.Run(model, {"x": run.calls[0]["x"] * 2})).save_scene(room / "old")
    result.save_scene(room / "new")
    with unrun():
        result.write_script(room / "script.py")
    result.to_json(room / "result.json")
    return [
        Saving("JSON", lambda folder: (folder / "result.json").write_text("old"),
               lambda folder: result.to_json(folder / "result.json"),
               lambda folder: _file(folder / "result.json", [b"old", (room / "result.json").read_bytes()])),
        Saving("scene", lambda folder: shutil.copytree(room / "old", folder / "scene"),
               lambda folder: result.save_scene(folder / "scene"),
               lambda folder: _folder(folder / "scene", [room / "old", room / "new"])),
        Saving("script", lambda folder: None, lambda folder: result.write_script(folder / "script.py"),
               lambda folder: _script(folder, room)),
    ]  # fmt: skip


def unrun() -> AbstractContextManager[Any]:
    """Scripts are not run before they are handed over: that takes seconds."""
    done = subprocess.CompletedProcess([], 0, "", "")
    return patch.object(script.subprocess, "run", lambda *_, **__: done)


def unfinished(folder: Path) -> list[str]:
    """What was left in a folder that is no whole file of its own."""
    return [f"left {name}" for name in os.listdir(folder) if name.startswith(".")]


class Everything:
    """All of it, one after the other, in a new folder each time."""

    def __init__(self, room: Path) -> None:
        self.model, compare = comparing()
        self._savings = savings(compare(), room)
        self._room = room

    def act(self) -> bool:
        self._folder = Path(tempfile.mkdtemp(dir=self._room))
        for saving in self._savings:
            saving.prepare(self._folder)
        with unrun():
            for saving in self._savings:
                saving.act(self._folder)
        return True

    def wrong(self, _: Any) -> list[str]:
        found = unfinished(self._folder)
        for saving in self._savings:
            found += saving.wrong(self._folder)
        shutil.rmtree(self._folder)
        return found


def _file(path: Path, whole: list[bytes]) -> list[str]:
    return [] if path.exists() and path.read_bytes() in whole else [f"{path.name} is not whole"]


def _folder(path: Path, whole: list[Path]) -> list[str]:
    found = _files(path)
    if not any(found.keys() == _files(other).keys() for other in whole):
        return [f"{path.name} is not whole: {sorted(found)}"]
    scene.load(path)
    return []


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _script(folder: Path, room: Path) -> list[str]:
    found: list[str] = []
    if (folder / "script.py").exists():
        # What the op did here, as far as that could be seen, is said in it; but it is as long as it should be.
        ends = [(path / "script.py").read_text().splitlines()[-1:] for path in (folder, room)]
        found += [] if ends[0] == ends[1] else ["script.py is not whole"]
    if (folder / "script.py.scene").exists():
        found += _folder(folder / "script.py.scene", [room / "script.py.scene"])
    return found
