"""What workers of the tests run: it answers, dies, hangs or fails, as its cell says. A process knows it by its name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from forkpoint.sweeps import Cell, CellOutcome
from forkpoint.sweeps.sweeping import ask_cells

DOCUMENT: dict[str, Any] = {
    "verdict": {"kind": "rounding", "mechanism": "reduction_order", "by_design": None},
    "impact": {"loss_gap": None, "max_abs": "inf", "max_rel": 0.5, "max_kl": 0.25, "top1_flips": 0, "tokens": 3, "nonfinite_apart": 0},
    "first": {"op": "lm_head/linear"}, "origin": None,
}  # fmt: skip
"""Of what `forkpoint padding --json` writes, what is read."""


def cell(name: str, model: str = "m", **given: Any) -> Cell:
    return Cell("padding", {"model": model, "prompt": [name], **given}, {"torch": "2"})


def run(cell: Cell) -> CellOutcome:
    match cell.given.get("do"):
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            Path(cell.given["told"]).write_text(str(os.getpid()))
            time.sleep(600)
        case "print":
            print("a line of a worker", file=sys.stderr, flush=True)
        case "refuse":
            return CellOutcome(reason="no such thing")
        case _:
            pass
    return CellOutcome(0, DOCUMENT, 0.5)


def answer_at_once(cell: Cell) -> CellOutcome:
    return CellOutcome(0, DOCUMENT, 0.0)


def names(_: Cell) -> CellOutcome:
    """Which process has asked, and how many threads it computes with."""
    return CellOutcome(0, {"process": os.getpid(), "threads": os.environ["OMP_NUM_THREADS"]})


if __name__ == "__main__":  # a sweep of which a test kills the process
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    folder, told = map(Path, sys.argv[1:])
    ask_cells([cell("one"), cell("two", do="hang", told=str(told)), cell("three")], folder, run)
