"""Reads damaged files: `python -m tests.fuzz --count 1000000 --seed 1`; exit status 1 if one was not refused in one clear line.

A line a target: how many inputs were read, how many refused, how many a second. `--each` gives so many to every target,
`--workers` shares them among processes. Each input follows from the seed, the target and its number alone:
`--target manifests --only 4711` repeats one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator

from .many import Found, fuzz_quietly
from .targets import TARGETS


def shared(name: str, seed: int, numbers: range, workers: int) -> Iterator[Found]:
    """What each of some processes finds, of every so manyeth number each; of this process where it is one."""
    tasks = [(name, seed, numbers[first::workers]) for first in range(min(workers, len(numbers)))]
    if len(tasks) == 1:
        yield fuzz_quietly(tasks[0])
        return
    with multiprocessing.get_context("spawn").Pool(len(tasks)) as pool:
        yield from pool.imap_unordered(fuzz_quietly, tasks)
        pool.close()
        pool.join()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="inputs in all")
    parser.add_argument("--each", type=int, metavar="COUNT", help="inputs of each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=[target.name for target in TARGETS], nargs="+", help="only these")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="only the input with this number")
    parser.add_argument("--workers", type=int, default=1, help="how many processes")
    given = parser.parse_args(arguments)
    targets = [target for target in TARGETS if given.target is None or target.name in given.target]
    shares = sum(target.share for target in targets)
    wrong: list[str] = []
    for target in targets:
        count = given.each or max(given.count * target.share // shares, 1)
        numbers = range(count) if given.only is None else range(given.only, given.only + 1)
        begin, found = time.monotonic(), Found()
        for part in shared(target.name, given.seed, numbers, given.workers):
            found.add(part)
        refused = found.inputs - found.read - len(found.wrong)
        print(
            f"{target.name}: {found.inputs:,} inputs, {found.read:,} read, {refused:,} refused, {len(found.wrong)} wrong, "
            f"{found.inputs / (time.monotonic() - begin):,.0f} a second",
            flush=True,
        )
        wrong += [f"{target.name} {line}" for line in found.wrong]
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
