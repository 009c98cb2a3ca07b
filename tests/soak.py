"""Many comparisons in one process: `python -m tests.soak --count 500`; exit status 1 if memory grows by 1 % or more.

The mean of the resident memory after comparisons 50 to 100 against that after the last 50: of one model, or with `--new`
of a new model each time. Each comparison ends in a verdict with all its probes.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import forkpoint as fp

BAR = 0.01


class Small(nn.Module):
    """A few layers, and in each the mean over all tokens, which padding changes."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        for layer in self.layers:
            input = torch.tanh(layer(input)) + input.mean(1, keepdim=True)  # noqa: A001
        return input


def small() -> Small:
    torch.manual_seed(0)
    return Small()


def compare(model: nn.Module) -> fp.Result:
    """A comparison with probes: what is padded lies to the left."""
    x = torch.linspace(-1, 1, 40).reshape(1, 5, 8)
    padded = torch.cat([torch.ones(1, 3, 8), x], 1)
    layout = fp.Layout.from_mask(torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]]))
    a, b = fp.Run(model, {"input": x}), fp.Run(model, {"input": padded}, layout=layout)
    return fp.compare(a, b)


def resident() -> float:
    """MiB of this process that are in memory."""
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
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[0])
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
