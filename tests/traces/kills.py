"""Recordings killed at random moments: each trace reads up to the last op that was written, and says that it is incomplete.

`python -m tests.traces.kills --count 50 --seed 0` kills so many. The moments are spread over the time that a whole
recording takes, its first step to its last; what is read is held against that whole one, row by row.
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
from pathlib import Path

import torch
from tests.architectures import ARCHITECTURES, prompt

import forkpoint as fp
from forkpoint.errors import ForkpointError
from forkpoint.traces import writing
from forkpoint.traces.reading import Recorded, read

STEPS = 12
"""Calls after the first; a killed recording has any number of them."""


def work(folder: Path) -> None:
    """What is recorded: a prompt, and then a token at a time."""
    model = ARCHITECTURES["llama"].build()
    ids = torch.tensor([prompt(9)])
    with torch.no_grad(), fp.record(folder):
        model.generate(  # pyright: ignore[reportCallIssue]
            ids, max_new_tokens=STEPS + 1, min_new_tokens=STEPS + 1, do_sample=False, pad_token_id=0
        )


def forked(folder: Path, told: mmap.mmap) -> int:
    """Start a process that records, and tells how many rows it has written; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(
            1
        )  # the threads of MKL do not survive a fork, and whoever waits for them waits for good
        flush = writing.Writer.flush

        def telling(self: writing.Writer) -> None:
            flush(self)
            told[:8] = struct.pack("q", self.rows)

        writing.Writer.flush = telling
        work(folder)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it is
        traceback.print_exc()
        os._exit(1)
    raise AssertionError


def rows_of(recorded: Recorded) -> list[tuple[object, ...]]:
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


def check(folder: Path, whole: list[tuple[object, ...]], written: int) -> str:
    """What is wrong with the trace of a killed recording; empty if nothing is.

    Args:
        folder: of the trace.
        whole: the rows of a whole recording.
        written: how many rows the process said that it had written.
    """
    if not written and not list(folder.glob("*.arrow")):
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


def kill_some(count: int, seed: int, parent: Path) -> tuple[list[str], Counter[str]]:
    """Kill so many recordings; returns what is wrong, and how many of them were killed where."""
    told = mmap.mmap(-1, 8)
    work(parent / "first")  # whatever has to be loaded or compiled, forked processes have
    start = time.monotonic()
    if os.waitpid(forked(parent / "whole", told), 0)[1]:
        raise RuntimeError("the recording failed")
    seconds = time.monotonic() - start
    whole = rows_of(read(parent / "whole", "A"))
    generator = random.Random(seed)
    wrong: list[str] = []
    where: Counter[str] = Counter()
    index = 0
    while where.total() < count:
        index += 1
        folder = parent / str(index)
        told[:8] = struct.pack("q", 0)
        child = forked(folder, told)
        time.sleep(seconds * generator.random())
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        (written,) = struct.unpack("q", told[:8])
        if killed:  # else it had come to its end before
            found = check(folder, whole, written)
            where["with rows on disk" if written else "before the first row"] += 1
            if found:
                wrong.append(f"recording {index}, {written} of {len(whole)} rows written: {found}")
        elif index > 10 * count:
            raise RuntimeError("recordings end before they are killed")
        shutil.rmtree(folder, ignore_errors=True)
    return wrong, where


def main(arguments: list[str] | None = None) -> int:
    """Kill recordings; the exit status is 1 if a trace is not what it should be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as parent:
        wrong, where = kill_some(options.count, options.seed, Path(parent))
    for line in wrong:
        print(line)
    listed = ", ".join(f"{count} {name}" for name, count in where.items())
    print(f"{options.count} killed, {listed}: {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
