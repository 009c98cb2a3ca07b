"""Recordings killed at random moments: each trace reads up to the last op that was written, and says that it is incomplete.

`python -m tests.traces.kills --count 50 --seed 0` kills so many. A third of the moments are spread over the whole life of a
recording, a third over its beginning (the folder, the manifest, the weights, the first call), a third over its end.
Several models are recorded by turns, one with its values kept; what is read is held against a whole recording, row by row
and value by value.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.architectures import ARCHITECTURES, prompt

import forkpoint as fp
from forkpoint.errors import ForkpointError
from forkpoint.traces import writing
from forkpoint.traces.reading import TraceFolder, read

STEPS = 12
"""Calls after the first; a killed recording has any number of them."""


def generate(name: str, folder: Path, values: tuple[str, ...] = ()) -> None:
    """Record a prompt, and then a token at a time."""
    architecture = ARCHITECTURES[name]
    model: Any = architecture.build()
    inputs = {"input_ids": torch.tensor([prompt(9)])}
    with torch.no_grad(), fp.record(folder, values=values):
        model.generate(
            **inputs, max_new_tokens=STEPS + 1, min_new_tokens=STEPS + 1, do_sample=False, pad_token_id=0
        )


def call(name: str, folder: Path) -> None:
    """Record batches, each of other rows."""
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    with torch.no_grad(), fp.record(folder):
        for seed in range(STEPS // 2):
            model(**architecture.inputs([prompt(7, seed=seed), prompt(5, seed=seed + 1)], pad_to=9))


def work(folder: Path) -> None:
    """What is recorded by default."""
    generate("llama", folder)


WORKS: dict[str, Callable[[Path], None]] = {
    "llama": work,
    "llama, values kept": lambda folder: generate("llama", folder, ("*/linear", "*/matmul", "*/output")),
    "mixtral": lambda folder: generate("mixtral", folder),
    "t5": lambda folder: call("t5", folder),
    "mamba": lambda folder: generate("mamba", folder),
}

ROWS, STAGE, VALUES = 0, 1, 2
"""What a recording process tells: rows written, `STAGES`, values written."""
STAGES = "before", "recording", "closing", "closed"


class Told:
    """Numbers that a forked process tells the one that forked it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 24)

    def __getitem__(self, place: int) -> int:
        return struct.unpack_from("q", self.memory, 8 * place)[0]

    def __setitem__(self, place: int, number: int) -> None:
        struct.pack_into("q", self.memory, 8 * place, number)

    def clear(self) -> None:
        for place in (ROWS, STAGE, VALUES):
            self[place] = 0


