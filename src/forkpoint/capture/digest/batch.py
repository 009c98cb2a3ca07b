"""Digests of many tensors at once: cheap to queue, computed together, read once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.digest import torch_impl
from forkpoint.capture.digest.backend import Ints, TablePlan, TensorTable, prepare, table_implementation
from forkpoint.capture.digest.places import places_of
from forkpoint.capture.digest.plan import RowPlan, find, packed
from forkpoint.support.memory import Shelf, Shelved
from forkpoint.support.readable import extent_of, why_unreadable


class Digests:
    """The digests of all queued tensors, on the host; ``digests[slot]`` are those of one, int64[rows].

    They are on their way there until somebody looks at one.

    Attributes:
        starts: where each slot's digests begin in ``values``.
        rows: how many digests each slot has.
    """

    def __init__(self, parts: list[Arriving], starts: Ints, rows: Ints) -> None:
        self._parts, self.starts, self.rows = parts, starts, rows

    @cached_property
    def values(self) -> Ints:
        """All digests, one after the other."""
        parts = [part.wait() for part in self._parts]
        self._parts = []
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, slot: int) -> Ints:
        return self.values[self.starts[slot] : self.starts[slot] + self.rows[slot]]


@dataclass(frozen=True)
class ShelvedDigests:
    """The same where not all may stay in memory: parts, in memory or in a file, and where in them each slot is."""

    parts: list[Ints | Shelved]
    part: Ints
    starts: Ints
    """Where each slot's digests begin in its part."""
    rows: Ints

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, slot: int) -> Ints:
        start, rows = int(self.starts[slot]), int(self.rows[slot])
        if not rows:
            return np.zeros(0, dtype=np.int64)
        part = self.parts[self.part[slot]]
        return part.elements(start, rows).numpy() if isinstance(part, Shelved) else part[start : start + rows]


class DevicePlan:
    """How tensors of one dtype, shape, stride and device are digested; the same object serves all batches.

    Attributes:
        device: number of the device among those seen so far.
        number: number of the row plan among all that were made; `number_bytes` is the same as int64.
        rows: how many digests such a tensor has.
        n_bytes: of its slices; what an expanded tensor repeats is counted as often.
    """

    __slots__ = ("device", "direct", "n_bytes", "number", "number_bytes", "plan", "row_dims", "rows")

    def __init__(self, plan: RowPlan, device: torch.device, row_dims: tuple[int, ...]) -> None:
        self.plan, self.row_dims = plan, row_dims
        self.number = _numbers.setdefault(plan, len(_numbers))
        self.number_bytes = np.int64(self.number).tobytes()
        self.device = _devices.setdefault(device, len(_devices))
        self.rows = plan.rows
        self.n_bytes = 4 * plan.rows * plan.words
        self.direct = plan.direct


class PlanGroup:
    """The plans of tensors that are always queued together, such as those of a layer.

    Attributes:
        devices: the device number of each tensor, int64; `device` is that number where all have the same, else None.
        numbers: the plan number of each, int64.
        rows: how many digests each has, int64.
        n_bytes: of the slices of all.
    """

    __slots__ = ("device", "devices", "n_bytes", "numbers", "plans", "rows")

    def __init__(self, plans: list[DevicePlan]) -> None:
        self.plans = plans
        self.devices = array("q", [plan.device for plan in plans])
        self.device = self.devices[0] if len(set(self.devices)) == 1 else None
        self.numbers = b"".join(plan.number_bytes for plan in plans)
        self.rows = array("q", [plan.rows for plan in plans])
        self.n_bytes = sum(plan.n_bytes for plan in plans)


_numbers: dict[RowPlan, int] = {}
"""All plans ever made, which are few, each with its number."""
_devices: dict[torch.device, int] = {}


def planned(x: Tensor, row_dims: tuple[int, ...]) -> DevicePlan:
    """How to digest a tensor by its rows, and any other of its dtype, shape, stride and device.

    Raises:
        TypeError: the tensor is sparse, quantized or on the meta device.
        ValueError: the dimensions are out of range or not ascending.
    """
    return DevicePlan(find(x, row_dims), x.device, row_dims)


