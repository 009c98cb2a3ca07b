"""Which module around the origin is given a mask: one that tells the padding of its rows from their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forkpoint.capture.labels import spread
from forkpoint.probes.bench import Bench
from forkpoint.probes.watchers import Snapshot
from forkpoint.runs.layout import MAIN
from forkpoint.runs.modules import module_at
from forkpoint.runs.run import Run
from forkpoint.support.arrays import tensor_of


@dataclass(frozen=True)
class Masked:
    """A module that is given a mask.

    Attributes:
        module: its path; empty for the model itself.
        own: whether it is the module at the origin, or the one whose code calls it; else it lies around that.
    """

    module: str
    own: bool

    def __str__(self) -> str:
        """What can be said of it, as in "…, though the module is given a mask"."""
        name = self.module or "the model"
        return f"though {name} is given a mask" if self.own else f"though {name}, around it, is given a mask"


def masked_module(benches: tuple[Bench, Bench], module: str) -> Masked | None:
    """The module that is given a mask in each run that has padding; None where none is.

    It is the one whose code makes the call at the origin: torch's own modules (a convolution, a norm) leave masks to
    those that call them. Else it is one around that, below the model itself: a mask that the model is given, and keeps to
    itself, is none that its modules have.

    Args:
        benches: the runs at the origin.
        module: the path of the module at the origin, in run A.
    """
    padded = [bench for bench in benches if (bench.slots & ~bench.is_token & (bench.columns >= 0)).any()]
    for path, own in _around(benches[0].traced.run, module):
        if padded and all(is_given_mask(bench, path) for bench in padded):
            return Masked(path, own)
    return None


def is_given_mask(bench: Bench, module: str) -> bool:
    """Whether the recorded arguments of a module's own calls hold a mask that tells padding from tokens."""
    plain = bench.traced.trace.plain
    given = (snapshot for snapshot in bench.store.snapshots.values() if snapshot.op.is_input)
    return any(
        plain(snapshot.op.module) == plain(module) and _tells_padding(bench, snapshot) for snapshot in given
    )


def _around(run: Run, module: str) -> Iterator[tuple[str, bool]]:
    """The module, those around it, and whether each is its own or the caller of what is torch's."""
    path, own = module, True
    while True:
        if own or path:
            yield path, own
        if not path:
            return
        own = own and _is_of_torch(run.modules, path)
        path = path.rpartition(".")[0]


def _is_of_torch(model: nn.Module | None, path: str) -> bool:
    owner = None if model is None else module_at(model, path)  # none: a module that is made for the call
    return owner is not None and type(owner).__module__.partition(".")[0] == "torch"


def _tells_padding(bench: Bench, snapshot: Snapshot) -> bool:
    """Whether padding has one value, which tokens have not: all of them where no name says that it is a mask."""
    ids = _ids(bench, snapshot)
    if ids is None:
        return False
    places, seen = ids
    column = bench.slots & (bench.columns >= 0)
    padding, tokens = (seen & columns_of[places] for columns_of in (column & ~bench.is_token, bench.is_token))
    if not (padding.any() and tokens.any()):
        return False
    of_padding, of_tokens = (
        torch.unique(_numbers(snapshot.value)[tensor_of(which)]) for which in (padding, tokens)
    )
    called = "mask" in snapshot.op.function
    if len(of_padding) != 1 or (len(of_tokens) != 1 and not called):
        return False
    return bool((of_tokens != of_padding).any() if called else (of_tokens != of_padding).all())


def _numbers(value: Tensor) -> Tensor:
    return value.detach().cpu().to(torch.uint8) if value.dtype == torch.bool else value.detach().cpu()


def _ids(bench: Bench, snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray] | None:
    """For each element whose column (or key) it stands for, and whether it is a token's view of it."""
    shape = tuple(snapshot.value.shape)
    if snapshot.label is not None:
        q = spread(snapshot.label.q, shape)
        if snapshot.label.k is None:
            return q, np.ones(shape, dtype=bool)
        return spread(snapshot.label.k, shape), bench.is_token[q]
    grid = bench.traced.trace.table.slots(snapshot.event.call, MAIN)
    if grid is None or len(shape) < 2 or (shape[0], shape[-1]) != tuple(grid.shape):
        return None
    places = grid.reshape(shape[0], *[1] * (len(shape) - 2), shape[-1])
    return np.broadcast_to(places, shape), np.ones(shape, dtype=bool)
