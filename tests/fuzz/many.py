"""Many damaged inputs, by their numbers; a worker process imports it."""

from __future__ import annotations

import faulthandler
import logging
import os
import random
import resource
import signal
import tempfile
import traceback
import warnings
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .targets import TARGETS, Target

LIMIT = 60
"""Seconds that one input may take."""
MEMORY = 24 << 30
"""Bytes of address space, so that what asks for all the memory there is gets an error."""
MOST_WRONG = 100
"""After so many a process stops."""


@dataclass
class Found:
    """What came of the inputs of one target: how many there were and were read, and a line for each that went wrong."""

    inputs: int = 0
    read: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.inputs += other.inputs
        self.read += other.read
        self.wrong += other.wrong


def fuzz(target: Target, seed: int, numbers: range) -> Found:
    """Read damaged inputs by their numbers."""
    found = Found()
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=room, prefix="forkpoint-fuzz-") as folder:
        draw = target.prepare(Path(folder))
        for number in numbers:
            found.inputs += 1
            try:
                signal.alarm(LIMIT)
                found.read += draw(random.Random(f"{seed} {target.name} {number}"))()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = str(error)[:300]
                found.wrong.append(
                    f"{number}: {type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {text!r}"
                )
                if len(found.wrong) >= MOST_WRONG:
                    break
            finally:
                signal.alarm(0)
    return found


def fuzz_quietly(task: tuple[str, int, range]) -> Found:
    """The same, of a target by its name; a worker process begins here."""
    name, seed, numbers = task
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.enable()
    signal.signal(signal.SIGALRM, _too_long)
    [target] = [target for target in TARGETS if target.name == name]
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        return fuzz(target, seed, numbers)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT} s")
