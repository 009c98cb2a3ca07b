"""Digests of many tensors at once: cheap to queue, computed together, read once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.digest import torch_impl
from forkpoint.capture.digest.backend import table_implementation
from forkpoint.capture.digest.plan import Plan, find, packed

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Digests:
    """The digests of all queued tensors, on the host; ``digests[slot]`` are those of one, int64[rows]."""

    values: Ints
    starts: Ints
    """Where each slot's digests begin in ``values``."""
    rows: Ints
    """How many digests each slot has."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, slot: int) -> Ints:
        return self.values[self.starts[slot] : self.starts[slot] + self.rows[slot]]


@dataclass
class _Queue:
    """What is queued for one device, as columns, and the digests of what was flushed."""

    device: torch.device
    tensors: list[Tensor] = field(default_factory=list[Tensor])
    row_dims: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    addresses: list[int] = field(default_factory=list[int])
    plans: list[int] = field(default_factory=list[int])
    """Numbers of plans in ``known_plans``."""
    copied: list[int] = field(default_factory=list[int])
    """Entries whose words can't be read where they lie."""
    known_plans: dict[Plan, int] = field(default_factory=dict[Plan, int])
    rows: int = 0
    """Rows ever queued."""
    digests: list[Tensor] = field(default_factory=list[Tensor])

    def plan_number(self, plan: Plan) -> int:
        return self.known_plans.setdefault(plan, len(self.known_plans))

    def flush(self) -> None:
        if not self.tensors:
            return
        found = table_implementation(self.device)
        if found is None:
            pairs = zip(self.tensors, self.row_dims, strict=True)
            self.digests += [torch_impl.rows(x, dims) for x, dims in pairs]
        else:
            self.digests.append(found.digest_table(self.table(), self.device))
        for column in (self.tensors, self.row_dims, self.addresses, self.plans, self.copied):
            column.clear()

    def table(self) -> Ints:
        """See `backend.Table`. Copies what must be copied, and keeps the copies in place of the tensors."""
        known = list(self.known_plans)
        while self.copied:  # an entry at a time, so that a flush that fails can be tried again
            entry = self.copied[-1]
            words = torch_impl.pack_rows(self.tensors[entry], self.row_dims[entry])
            self.tensors[entry], self.addresses[entry] = words, words.data_ptr()
            self.plans[entry] = self.plan_number(packed(known[self.plans[entry]]))
            self.copied.pop()
        fields = np.array([plan.fields for plan in self.known_plans], dtype=np.int64)[self.plans]
        table = np.zeros((len(fields), 3 + fields.shape[1]), dtype=np.int64)
        table[:, 0] = self.addresses
        table[1:, 1] = np.cumsum(fields[:-1, 0])
        table[:, 3:] = fields
        return table


class _Known(NamedTuple):
    """What `Batch.add` needs to know about tensors of one shape, stride, dtype and device."""

    queue: _Queue
    plan: int
    rows: int
    n_bytes: int
    direct: bool


class Batch:
    """Queues tensors and digests their rows later: many on one device in one go, without waiting for it.

    A queued tensor is kept alive, and read when `flush` comes, on the then current stream: flush before
    anything writes to it in place, and whenever ``pending_bytes`` passes what may be kept.

    >>> batch = Batch()
    >>> slots = [batch.add(torch.ones(1, n, 4), (0, 1)) for n in (2, 3)]
    >>> digests = batch.results()
    >>> [len(digests[slot]) for slot in slots], bool(digests[1][2] == digests[0][0])
    ([2, 3], True)
    """

    def __init__(self) -> None:
        self.pending_bytes = 0
        """Bytes of the queued slices; what an expanded tensor repeats is counted as often."""
        self._known: dict[Any, _Known] = {}
        self._queues: dict[torch.device, _Queue] = {}
        self._slots: list[_Known] = []
        self._starts: list[int] = []

    def add(self, x: Tensor, row_dims: tuple[int, ...]) -> int:
        """Queues ``rows(x, row_dims)`` and returns its slot in the results, counted from 0.

        Raises:
            TypeError: the tensor is sparse, quantized or on the meta device.
            ValueError: the dimensions are out of range or not ascending.
        """
        key = (x.dtype, x.shape, x.stride(), row_dims, x.device)
        known = self._known.get(key) or self._learn(key, x)
        queue, plan, rows, n_bytes, direct = known
        address = x.data_ptr()
        if not direct or address & 3 or x.is_neg():
            queue.copied.append(len(queue.tensors))
        queue.tensors.append(x)
        queue.row_dims.append(row_dims)
        queue.addresses.append(address)
        queue.plans.append(plan)
        self._slots.append(known)
        self._starts.append(queue.rows)
        queue.rows += rows
        self.pending_bytes += n_bytes
        return len(self._slots) - 1

    def _learn(self, key: tuple[Any, ...], x: Tensor) -> _Known:
        plan = find(x, key[3])
        queue = self._queues.setdefault(x.device, _Queue(x.device))
        known = _Known(queue, queue.plan_number(plan), plan.rows, 4 * plan.rows * plan.words, plan.direct)
        self._known[key] = known
        return known

    def flush(self) -> None:
        """Digests what is queued, without waiting for the device, and lets go of the tensors."""
        for queue in self._queues.values():
            queue.flush()
        self.pending_bytes = 0

    def results(self) -> Digests:
        """Flushes, and copies the digests of all slots to the host, once per device."""
        self.flush()
        offset, offsets, values = 0, dict[torch.device, int](), [np.zeros(0, dtype=np.int64)]
        for device, queue in self._queues.items():
            values.append(torch.cat(queue.digests).cpu().numpy())
            offsets[device] = offset
            offset += queue.rows
        starts = [
            start + offsets[known.queue.device]
            for start, known in zip(self._starts, self._slots, strict=True)
        ]
        rows = [known.rows for known in self._slots]
        return Digests(
            np.concatenate(values), np.array(starts, dtype=np.int64), np.array(rows, dtype=np.int64)
        )
