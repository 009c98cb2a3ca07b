"""Watchers: what the probes do to values as they pass by, or keep of them."""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.functions import LOOKUPS
from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import Recorder, Watcher
from forkpoint.capture.sites import outermost
from forkpoint.capture.trace import Event, Op
from forkpoint.match.align import gap
from forkpoint.match.pairs import Pairs
from forkpoint.support.arrays import tensor_of
from forkpoint.support.memory import Memory, Shelf, Shelved, load
from forkpoint.support.readable import bare, why_unreadable

Key = tuple[str, str, str]
Place = tuple[Key, int, int, int]
"""Where a value passes: (op key, nth, output, call)."""
Line = tuple[str, str]
"""A function, and the line outside torch that calls it."""
Values = dict[Place, list[tuple[Tensor, Pairs]]]
"""For each place, the values to take elements from, and the pairs of elements."""

_SMALL = 1 << 22
"""Elements up to which a value is changed on the host: on a GPU that needs kernels which no model has used yet."""


@dataclass
class OtherContent(Watcher):
    """Replaces what sits at coordinates that the other run lacks, where content first becomes numbers.

    The rows that an embedding looked up for token ids, or the rows of a float input, are replaced. Ids stay (a pad token's
    id says where the padding is, and is the layout's) unless they are asked for.

    Attributes:
        keep: for each id, whether the other run has it too.
        replaced: how many rows were.
        names: inputs that hold token ids of which others are put in place as well, drawn from those that both runs have.
        padding: whether that is done in padding and in a shared token's own row, too, and not to tokens of other rows alone.
        ids: how many ids were replaced.
    """

    keep: np.ndarray
    seed: int = 0
    replaced: int = 0
    names: frozenset[str] = frozenset()
    padding: bool = True
    ids: int = 0
    entrances_only: ClassVar[bool] = True

    def edits(self, key: Key) -> bool:
        return key[1] in LOOKUPS or (key[0] == "" and key[1].startswith("input:"))

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        if label is not None and key[0] == "" and key[1].removeprefix("input:") in self.names:
            return self._other_ids(recorder, value, label)
        if label is None or label.k is not None or not value.dtype.is_floating_point:
            return None
        if not self.edits(key):
            return None
        other = ~self.keep[label.q] & recorder.table.is_slot(label.q)
        if not other.any():
            return None
        self.replaced += int(other.sum())
        here = bare(value).cpu() if value.numel() <= _SMALL else bare(value)
        mask = tensor_of(other).to(here.device).expand(here.shape)
        generator = torch.Generator().manual_seed(self.seed + nth)
        scale = float(here.float().std()) if here.numel() > 1 else 1.0
        new = torch.randn(int(mask.sum()), generator=generator) * (2 * scale or 1.0)
        return here.masked_scatter(mask, new.to(here.device, here.dtype)).to(value.device)

    def _other_ids(self, recorder: Recorder, value: Tensor, label: Label) -> Tensor | None:
        """Token ids with others where the other run has none: each is another than it was, and one of a shared token."""
        if label.q.shape != tuple(value.shape):
            return None
        table = recorder.table
        keep = self.keep[label.q]
        other = ~keep & table.is_slot(label.q)
        if not self.padding:
            rows = table.rows_of(label.q)
            other &= ~np.isin(rows, rows[keep]) & ~table.are_padding(label.q)
        ids = bare(value).cpu().numpy().copy()
        pool = np.unique(ids[keep])
        if len(pool) == 1:
            pool = _with_a_neighbour(int(pool[0]), ids, ids[table.are_padding(label.q)])
        if not other.any() or len(pool) < 2:
            return None
        drawn = np.random.default_rng(self.seed).integers(0, len(pool), int(other.sum()))
        same = pool[drawn] == ids[other]
        ids[other] = pool[(drawn + same) % len(pool)]
        self.ids += int(other.sum())
        return tensor_of(ids).to(value.device)


def _with_a_neighbour(token_id: int, ids: np.ndarray, padding: np.ndarray) -> np.ndarray:
    """A token id and the nearest other that is no padding's, and no larger than all that are there."""
    others = np.setdiff1d(np.arange(int(ids.max()) + 1), [token_id, *padding.reshape(-1).tolist()])
    nearest = others[np.argsort(np.abs(others - token_id), kind="stable")[:1]]
    return np.append(nearest, token_id)


def with_elements(value: Tensor, given: Sequence[tuple[Tensor, Pairs]]) -> Tensor:
    """A copy of a value with elements of others in place of some of its own.

    Args:
        given: the others, each with the pairs of its elements and those of the value.
    """
    new = bare(value).clone().contiguous()
    for source, pairs in given:
        at, elements = elements_for(new, source, pairs)
        new.view(-1)[at] = elements
    return new