@dataclass
class _Queue:
    """What is queued for one device, and the digests of what was flushed."""

    device: torch.device
    tensors: list[Tensor] = field(default_factory=list[Tensor])
    plans: list[DevicePlan] = field(default_factory=list[DevicePlan])
    """How each of them is digested."""
    numbers: bytearray = field(default_factory=bytearray)
    """Of their plans, int64 each."""
    negated: set[int] = field(default_factory=set[int])
    """Those whose elements are to be negated."""
    digests: list[Tensor] = field(default_factory=list[Tensor])
    parts: list[Ints | Shelved] = field(default_factory=list[Any])
    """Digests that were put on a shelf, a part for each time."""
    ends: list[int] = field(default_factory=list[int])
    """How many digests there are up to the end of each part."""

    def shelve(self, shelf: Shelf) -> None:
        """Put the digests that there are so far on a shelf, on the host."""
        for part in (
            (torch.cat(self.digests),) if self.device.type == "cpu" and self.digests else self.digests
        ):
            if len(part):
                self.parts.append(shelf.keep_array(part.cpu().numpy()))
                self.ends.append(len(part) + (self.ends[-1] if self.ends else 0))
        self.digests.clear()

    def flush(self) -> dict[int, str]:
        """Digest what is queued; which of the tensors could not be read, and why: their digests are 0."""
        if not self.tensors:
            return {}
        places, rooms = (np.frombuffer(column, dtype=np.int64) for column in places_of(self.tensors))
        unreadable = self._leave_out(rooms)
        if unreadable:
            places = np.frombuffer(places_of(self.tensors)[0], dtype=np.int64)
        backend = table_implementation(self.device)
        if backend is None:
            pairs = zip(self.tensors, self.plans, strict=True)
            self.digests += [torch_impl.rows(x, plan.row_dims) for x, plan in pairs]
        else:
            self.digests.append(backend.digest_table(self._table(places), self.device))
        self.tensors.clear()
        self.plans.clear()
        self.numbers.clear()
        self.negated.clear()
        return unreadable

    def _leave_out(self, rooms: Ints) -> dict[int, str]:
        """Put tensors without elements in place of those that reach beyond their memory, of which there are `rooms` bytes."""
        _, indirect, extents = _table_plan(bytes(self.numbers))
        beyond = np.flatnonzero(extents > rooms).tolist()
        beyond += [entry for entry in indirect if extent_of(self.tensors[entry]) > rooms[entry]]
        reasons: dict[int, str] = {}
        for entry in beyond:
            reasons[entry] = why_unreadable(self.tensors[entry])
            empty = torch.zeros(self.plans[entry].rows, 0, dtype=torch.int32, device=self.device)
            self._replace(entry, empty, planned(empty, (0,)))
        return reasons

    def _table(self, places: Ints) -> TensorTable:
        """See `backend.TensorTable`. Copies what can't be read where it lies, and keeps the copies in place of the tensors."""
        table_plan, indirect, _ = _table_plan(bytes(self.numbers))
        copied = {*np.flatnonzero(places & 3).tolist(), *indirect, *self.negated}
        if copied:
            places = places.copy()
            for entry in copied:  # one at a time: a flush that fails can be tried again
                places[entry] = self._copy(entry)
            table_plan, *_ = _table_plan(bytes(self.numbers))
        return TensorTable(places, None, table_plan)

    def _copy(self, entry: int) -> int:
        """Put a copy that can be read where it lies in place of a tensor; returns where it lies."""
        device_plan = self.plans[entry]
        words = torch_impl.pack_rows(self.tensors[entry], device_plan.row_dims)
        self._replace(entry, words, DevicePlan(packed(device_plan.plan), self.device, (0,)))
        return words.data_ptr()

    def _replace(self, entry: int, x: Tensor, plan: DevicePlan) -> None:
        self.tensors[entry], self.plans[entry] = x, plan
        self.numbers[8 * entry : 8 * entry + 8] = plan.number_bytes
        self.negated.discard(entry)


@lru_cache(maxsize=64)
def _table_plan(numbers: bytes) -> tuple[TablePlan, list[int], Ints]:
    """The plan of a table of tensors with these plans.

    Returns:
        It; which of them have to be copied whatever their addresses; and how many bytes the others reach from their
        first element on.
    """
    direct, fields = _fields(len(_numbers))
    chosen = np.frombuffer(numbers, dtype=np.int64)
    table_plan = TablePlan.of(fields[chosen])
    return (
        table_plan,
        np.flatnonzero(~direct[chosen]).tolist(),
        np.where(direct[chosen], _extents(table_plan.fields), 0),
    )


def _extents(fields: Ints) -> Ints:
    """How many bytes rows of whole words reach from the first word on; see `plan.RowPlan.fields`."""
    rows, words, _, inner, outer_stride, inner_stride, a_size, b_size, a_stride, b_stride, run = fields.T
    outer = rows // np.maximum(inner, 1)
    reach = (
        (outer - 1) * outer_stride
        + (inner - 1) * inner_stride
        + (a_size - 1) * a_stride
        + (b_size - 1) * b_stride
    )
    return np.where((rows > 0) & (words > 0), 4 * (reach + run), 0)


@lru_cache(maxsize=1)
def _fields(count: int) -> tuple[NDArray[np.bool_], Ints]:
    """Of the first plans, by number: whether they are direct, and their fields."""
    plans = list(islice(_numbers, count))
    return np.array([plan.direct for plan in plans]), np.array(
        [plan.fields for plan in plans], dtype=np.int64
    )