def forked(work: Callable[[Path], None], folder: Path, told: Told) -> int:
    """Start a process that records, and tells how far it is; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        # the threads of MKL do not survive a fork, and whoever waits for them waits for good
        torch.set_num_threads(1)
        _tell(told)
        work(folder)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it is
        traceback.print_exc()
        os._exit(1)
    raise AssertionError


def _tell(told: Told) -> None:
    """Have what writes a trace tell when it begins and ends, and after each batch of rows and each value."""
    begin, rows, value, close = (
        writing.Writer.__init__, writing.Writer.rows_at_once, writing.Writer.value, writing.Writer.close,
    )  # fmt: skip

    def beginning(self: writing.Writer, folder: Path, manifest: dict[str, Any]) -> None:
        told[STAGE] = 1
        begin(self, folder, manifest)

    def writing_rows(self: writing.Writer, batch: Any) -> None:
        rows(self, batch)
        told[ROWS] = self.rows

    def keeping(self: writing.Writer, row: int, tensors: dict[str, torch.Tensor]) -> None:
        value(self, row, tensors)
        told[VALUES] += 1

    def closing(self: writing.Writer, *, complete: bool) -> None:
        told[STAGE] = 2
        close(self, complete=complete)
        told[STAGE] = 3

    writing.Writer.__init__, writing.Writer.rows_at_once = beginning, writing_rows
    writing.Writer.value, writing.Writer.close = keeping, closing


def rows_of(recorded: TraceFolder) -> list[tuple[object, ...]]:
    """Each row by its op, its call, and the digests of its value."""
    trace = recorded.trace
    ops = trace.ops
    found: list[tuple[object, ...]] = []
    for index, event in enumerate(trace.events):
        digests = trace.held(index).digests
        found.append(
            (ops[event.op].key, event.call, event.shape, None if digests is None else digests.tobytes())
        )
    return found


def values_of(recorded: TraceFolder) -> dict[int, bytes]:
    """The values that were kept, by their rows."""
    found: dict[int, bytes] = {}
    for row in recorded.values:
        kept = recorded.value(row)
        assert kept is not None
        found[row] = kept[0].numpy().tobytes()
    return found


@dataclass(frozen=True)
class Whole:
    """What a recording that was let live holds.

    Attributes:
        seconds: from the fork to the beginning of the recording, to the beginning of its end, and to its end.
    """

    rows: list[tuple[object, ...]]
    values: dict[int, bytes]
    seconds: tuple[float, float, float]

    @classmethod
    def of(cls, work: Callable[[Path], None], folder: Path, told: Told) -> Whole:
        told.clear()
        start = time.monotonic()
        child = forked(work, folder, told)
        begun, closing = (_reached(told, stage, child) - start for stage in (1, 2))
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("the recording failed")
        seconds = time.monotonic() - start
        recorded = read(folder, "A")
        return cls(rows_of(recorded), values_of(recorded), (begun, closing, seconds))


def _reached(told: Told, stage: int, child: int) -> float:
    """When a process has come to a stage, or has ended."""
    while told[STAGE] < stage and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(1e-4)
    return time.monotonic()


def check(
    folder: Path, whole: list[tuple[object, ...]], written: int, values: dict[int, bytes] | None = None
) -> str:
    """What is wrong with the trace of a killed recording; empty if nothing is.

    Args:
        folder: of the trace.
        whole: the rows of a whole recording.
        written: how many rows the process said that it had written.
        values: the values that a whole recording has kept.
    """
    if not written and not (folder / "manifest.json").exists():
        return ""  # it had not begun
    try:
        recorded = read(folder, "A")
    except ForkpointError as error:
        return f"can't be read: {error}"
    if recorded.complete:
        return "says that it is complete"
    rows = rows_of(recorded)
    if len(rows) < written:
        return f"{len(rows)} rows of the {written} that were written"
    if rows != whole[: len(rows)]:
        return "holds other rows than a whole recording"
    kept = values_of(recorded)
    expected = {row: value for row, value in (values or {}).items() if row < len(rows)}
    if kept != expected:
        return f"holds other values than a whole recording: {len(kept)}, not {len(expected)}"
    if recorded.run.calls:
        try:
            result = fp.compare_traces(folder, folder)
        except ForkpointError as error:
            return f"can't be compared: {error}"
        if result.verdict.kind is not fp.VerdictKind.UNDETERMINED or not any(
            "did not come to its end" in note for note in result.notes
        ):
            return "is compared as if it were whole"
    return ""


def kill_some(
    count: int, seed: int, parent: Path, names: tuple[str, ...] = tuple(WORKS)
) -> tuple[list[str], Counter[str]]:
    """Kill so many recordings; returns what is wrong, and how many of them were killed where."""
    told = Told()
    wholes: dict[str, Whole] = {}
    for name in names:
        WORKS[name](parent / f"first {name}")  # whatever has to be loaded or compiled, forked processes have
        wholes[name] = Whole.of(WORKS[name], parent / f"whole {name}", told)
    generator = random.Random(seed)
    wrong: list[str] = []
    where: Counter[str] = Counter()
    index = 0
    while where.total() < count:
        name, of = names[where.total() % len(names)], where.total() // len(names) % 3
        index += 1
        if index > 20 * count:
            raise RuntimeError("recordings end before they are killed")
        folder = parent / str(index)
        whole, moment = wholes[name], generator.random()
        begun, closing, ended = whole.seconds
        told.clear()
        child = forked(WORKS[name], folder, told)
        _reached(told, 2 if of == 2 else 1, child)
        time.sleep(moment * (ended - begun, (closing - begun) / 8, ended - closing)[of])
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if killed and not _has_ended(folder, told):
            found = check(folder, whole.rows, told[ROWS], whole.values)
            stage = STAGES[told[STAGE]]
            where[f"{stage}, with rows on disk" if told[ROWS] else f"{stage}, no row yet"] += 1
            if found:
                wrong.append(
                    f"{name}, recording {index}, {told[ROWS]} of {len(whole.rows)} rows written: {found}"
                )
        shutil.rmtree(folder, ignore_errors=True)
    return wrong, where


def _has_ended(folder: Path, told: Told) -> bool:
    """Whether a recording had come to its end before it was killed, and says so."""
    return told[STAGE] >= 2 and '"complete": true' in (folder / "manifest.json").read_text(encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Kill recordings; the exit status is 1 if a trace is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as parent:
        wrong, where = kill_some(options.count, options.seed, Path(parent))
    for line in wrong:
        print(line)
    listed = ", ".join(f"{count} {name}" for name, count in sorted(where.items()))
    print(f"{options.count} killed ({listed}): {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