def elements_for(value: Tensor, source: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Elements of a source for a value: where they go, in its flattened form, and the elements in its dtype."""
    elements = source.reshape(-1)[tensor_of(pairs.a).to(source.device)]
    return tensor_of(pairs.b).to(value.device), elements.to(value.device, value.dtype)


@dataclass
class Patch(Watcher):
    """Puts other values in place at chosen ops.

    Attributes:
        values: what to put where.
        apart: is told, for each place, how far the value there was from what was put in.
        applied: how many times it did.
    """

    values: Values
    apart: dict[Place, float] = field(default_factory=dict[Place, float])
    applied: int = 0

    def __post_init__(self) -> None:
        self._keys = {place[0] for place in self.values}

    def edits(self, key: Key) -> bool:
        return key in self._keys

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        return self.put((key, nth, output, recorder.call), value)

    def put(self, place: Place, value: Tensor) -> Tensor | None:
        """What to go on with in place of a value; None where it stays."""
        replacements = self.values.get(place)
        if replacements is None:
            return None
        for source, pairs in replacements:
            self.apart[place] = max(self.apart.get(place, 0.0), gap(source, value, pairs).max_abs)
        self.applied += 1
        return with_elements(value, replacements)


@dataclass
class Snapshot:
    """A copy of one value as it passed, in memory or in a file."""

    op: Op
    event: Event
    held: Tensor | Shelved
    label: Label | None
    inputs: list[int]

    @property
    def value(self) -> Tensor:
        return load(self.held)

    @property
    def dtype(self) -> torch.dtype:
        return self.held.dtype

    @property
    def numeric(self) -> bool:
        """Whether it holds floating-point or complex numbers."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    @property
    def place(self) -> Place:
        op = self.op
        return (op.module, op.function, op.site.chain), self.event.nth, op.output, self.event.call


@dataclass(frozen=True)
class Turn:
    """Where a value comes in a run: an output of the n-th call from a line."""

    line: Line
    nth: int
    output: int
    event: int
    snapshot: Snapshot


@dataclass
class Store(Watcher):
    """Keeps every value, with what it was made from, as long as there is room.

    Attributes:
        limit: bytes that are kept, in memory or in a file.
        select: which ops to keep the values of; all by default.
        snapshots: the copies, by index of the event.
        sources: for every event, copied or not, the events that it was made from.
        shelf: where they are kept.
    """

    limit: int
    select: Callable[[Op], bool] = lambda _: True
    shelf: Shelf = field(default_factory=lambda: Memory().shelf())
    snapshots: dict[int, Snapshot] = field(default_factory=dict[int, Snapshot])
    sources: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    ops: dict[int, tuple[Op, Event]] = field(default_factory=dict[int, tuple[Op, Event]])
    used: int = 0

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        record, op = recorder.trace.event(event), recorder.trace.rows[event][0]
        self.sources[event] = inputs
        self.ops[event] = (op, record)
        if self.select(op):
            self.keep(event, op, record, value, label, inputs)

    def keep(
        self, event: int, op: Op, record: Event, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        """Keep a copy of a value, if there is room and it can be read."""
        if value.layout != torch.strided or why_unreadable(value):
            return
        if self.used + value.nbytes <= self.limit:
            self.used += value.nbytes
            self.snapshots[event] = Snapshot(op, record, self.shelf.keep(bare(value).clone()), label, inputs)

    @cached_property
    def turns(self) -> dict[Place, Turn]:
        """Where the kept values come in the run, which is over, by their places; modules' inputs and outputs aside."""
        turns: dict[Place, Turn] = {}
        calls: Counter[Line] = Counter()
        for event, (op, _) in self.ops.items():
            if op.is_boundary:
                continue
            line = op.function, outermost(op.site.chain)
            calls[line] += not op.output
            snapshot = self.snapshots.get(event)
            if snapshot is not None:
                turns[snapshot.place] = Turn(line, calls[line] - 1, op.output, event, snapshot)
        return turns

    @cached_property
    def made_from(self) -> dict[int, list[int]]:
        """For every event of the run, which is over, the events that were made from it."""
        made_from: dict[int, list[int]] = {}
        for event, sources in self.sources.items():
            for source in sources:
                made_from.setdefault(source, []).append(event)
        return made_from

    def behind(self, start: Iterable[int], through: Callable[[int], bool] = lambda _: True) -> set[int]:
        """The events that some were made from, as far as they and all between pass."""
        events: set[int] = set()
        queue = list(start)
        while queue:
            for event in self.sources.get(queue.pop(), ()):
                if event not in events and event in self.ops and through(event):
                    events.add(event)
                    queue.append(event)
        return events

    def reached(self, start: Iterable[int]) -> set[int]:
        """Some events, and all that were made from them."""
        made_from = self.made_from
        reached = set(start)
        queue = list(reached)
        while queue:
            for event in made_from.get(queue.pop(), ()):
                if event not in reached:
                    reached.add(event)
                    queue.append(event)
        return reached


@dataclass
class Patched(Watcher):
    """A watcher that sees a run in which another changes some values."""

    patch: Watcher
    store: Watcher

    def edits(self, key: Key) -> bool:
        return self.patch.edits(key)

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        return self.patch.edit(recorder, key, nth, output, value, label)

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        self.store.saw(recorder, event, value, label, inputs)


@dataclass
class InTurn(Watcher):
    """A watcher that has one change values, and then another."""

    first: Watcher
    then: Watcher

    def edits(self, key: Key) -> bool:
        return self.first.edits(key) or self.then.edits(key)

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        new = self.first.edit(recorder, key, nth, output, value, label)
        newer = self.then.edit(recorder, key, nth, output, value if new is None else new, label)
        return new if newer is None else newer