class DigestBatch:
    """Queues tensors and digests their rows later: many on one device in one go, without waiting for it.

    A queued tensor is kept alive, and read when `flush` comes, on the then current stream: flush before
    anything writes to it in place, and whenever more waits than may be kept.

    >>> batch = DigestBatch()
    >>> slots = [batch.add(torch.ones(1, n, 4), (0, 1)) for n in (2, 3)]
    >>> digests = batch.results()
    >>> [len(digests[slot]) for slot in slots], bool(digests[1][2] == digests[0][0])
    ([2, 3], True)

    Args:
        shelf: where to put the digests, with every flush on the host and at the end from other devices; without
            one they stay in memory.
    """

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf = shelf
        self._queues: dict[int, _Queue] = {}
        self._rows = array("q")
        """How many digests each slot has."""
        self._devices = array("q")
        """On which of the devices seen so far they are."""

    def add(self, x: Tensor, row_dims: tuple[int, ...]) -> int:
        """Queues ``rows(x, row_dims)`` and returns its slot in the results, counted from 0.

        Raises:
            TypeError: the tensor is sparse, quantized or on the meta device.
            ValueError: the dimensions are out of range or not ascending.
        """
        return self.push(x, planned(x, row_dims))

    def push(self, x: Tensor, plan: DevicePlan) -> int:
        """As `add`, for a tensor whose plan is given."""
        queue = self._queues.get(plan.device)
        if queue is None:
            queue = self._queues[plan.device] = _Queue(x.device)
            prepare(x.device)
        if x.is_neg():
            queue.negated.add(len(queue.tensors))
        queue.tensors.append(x)
        queue.plans.append(plan)
        queue.numbers += plan.number_bytes
        self._rows.append(plan.rows)
        self._devices.append(plan.device)
        return len(self._rows) - 1

    def extend(self, tensors: Sequence[Tensor], plan_group: PlanGroup) -> None:
        """Queues many tensors whose plans are given, none of them lazily negated; their slots are in order."""
        queue = None if plan_group.device is None else self._queues.get(plan_group.device)
        if queue is not None:
            queue.tensors += tensors
            queue.plans += plan_group.plans
            queue.numbers += plan_group.numbers
            self._rows += plan_group.rows
            self._devices += plan_group.devices
        else:
            for x, plan in zip(tensors, plan_group.plans, strict=True):
                self.push(x, plan)

    def flush(self) -> dict[int, str]:
        """Digests what is queued, without waiting for the device, and lets go of the tensors.

        Returns:
            The slots of tensors whose memory could not be read, each with the reason. Their digests mean nothing.
        """
        unreadable: dict[int, str] = {}
        for device, queue in self._queues.items():
            count = len(queue.tensors)
            left_out = queue.flush()
            if left_out:
                slots = np.flatnonzero(np.array(self._devices) == device)[-count:]
                unreadable.update((int(slots[entry]), reason) for entry, reason in left_out.items())
            if self._shelf is not None and queue.device.type == "cpu":
                queue.shelve(self._shelf)
        return unreadable

    def results(self) -> Digests | ShelvedDigests:
        """Flushes, and begins to copy the digests of all slots to the host, once per device."""
        self.flush()
        rows, devices = np.array(self._rows), np.array(self._devices)
        if self._shelf is not None:
            return self._shelved(self._shelf, rows, devices)
        parts = [Arriving(queue) for queue in self._queues.values()]
        if len(parts) == 1:
            return Digests(parts, np.cumsum(rows) - rows, rows)
        starts, offset = np.zeros(len(rows), dtype=np.int64), 0
        for device in self._queues:
            sizes = rows * (devices == device)
            starts = np.where(devices == device, offset + np.cumsum(sizes) - sizes, starts)
            offset += int(sizes.sum())
        return Digests(parts, starts, rows)

    def _shelved(self, shelf: Shelf, rows: Ints, devices: Ints) -> ShelvedDigests:
        parts: list[Ints | Shelved] = []
        part, starts = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
        for device, queue in self._queues.items():
            queue.shelve(shelf)
            slots = np.flatnonzero(devices == device)
            begin = np.cumsum(rows[slots]) - rows[slots]  # a slot never goes on from one part to the next
            place = np.searchsorted(queue.ends, begin, side="right")
            part[slots] = len(parts) + place
            starts[slots] = begin - np.array([0, *queue.ends], dtype=np.int64)[place]
            parts += queue.parts
        return ShelvedDigests(parts, part, starts, rows)


class Arriving:
    """The digests of a queue on their way to the host: from a GPU through pinned memory, while it goes on computing."""

    def __init__(self, queue: _Queue) -> None:
        self._event: torch.cuda.Event | None = None
        if queue.device.type != "cuda":
            self._digests = torch.cat(queue.digests) if queue.digests else torch.zeros(0, dtype=torch.int64)
            return
        self._digests = torch.empty(sum(map(len, queue.digests)), dtype=torch.int64, pin_memory=True)
        offset = 0
        stream = _stream_to_host(queue.device)
        stream.wait_stream(torch.cuda.current_stream(queue.device))
        with torch.cuda.stream(stream):
            for part in queue.digests:
                self._digests[offset : offset + len(part)].copy_(part, non_blocking=True)
                part.record_stream(stream)  # its memory is not given away before
                offset += len(part)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> Ints:
        """The digests, when they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._digests.cpu().numpy()


@cache
def _stream_to_host(device: torch.device) -> torch.cuda.Stream:
    """The stream on which digests leave a device: the next run need not wait for those of the last."""
    return torch.cuda.Stream(device)
