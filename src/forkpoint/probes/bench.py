"""Where experiments on the origin are made: one run, made again with other values right before the origin."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forkpoint.capture.labels import spread
from forkpoint.explain.session import Session, Traced
from forkpoint.match import Ints, Shared
from forkpoint.match.align import gap, pair_elements
from forkpoint.match.pairs import Pairs
from forkpoint.probes.experiments import Experiments, nothing_changed
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.origin import Origin
from forkpoint.probes.resampled import DRAWN, Resampled, Rescaled
from forkpoint.probes.watchers import Snapshot, Store, Values
from forkpoint.runs.layout import MAIN

_UNCHANGED = 1e-9
"""Change of a value, relative to its largest element, that is rounding: other experts, other sizes of products."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Effect:
    """What other values right before the origin changed there.

    Attributes:
        numbers: shared numbers of the coordinates whose value moved, or that pass there in one of the two alone.
        by: how far the largest moved.
    """

    numbers: frozenset[int]
    by: float


@dataclass
class Bench:
    """One run at the origin.

    Attributes:
        side: `a` or `b`.
        store: what was kept of it.
        root: its event of the origin.
        met: its events that the other run has, too.
        whole: whether the runs' values of the origin were compared as those of no coordinate.
        cells: flat indices of the elements of the origin's value that were.
        asked: ops at which the same experiments are looked at, besides the origin.
        right: run A's values that were in place in the run already: at origins before this one, and what cancels.
        earlier_origins: its events of these origins.
    """

    session: Session
    side: str
    traced: Traced
    store: Store
    root: int
    met: frozenset[int]
    whole: bool
    cells: Ints
    asked: frozenset[Any] = frozenset()
    right: Values = field(default_factory=Values)
    earlier_origins: frozenset[int] = frozenset()

    def at(self, event: int) -> Bench:
        """The same run, looked at after another event."""
        return self if event == self.root else replace(self, root=event, whole=False)

    # ------------------------------------------------------------------ ids

    @cached_property
    def numbers(self) -> Ints:
        """For each id its shared number."""
        return self.session.shared.a if self.side == "a" else self.session.shared.b

    @cached_property
    def shared(self) -> Shared:
        return self.session.shared.within(self.side)

    @cached_property
    def slots(self) -> Mask:
        """Ids of columns of the input, and of what several columns with padding among them were made into."""
        ids = np.zeros(len(self.numbers), dtype=bool)
        ids[np.unique(self.traced.trace.table.columns)] = True
        ids[self.mixed] = True
        return ids

    @property
    def mixed(self) -> int:
        """The id of what padding has a part in, whichever."""
        return self.traced.trace.table.mixed

    @cached_property
    def is_token(self) -> Mask:
        tokens = [token is not None for token in self.traced.trace.table.tokens]
        return np.asarray([*tokens, *[False] * (len(self.numbers) - len(tokens))])

    @cached_property
    def may_enter(self) -> Mask:
        """For each id whether what both runs have may depend on it."""
        shared = self.session.shared
        return shared.may_enter_a if self.side == "a" else shared.may_enter_b

    @cached_property
    def lacking(self) -> Mask:
        """Ids of columns that the other run lacks, and that what both have should not depend on."""
        return self.slots & ~self.may_enter

    @cached_property
    def earlier(self) -> Mask:
        """Ids of columns that went in before the call of the origin."""
        homes = self.session.shared.home_a if self.side == "a" else self.session.shared.home_b
        return self.slots & (homes < self.call)

    @cached_property
    def columns(self) -> Ints:
        """For each id its column in the input; -1 where it has none."""
        return self._places[:, 1]

    @cached_property
    def rows(self) -> Ints:
        """For each id its row in the input; -1 where it has none."""
        return self._places[:, 0]

    @cached_property
    def _places(self) -> Ints:
        places = self.traced.trace.table.places
        return np.asarray([*places, *[(-1, -1, -1)] * (len(self.numbers) - len(places))], dtype=np.int64)

    @property
    def call(self) -> int:
        """Index of the forward call of the origin."""
        return self.store.ops[self.root][1].call

    @property
    def columns_so_far(self) -> int:
        """Columns of a row up to and with the call of the origin."""
        table = self.traced.trace.table
        slots = [table.slots(call, MAIN) for call in range(self.call + 1)]
        return sum(int(grid.shape[-1]) for grid in slots if grid is not None)

    def is_shared(self, numbers: AbstractSet[int]) -> Mask:
        """Ids of columns with these shared numbers."""
        return self.slots & np.isin(self.numbers, list(numbers))

    def first_of(self, numbers: AbstractSet[int]) -> frozenset[int]:
        """The first of some shared numbers, as a set."""
        return frozenset(sorted(numbers)[:1])

    def samples(self, numbers: AbstractSet[int]) -> frozenset[int]:
        """The samples that shared numbers belong to; -1 for a value of the whole call."""
        of = self.session.shared.coordinate
        return frozenset(-1 if (sample := of(number)[0]) is None else sample for number in numbers)

    def tokens_of(self, samples: AbstractSet[int]) -> frozenset[int]:
        """Shared numbers of the tokens of some samples."""
        return frozenset(np.flatnonzero(np.isin(self.session.shared.samples, list(samples))).tolist())

    def row_mates(self, numbers: AbstractSet[int]) -> Mask:
        """Ids of the columns in the rows of the samples that shared numbers belong to."""
        pairs = self.session.pairing.pairs
        samples = self.samples(numbers) - {-1} or {
            a for a, _ in pairs[:1]
        }  # of the call: as seen from its first
        table = self.traced.trace.table
        own = {a if self.side == "a" else b for a, b in pairs if a in samples}
        mine = [item for item, token in enumerate(table.tokens) if token is not None and token[1] in own]
        rows = self.rows[mine].tolist()
        return self.slots & np.isin(self.rows, [*rows, -1])

    # ------------------------------------------------------------------ experiments

    @cached_property
    def content(self) -> set[int]:
        """Events that the content of tokens has entered; the others are the layout's."""
        return self.store.reached(
            [event for event, snapshot in self.store.snapshots.items() if _is_content(snapshot)]
        )

    def of_layout(self, event: int) -> bool:
        """Whether no token's content enters a value: it is made from sizes, masks and positions."""
        return event not in self.content

    @cached_property
    def before(self) -> set[int]:
        """The last events before the origin whose tokens could get other values there.

        Those that both runs have, but for scores (of a query and a key: other ones would undo a mask), and where content
        comes in that one run alone has.
        """
        snapshots = self.store.snapshots

        def passed(event: int) -> bool:
            label = snapshots[event].label if event in snapshots else None
            return event not in self.met or (label is not None and label.k is not None)

        alone = self.store.behind([self.root], passed)
        sources = {s for event in (self.root, *alone) for s in self.store.sources.get(event, ())}
        events = (sources - alone) | {
            event for event in alone if event in snapshots and _is_content(snapshots[event])
        }
        return {event for event in events if not any(self._rearranges(event, other) for other in events)}

    def _rearranges(self, event: int, other: int) -> bool:
        """Whether a value is another one in another shape or order: other values there come here by themselves."""
        snapshots = self.store.snapshots
        if event == other or event not in snapshots or other not in snapshots or other not in self.content:
            return False
        made, given = snapshots[event], snapshots[other]
        if made.label is None or given.label is None:
            return False
        if math.prod(made.held.shape) != math.prod(given.held.shape):
            return False
        if other not in self.store.behind([event]):
            return False
        mine, theirs = made.value, given.value
        ids = np.sort(spread(made.label.q, tuple(mine.shape)), axis=None)
        if not np.array_equal(ids, np.sort(spread(given.label.q, tuple(theirs.shape)), axis=None)):
            return False
        return torch.equal(mine.reshape(-1).sort().values, theirs.reshape(-1).sort().values)

    def move(self, chosen: Mask, how: str = DRAWN, **more: Any) -> Effect | None:
        """Give chosen columns other values right before the origin: what moves there; None if that can't be told.

        It can't where none could be given, or where the run does not repeat itself.

        Args:
            chosen: ids of columns.
            how: which values.
            more: as `values` takes them.
        """
        again = self.values(chosen, how, **more)
        moved = None if again is None else self.compare(self.store.snapshots[self.root], again)
        return moved if moved is None or not moved.numbers or self.repeats else None

    def values(
        self, chosen: Mask, how: str, *, before: AbstractSet[int] | None = None, groups: Ints | None = None
    ) -> Snapshot | None:
        """The origin's value with other values of chosen columns right before it.

        Args:
            chosen: ids of columns.
            how: which values.
            before: the events that are changed; by default the last before the origin that both runs have.
            groups: for each id a number; only those of one number change places with each other.
        """
        if not chosen.any() or self.root not in self.store.snapshots:
            return None
        events = (self.before if before is None else before) & self.content
        places = {self.store.snapshots[event].place for event in events if event in self.store.snapshots}
        watcher = Resampled(places, chosen, how, groups)
        value = self.again(watcher)
        return value if watcher.replaced else None

    def again(self, watcher: Resampled | Rescaled) -> Snapshot | None:
        """The origin's value with a watcher in the run; one that does what another did is told what came of that."""
        return self.experiments.value(watcher, self.store.snapshots[self.root], self.asked)

    @cached_property
    def experiments(self) -> Experiments:
        """Makes the run again, with what was put right there."""
        return Experiments(self.session, self.side, self.traced, self.store, self.right)

    @property
    def repeats(self) -> bool:
        """Whether the control moves nothing here: where values move with nothing changed, no experiment proves anything."""
        again = self.again(nothing_changed())
        return again is not None and not self.compare(self.store.snapshots[self.root], again).numbers

    def compare(self, before: Snapshot, after: Snapshot) -> Effect:
        """Which of the coordinates that both runs have differ between two values of the origin."""
        pairs = pair_elements(before.value, before.label, after.value, after.label, self.shared)
        if self.whole and before.value.shape == after.value.shape and not pairs.coordinates.any():
            cells = self.cells[self.cells < before.value.numel()]  # those that both runs have
            pairs = Pairs(cells, cells, np.zeros(len(cells), dtype=np.int64))
        alone = frozenset(self._passing(before) ^ self._passing(after))
        if not len(pairs):
            return Effect(alone, 0.0)
        apart = gap(before.value, after.value, pairs)
        scale = apart.max_abs / apart.max_rel if apart.max_rel else 0.0
        least = _UNCHANGED * scale if before.numeric else 0.0
        numbers = frozenset(pairs.coordinates[apart.largest > least].tolist())
        if pairs.by_sample:
            numbers = self._of_samples(numbers)
        return Effect(alone | numbers, apart.max_abs)

    def _passing(self, snapshot: Snapshot) -> set[int]:
        return set(self.numbers_of(snapshot)) - {-1}

    def numbers_of(self, snapshot: Snapshot) -> list[int]:
        """Shared numbers of the coordinates that a value has elements of."""
        if snapshot.label is None:
            return []
        return np.unique(self.shared.a[snapshot.label.q]).tolist()

    def has_tokens(self, snapshot: Snapshot) -> bool:
        """Whether some elements of a value belong to one token that both runs have."""
        of = self.session.shared.coordinate
        return any(of(number)[1] is not None for number in self.numbers_of(snapshot) if number > 0)

    def _of_samples(self, samples: AbstractSet[int]) -> frozenset[int]:
        """A shared number for each sample: that of its first token."""
        of = self.session.shared.samples
        return frozenset(int(np.flatnonzero(of == sample)[0]) for sample in samples if (of == sample).any())


