"""Random programs, traced: `python -m tests.programs --count 10000 --seed 1 --workers 16`; exit status 1 if one is wrong.

A program follows from the seed and its number alone: `--seed 1 --only 4711` shows one and checks it. With
`FORKPOINT_PURE_PYTHON=1` all is checked without the part in C; else each program's rows are, too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time

from forkpoint import native

from .blocks import BLOCKS
from .check import check
from .many import Found, found_in, program

SHARE = 25
"""Programs that a worker takes at a time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many programs")
    parser.add_argument("--seed", type=int, default=1, help="what they follow from")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument("--only", type=int, help="the number of the one program to show and check")
    parser.add_argument("--block", choices=sorted(BLOCKS), help="programs that call this block alone")
    options = parser.parse_args()
    if options.only is not None:
        made = program(options.seed, options.only, options.block)
        print(made.text, made, sep="\n")
        wrong = check(made).wrong
        print(*wrong, sep="\n")
        return bool(wrong)
    begin, found = time.monotonic(), Found()
    shares = [range(n, min(n + SHARE, options.count)) for n in range(0, options.count, SHARE)]
    tasks = [(options.seed, options.block, share) for share in shares]
    with multiprocessing.get_context("spawn").Pool(min(options.workers, len(tasks))) as pool:
        for done in pool.imap_unordered(found_in, tasks):
            found.add(done)
            print(*done.wrong, sep="\n", end="\n" * bool(done.wrong), flush=True)
        pool.close()
        pool.join()
    counts = found.counts
    print(
        f"{counts['programs']:,} programs ({'C and Python' if native.IN_USE else 'Python alone'}), {counts['calls']:,} calls of "
        f"their models, {counts['planted']:,} with a difference, {counts['refused']} that torch refuses; {counts['answered']:,} answers as the oracle's, "
        f"{counts['located']:,} of them an op; {counts['wrong']} wrong; {time.monotonic() - begin:.0f} s"
    )
    return counts["wrong"] > 0


if __name__ == "__main__":
    sys.exit(main())
