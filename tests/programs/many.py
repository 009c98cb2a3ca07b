"""Many random programs, by their numbers; a worker process imports it."""

from __future__ import annotations

import random
import signal
from collections import Counter
from dataclasses import dataclass, field

import torch

from .check import check
from .program import Program, drawn

LIMIT = 300
"""Seconds that a program may take."""


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT} s")


@dataclass
class Found:
    """What came of some programs."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        self.counts += other.counts
        self.wrong += other.wrong


def program(seed: int, number: int, block: str | None = None) -> Program:
    """A program by its number."""
    return drawn(random.Random(f"{seed} {number} {block}"), f"{seed} {number}", only=block)


def found_in(task: tuple[int, str | None, range]) -> Found:
    """Check the programs of some numbers."""
    seed, block, numbers = task
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    found = Found()
    for number in numbers:
        made = program(seed, number, block)
        signal.alarm(LIMIT)
        try:
            checked = check(made)
        finally:
            signal.alarm(0)
        found.counts["programs"] += 1
        found.counts["planted"] += made.gain != 1.0
        found.counts["answered"] += checked.answered
        found.counts["located"] += checked.located
        found.counts["refused"] += checked.fails
        found.counts["calls"] += checked.calls
        found.wrong += [f"{number} {made.blocks}: {line}" for line in checked.wrong[:3]]
        found.counts["wrong"] += bool(checked.wrong)
    return found
