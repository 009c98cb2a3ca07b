"""Reads damaged files: `python -m tests.fuzz --count 1000000 --seed 1`; exit status 1 if one was not refused in one clear line.

A line a target: how many inputs were read, how many refused, how many a second. Each input follows from the seed, the target
and its number alone: `--target manifests --only 4711` repeats one.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import torch

from .targets import TARGETS, Target

LIMIT = 60
"""Seconds that one input may take."""
MEMORY = 24 << 30
"""Bytes of address space, so that what asks for all the memory there is gets an error."""


def fuzz(target: Target, seed: int, numbers: range) -> list[str]:
    """Read damaged inputs by their numbers; what went wrong, a line for each."""
    wrong: list[str] = []
    read = 0
    room = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=room, prefix="forkpoint-fuzz-") as folder:
        draw = target.prepare(Path(folder))
        begin = time.monotonic()
        for number in numbers:
            try:
                signal.alarm(LIMIT)
                read += draw(random.Random(f"{seed} {target.name} {number}"))()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = str(error)[:300]
                wrong.append(
                    f"{number}: {type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {text!r}"
                )
                if len(wrong) >= 100:
                    break
            finally:
                signal.alarm(0)
        took = time.monotonic() - begin
    count = len(numbers)
    print(
        f"{target.name}: {count:,} inputs, {read:,} read, {count - read - len(wrong):,} refused, {len(wrong)} wrong, "
        f"{count / max(took, 1e-9):,.0f} a second",
        flush=True,
    )
    return wrong


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=[target.name for target in TARGETS], help="only this one")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="only the input with this number")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.enable()
    signal.signal(signal.SIGALRM, _too_long)
    wrong: list[str] = []
    targets = [target for target in TARGETS if given.target in (None, target.name)]
    shares = sum(target.share for target in targets)
    for target in targets:
        count = max(given.count * target.share // shares, 1)
        numbers = range(count) if given.only is None else range(given.only, given.only + 1)
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
            found = fuzz(target, given.seed, numbers)
        wrong += [f"{target.name} {line}" for line in found]
    for line in wrong:
        print(line)
    return 1 if wrong else 0


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {LIMIT} s")


if __name__ == "__main__":
    sys.exit(main())
