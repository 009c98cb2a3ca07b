"""Many comparisons in one process: `python -m tests.soak --count 500`; exit status 1 if memory grows by 1 % or more.

The mean of the resident memory after comparisons 50 to 100 against that after the last 50: of one model, or with `--new`
of a new model each time. Each comparison ends in a verdict with all its probes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from tests.architectures import ARCHITECTURES, prompt
from torch import nn

import forkpoint as fp

BAR = 0.01


def small() -> nn.Module:
    return ARCHITECTURES["llama"].build()


def compare(model: nn.Module, *, probes: bool = True) -> fp.Result:
    """A prompt alone against the same padded to the left, where the mask lets all see the padding."""
    llama, ids = ARCHITECTURES["llama"], prompt(9)
    padded = llama.inputs([ids], pad_to=14)
    padded["input_ids"] = torch.tensor([[0] * 5 + list(ids)])
    padded["position_ids"] = torch.tensor([[0] * 5 + list(range(9))])
    padded["attention_mask"] = torch.ones(1, 14, dtype=torch.int64)
    layout = fp.Layout.from_mask(torch.tensor([[0] * 5 + [1] * 9]))
    a, b = fp.Run(model, llama.inputs([ids])), fp.Run(model, padded, layout=layout)
    return fp.compare(a, b, probes=probes)


def resident() -> float:
    """MiB of this process that are in memory, once the C library has given back what it holds free, if it is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / (1 << 20)


def soak(count: int, *, new: bool) -> Iterator[float]:
    """The resident memory after each comparison, collected garbage gone."""
    model = small()
    for _ in range(count):
        if new:
            model = small()
        result = compare(model)
        assert result.verdict.kind == "semantic", result.verdict
        del result
        gc.collect()
        yield resident()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--new", action="store_true", help="a new model for each comparison")
    given = parser.parse_args(arguments)
    if given.count < 150:
        parser.error("--count must be 150 or more")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sizes: list[float] = []
    for size in soak(given.count, new=given.new):
        sizes.append(size)
        if len(sizes) % 50 == 0:
            print(f"{len(sizes):4}: {size:.1f} MiB", flush=True)
    early, late = statistics.mean(sizes[50:100]), statistics.mean(sizes[-50:])
    growth = late / early - 1
    print(
        f"{early:.1f} MiB after comparisons 50 to 100, {late:.1f} MiB after the last 50: {100 * growth:+.2f} %"
    )
    return 1 if growth >= BAR else 0


if __name__ == "__main__":
    sys.exit(main())
