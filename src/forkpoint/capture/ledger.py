"""What the tape was read into: the rows of the trace, what is known of each tensor, and the values that wait for a digest."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from weakref import proxy

import torch
from torch import Tensor

from forkpoint.capture.cells import digests_of
from forkpoint.capture.digest.batch import Batch, DevicePlan, planned
from forkpoint.capture.functions import Function
from forkpoint.capture.labels import Label
from forkpoint.capture.listener import Listener
from forkpoint.capture.marks import Frame, Known, Treatment, version_of, versions_of
from forkpoint.capture.mode import Reel
from forkpoint.capture.resolver import Resolver
from forkpoint.capture.trace import Op, Row
from forkpoint.support.readable import why_unreadable

MAX_OPEN_TOTAL = 1 << 24
"""Most cells of a whole trace whose token dimensions are only suspected; beyond it such values are compared
whole."""
INPUT = -1
"""What stands for the number of a module's output where the value goes in."""
NOTHING = torch.empty(0)
"""In place of a value, where there is none."""


class Ledger(Reel):
    """Rows are added to it, and values queued for their digests, by whoever reads the tape: entry by entry, or a passage at once.

    Args:
        listener: whoever records the run; held weakly, so that both go when the run is over.
        resolver: works out what comes for the first time.
        batch: takes the digests.
        digests: False to follow the labels only.

    Attributes:
        call: index of the forward call.
        stack: the modules at work, the innermost last; `arguments`, what went into each.
        frames: of the model's own modules, by their ids.
        known: by the id of a tensor, what `marks.Known` says.
    """

    def __init__(self, listener: Listener, resolver: Resolver, batch: Batch, digests: bool) -> None:
        super().__init__()
        self.listener: Listener = proxy(listener)
        self.resolver = resolver
        self.rows: list[Row] = listener.trace.rows
        self.skipped: dict[int, str] = listener.trace.skipped
        self.batch = batch
        self.begins = 0
        """The first row whose digests the batch takes."""
        self.digests = digests
        self.call = -1
        self.stack: list[Frame] = []
        self.arguments = resolver.arguments
        self.frames: dict[int, Frame] = {}
        self.known = resolver.known
        self.last_read: tuple[Tensor, int | None] = (NOTHING, None)
        """While the tape is read, the last value, and how often it had been written to when the next function was called."""
        self.lasting = False
        """Whether what was just recorded is the same for all calls whose arguments have these marks."""
        self.queued: list[tuple[int, Treatment, DevicePlan | None, DevicePlan | None]] = []
        """Rows that were just queued for their digests: how; and how their open cells are."""
        self.open_cells = 0
        self.opened: list[tuple[int, Treatment]] = []
        """Rows of values with open cells. They have a slot for the cells with those dimensions taken in, and one for
        all of them."""
        self.odd: list[tuple[int, Tensor, Treatment]] = []
        """Row and value of those whose rows share cells, or that are digested in pairs."""
        self.computed: list[tuple[int, Treatment, list[Tensor]]] = []
        """The digests of such values, on their device."""
        self.pending: list[Tensor] = []
        """Values whose digest is not computed yet."""
        self.pending_rows: list[int] = []
        self.pending_versions: list[int] = []
        self.pending_bytes = 0
        self.n_bytes = 0
        self.fresh = False
        """Whether the last of them was recorded by what ran last: what is done to it at once still belongs to it."""

    def holds(self, known: Known) -> bool:
        """Whether the event of a tensor holds all of its value, not what an indexed write wrote of it."""
        event = known[2]
        return event >= 0 and self.rows[event][2].shape == known[1].size

    def fits(self, open_cells: int) -> bool:
        """Whether there may be so many more cells of dimensions that are only suspected."""
        return self.open_cells + open_cells <= MAX_OPEN_TOTAL

    def bounded(self, treatment: Treatment) -> Treatment:
        """What to do with a value, where so many dimensions may be suspected and no more."""
        if not self.fits(treatment.open_cells):
            self.lasting = False
            return self.resolver.closed(treatment)
        self.open_cells += treatment.open_cells
        return treatment

    def put(self, op: Op, treatment: Treatment, value: Tensor, version: int | None = None) -> int:
        """Put a value on the trace, and have it digested with the next flush."""
        row = len(self.rows)
        slots = self.queue(row, value, treatment, version) if treatment.digested and self.digests else 0
        self.rows.append((op, self.call, treatment.form, 0, slots))
        return row

    def append(
        self,
        op: Op,
        function: Function | None,
        value: Tensor,
        label: Label | None,
        reason: str = "",
    ) -> int:
        """Put a value on the trace that a function wrote, or that a module took or gave."""
        treatment = self.resolver.treatment(function, value, label, reason, view=False)
        return self.put(op, self.bounded(treatment), value)

    def queue(self, row: int, value: Tensor, treatment: Treatment, version: int | None) -> int:
        """Have a value digested with the next flush; returns how many slots that takes."""
        slots = 0
        plan = grid = None
        if treatment.plain or treatment.open:
            plan = plan_for(treatment.plans, value, treatment.cut.row_dims)
            self.batch.push(value, plan)
            self._pend(plan.n_bytes)
            slots = 1
            if treatment.open:
                grid = plan_for(treatment.grid_plans, value, treatment.cut.grid_dims)
                self.batch.push(value, grid)
                self._pend(grid.n_bytes)
                self.opened.append((row, treatment))
                slots = 2
        else:
            self.odd.append((row, value.detach(), treatment))
            self._pend(value.nbytes)
        self.queued.append((row, treatment, plan, grid))
        if self.fresh:
            self.settle()
        self.pending.append(value)
        self.pending_rows.append(row)
        if version is None and value is self.last_read[0]:
            version = self.last_read[1]
        self.fresh = version is None
        self.pending_versions.append(version_of(value) if version is None else version)
        return slots

    def _pend(self, n_bytes: int) -> None:
        self.pending_bytes += n_bytes
        self.n_bytes += n_bytes

    def settle(self) -> None:
        """What ran last is over: a value that it changed right after a function returned is that function's value."""
        self.pending_versions[-1] = version_of(self.pending[-1])
        self.fresh = False

    def flush(self) -> None:
        """Compute the digests of everything that is pending, without waiting for the device."""
        if self.fresh:
            self.settle()
        versions = versions_of(self.pending)
        if versions != self.pending_versions:
            for row, now, before in zip(self.pending_rows, versions, self.pending_versions, strict=True):
                if now != before:
                    self.skipped[row] = "overwritten before it could be read"
        unreadable = self.batch.flush()
        if unreadable:
            self._skip(unreadable)
        for row, tensor, treatment in self.odd:
            reason = why_unreadable(tensor)
            if reason:
                self.skipped[row] = reason
            else:
                self.computed.append((row, treatment, digests_of(tensor, treatment.cut)))
        self.odd.clear()
        self.pending.clear()
        self.pending_rows.clear()
        self.pending_versions.clear()
        self.n_bytes -= self.pending_bytes
        self.pending_bytes = 0
        self.listener.collect()

    def _skip(self, unreadable: dict[int, str]) -> None:
        """Note which rows hold no digest, as the memory of a value could not be read.

        Args:
            unreadable: slots, each with the reason.
        """
        ends = list(itertools.accumulate(row[4] for row in itertools.islice(self.rows, self.begins, None)))
        for slot, reason in unreadable.items():
            self.skipped[self.begins + bisect_right(ends, slot)] = reason


def plan_for(plans: dict[tuple[int, ...], DevicePlan], value: Tensor, dims: tuple[int, ...]) -> DevicePlan:
    """How to digest a value, from the plans for others that differ at most in stride."""
    stride = value.stride()
    found = plans.get(stride)
    if found is None:
        found = plans[stride] = planned(value, dims)
    return found
