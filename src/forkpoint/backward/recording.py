"""A trace of gradients: op × token coordinate → digest of the gradient of the op's output, in the order of the backward pass."""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forkpoint.backward.going_back import GoingBack
from forkpoint.backward.watching import Arrivals, Awaited, Graph
from forkpoint.capture.completion import complete, shelve
from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.digest.batch import DigestBatch
from forkpoint.capture.ledger import Ledger
from forkpoint.capture.recorder import Recorder
from forkpoint.capture.trace import Op, Trace
from forkpoint.support.memory import Shelf

_PENDING_BYTES = 1 << 25
"""Gradients kept alive for a digest in one go."""


class _Writer:
    """What a ledger asks of whoever writes to it."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.ledger: Ledger | None = None

    def collect(self) -> None:
        """Digests on the host go to the shelf, if there is one."""
        if self.ledger is not None:
            shelve(self.trace, self.ledger)


@dataclass(frozen=True, eq=False)
class RunGradients:
    """The gradients of one run's ops.

    Attributes:
        trace: from the last op that was executed to the first, as the backward pass comes by.
        awaited: by row of the trace, whose gradient it is.
        absent: events at whose outputs no gradient arrived: it is zero.
        graph: what was made of what.
        left_out: ops whose outputs' gradients add up over a call's tokens.
    """

    trace: Trace
    awaited: list[Awaited]
    absent: frozenset[int]
    graph: Graph
    left_out: tuple[Op, ...]


class GradientTrace(Arrivals):
    """Digests every gradient as it comes.

    Args:
        backward, summing: as `Arrivals` takes them.
        table: the coordinates of the run.
        shelf: where to put the digests, if not all of them may stay in memory.
    """

    def __init__(
        self, backward: GoingBack, table: CoordinateTable, shelf: Shelf | None, *, summing: bool
    ) -> None:
        super().__init__(backward, summing=summing)
        self._writer = _Writer(Trace(table, shelf=shelf))
        self._shelf = shelf
        self._rows: list[Awaited] = []

    def await_(self, recorder: Recorder, awaited: Awaited) -> None:
        self._writer.trace.lengths = recorder.trace.lengths
        if self._writer.ledger is None:
            batch = DigestBatch(self._shelf)
            self._writer.ledger = Ledger(self._writer, recorder.resolver, batch, digests=True)  # pyright: ignore[reportArgumentType]

    def take(self, awaited: Awaited, gradient: Tensor) -> None:
        ledger = self._writer.ledger
        assert ledger is not None
        ledger.call = awaited.call
        ledger.resolver.lengths, now = self._writer.trace.lengths[awaited.call], ledger.resolver.lengths
        try:
            ledger.append(awaited.op, None, gradient, awaited.label, awaited.lost)
        finally:
            ledger.resolver.lengths = now
        self._rows.append(awaited)
        if ledger.pending_bytes > _PENDING_BYTES:
            ledger.flush()

    def finish(self) -> RunGradients:
        """The trace of the backward pass that is over."""
        absent = self.awaited.keys() - self.arrived
        for awaited in map(self.awaited.__getitem__, absent):
            self.take(awaited, torch.zeros(awaited.shape, dtype=awaited.dtype, device=awaited.device))
        trace, ledger = self._writer.trace, self._writer.ledger
        if ledger is not None:
            ledger.flush()
            digests = ledger.batch.results()
            trace.digests = digests.__getitem__
            complete(trace, ledger, digests)
            self._writer.ledger = None
        trace.completed = True
        order = sorted(range(len(self._rows)), key=lambda row: -self._rows[row].event)
        return RunGradients(
            _in_order(trace, order), [self._rows[row] for row in order], frozenset(absent), self.graph,
            tuple(self.left_out),
        )  # fmt: skip


def _in_order(trace: Trace, order: list[int]) -> Trace:
    """The same rows in another order."""
    slots, digests = trace.slots, trace.digests
    moved = Trace(trace.table, [trace.rows[row] for row in order], shelf=trace.shelf, lengths=trace.lengths)
    old = [slots[row] + n for row in order for n in range(trace.rows[row][4])]
    moved.digests = lambda slot: digests(old[slot])
    moved.odd = {new: trace.odd[row] for new, row in enumerate(order) if row in trace.odd}
    moved.skipped = {new: trace.skipped[row] for new, row in enumerate(order) if row in trace.skipped}
    moved.completed = True
    return moved
