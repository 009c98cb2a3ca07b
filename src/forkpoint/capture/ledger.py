"""The ledger: the rows of the trace, a record of each tensor, and the queue of values that wait for their digests."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from weakref import proxy

import torch
from torch import Tensor

from forkpoint.capture.cells import digests_of
from forkpoint.capture.digest.batch import DevicePlan, DigestBatch, planned
from forkpoint.capture.functions import Function
from forkpoint.capture.labels import Label
from forkpoint.capture.listener import Listener
from forkpoint.capture.marks import Frame, TensorRecord, Treatment, version_of, versions_of
from forkpoint.capture.mode import Reel
from forkpoint.capture.resolver import Resolver
from forkpoint.capture.trace import Op, Row
from forkpoint.support.readable import why_unreadable

MAX_OPEN_TOTAL = 1 << 24
"""Most cells of a whole trace whose token dimensions are only suspected; beyond it such values are compared
whole."""
INPUT = -1
"""In place of the number of a module's output, for an input."""
NOTHING = torch.empty(0)
"""In place of a tensor, where there is none."""


class Ledger(Reel):
    """What the tape is read into. The reader adds to it entry by entry, a passage many rows at once.

    Args:
        listener: whoever records the run; held weakly, so that both go when the run is over.
        resolver: works out what comes for the first time.
        batch: takes the digests.
        digests: False to follow the labels only.

    Attributes:
        call: index of the forward call.
        stack: the modules at work, the innermost last; `arguments`, what went into each.
        frames: of the model's own modules, by their ids.
        tensors: the record of each tensor that was seen, by its id. An id is used again once a tensor is gone, so whoever
            looks one up has to check that the record's reference leads to the tensor in hand.
    """

    def __init__(self, listener: Listener, resolver: Resolver, batch: DigestBatch, digests: bool) -> None:
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
        self.tensors = resolver.tensors
        self.last_read: tuple[Tensor, int | None] = (NOTHING, None)
        """The last output of the function that is being recorded, and its version (`version_of`) when the next was called."""
        self.lasting = False
        """Whether what the current entry gave holds for every call with arguments of these marks: the history may have it."""
        self.queued: list[tuple[int, Treatment, DevicePlan | None, DevicePlan | None]] = []
        """Rows of the current entry whose values were queued: treatment, plan, and the plan of the open cells."""
        self.open_cells = 0
        self.opened: list[tuple[int, Treatment]] = []
        """Rows of values with open cells. They have two slots: the digests without the open dimensions, then with them."""
        self.odd: list[tuple[int, Tensor, Treatment]] = []
        """Rows and values that no plan digests: several rows of the value share a cell, or it has pairs of tokens."""
        self.computed: list[tuple[int, Treatment, list[Tensor]]] = []
        """The digests of `odd` values, on their device."""
        self.pending: list[Tensor] = []
        """Values whose digests are not computed yet; kept alive until the next flush."""
        self.pending_rows: list[int] = []
        self.pending_versions: list[int] = []
        """The version (`version_of`) that each had when it was complete: at the flush another one means that it was lost."""
        self.pending_bytes = 0
        self.n_bytes = 0
        self.fresh = False
        """Whether the last pending value may still change: what is written to it before the next call belongs to it."""

    def holds(self, record: TensorRecord) -> bool:
        """Whether the row of a tensor's record holds all of its value, not only the part that an indexed write wrote."""
        event = record[2]
        return event >= 0 and self.rows[event][2].shape == record[1].size

    def fits(self, open_cells: int) -> bool:
        """Whether the trace has room for that many more open cells."""
        return self.open_cells + open_cells <= MAX_OPEN_TOTAL

    def bounded(self, treatment: Treatment) -> Treatment:
        """The treatment itself if the trace has room for its open cells, else the same without open dimensions."""
        if not self.fits(treatment.open_cells):
            self.lasting = False
            return self.resolver.closed(treatment)
        self.open_cells += treatment.open_cells
        return treatment

    def put(self, op: Op, treatment: Treatment, value: Tensor, version: int | None = None) -> int:
        """Add a row for a value, and queue the value for its digest; returns the row.

        Args:
            op: whose output it is.
            treatment: how to digest it, or that it isn't digested.
            value: the tensor.
            version: its version once it was complete; None for the version it has now.
        """
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
        """Add a row for a value that a function wrote, or for a module's input or output; returns the row.

        Args:
            op: whose output it is.
            function: the function that wrote it; None for a module.
            value: the tensor.
            label: its label.
            reason: why it has none.
        """
        treatment = self.resolver.treatment(function, value, label, reason, view=False)
        return self.put(op, self.bounded(treatment), value)

    def queue(self, row: int, value: Tensor, treatment: Treatment, version: int | None) -> int:
        """Queue a value for the next flush; returns how many slots of the batch it takes."""
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
        """Another call begins: the last pending value is complete, with what was written to it since its function returned."""
        self.pending_versions[-1] = version_of(self.pending[-1])
        self.fresh = False

    def flush(self) -> None:
        """Compute the digests of all pending values, without waiting for the device, and let go of the values."""
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
        """Mark rows as skipped whose values' memory could not be read.

        Args:
            unreadable: the reason by slot of the batch.
        """
        ends = list(itertools.accumulate(row[4] for row in itertools.islice(self.rows, self.begins, None)))
        for slot, reason in unreadable.items():
            self.skipped[self.begins + bisect_right(ends, slot)] = reason


def plan_for(plans: dict[tuple[int, ...], DevicePlan], value: Tensor, dims: tuple[int, ...]) -> DevicePlan:
    """The plan for a value, made if there is none yet.

    Args:
        plans: by stride, those of values of the same dtype, shape and device.
        value: the tensor.
        dims: the dimensions that enumerate its rows.
    """
    stride = value.stride()
    plan = plans.get(stride)
    if plan is None:
        plan = plans[stride] = planned(value, dims)
    return plan