def _is_content(snapshot: Snapshot) -> bool:
    """Where content becomes numbers; what is made from sizes and masks alone is the layout's."""
    given = snapshot.op.is_input and not snapshot.op.module and snapshot.dtype.is_floating_point
    return snapshot.op.function in ("embedding", "embedding_bag") or given


def benches(session: Session, origin: Origin, at: Meeting | None = None) -> Iterator[Bench]:
    """Both runs at the origin (or at another meeting), run B first: it is the one with more in it, mostly."""
    at = at or origin.root
    whole = not at.pairs.by_sample and not at.pairs.coordinates.any()
    met_a = frozenset(origin.meetings)
    met_b = frozenset(meeting.event_b for meeting in origin.meetings.values())
    shown = [meeting for part in (origin, *origin.others) for meeting in (part.root, part.seen)]
    for side, traced, store, met, right in (
        ("b", session.b, origin.store_b, met_b, origin.right),
        ("a", session.a, origin.store_a, met_a, Values()),
    ):
        event, cells = (at.event_b, at.pairs.b) if side == "b" else (at.event_a, at.pairs.a)
        asked = frozenset((m.b if side == "b" else m.a).op.key for m in shown)
        earlier = frozenset(m.event_b if side == "b" else m.event_a for m in origin.earlier)
        yield Bench(session, side, traced, store, event, met, whole, cells, asked, right, earlier)


def shown_in_content(session: Session, origin: Origin) -> Meeting | None:
    """The first value, from the origin on, that differs and that the content of tokens has entered: what a mask does."""
    b, a = benches(session, origin)
    met = (origin.meetings.get(event) for event in sorted(origin.store_a.reached([origin.root.event_a])))
    shown = (m for m in met if m is not None and m.differs and m.a.numeric and not m.a.op.is_input)
    return next((m for m in shown if not (a.of_layout(m.event_a) or b.of_layout(m.event_b))), None)
