"""Meetings: which value kept of run A is which of run B's, how they differ, and where a difference begins."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from forkpoint.capture.labels import Label
from forkpoint.capture.trace import Trace
from forkpoint.explain.session import Session
from forkpoint.match import Ints, Shared
from forkpoint.match.align import MAX_CELLS, MAX_WORKED_OUT, Gap, gap, pair_elements
from forkpoint.match.pairs import Pairs
from forkpoint.match.passes import PassTable, meet
from forkpoint.probes.watchers import Snapshot, Store


@dataclass
class Meeting:
    """One value of both runs, and how it differs.

    Attributes:
        noise: how far two elements may be apart and still be equal in exact arithmetic.
        absent: shared numbers of the tokens that an op chose by value in one of the runs alone.
        numbers: those at which alone the values meet; None where they meet as a whole.
    """

    event_a: int
    event_b: int
    a: Snapshot
    b: Snapshot
    pairs: Pairs
    gap: Gap
    noise: float
    absent: frozenset[int] = frozenset()
    numbers: Ints | None = None

    def meets_alike(self, a: Snapshot, b: Snapshot, numbers: Ints | None) -> bool:
        """Whether two values are of the form that these have, so that the same elements of them meet."""
        if (numbers is None) != (self.numbers is None) or a is not self.a or b.label != self.b.label:
            return False
        if numbers is not None and not np.array_equal(numbers, self.numbers):  # pyright: ignore[reportArgumentType]
            return False
        if not len(self.pairs):
            return False  # a choice of tokens, which is looked at anew
        return b.held.shape == self.b.held.shape and b.dtype == self.b.dtype

    @property
    def differs(self) -> bool:
        return self.gap.max_abs > self.noise or bool(self.absent)

    @property
    def numeric(self) -> bool:
        return self.a.numeric

    @cached_property
    def differing(self) -> frozenset[int]:
        """Shared numbers of the coordinates at which it differs."""
        return frozenset(self.pairs.coordinates[self.gap.largest > self.noise].tolist()) | self.absent

    @cached_property
    def equal(self) -> frozenset[int]:
        """Shared numbers of the coordinates at which it does not."""
        return frozenset(self.pairs.coordinates.tolist()) - self.differing


_CHOOSING = frozenset({
    "nonzero", "argwhere", "where", "getitem", "index_select", "masked_select", "gather", "take_along_dim", "topk", "sort",
    "argsort",
})  # fmt: skip
"""Functions that may choose tokens by value, in which case their output is no view."""


class Meetings:
    """The values that both runs have, in the order of execution of A.

    Attributes:
        every: all of them; one value of A may meet several of B's, a part in each call or pass.
        by_a: one for each event of A, the first that differs if one does.
        short: for each run the events at which tokens pass that do not pass there in the other.
    """

    def __init__(self, meetings: Iterable[Meeting], short: tuple[set[int], set[int]]) -> None:
        self.short = short
        self.every = sorted(meetings, key=lambda m: (m.event_a, m.event_b))
        self.by_a: dict[int, Meeting] = {}
        for meeting in self.every:
            before = self.by_a.get(meeting.event_a)
            if before is None or (meeting.differs and not before.differs):
                self.by_a[meeting.event_a] = meeting

    def roots(self, a: Store, b: Store, harmless: Collection[int] = ()) -> list[Meeting]:
        """Values that differ though nothing does that they were made from, apart from some of A's events."""
        tainted_a, tainted_b = self.tainted(a, b, harmless)
        return [
            m
            for m in self.every
            if m.differs
            and m.event_a not in harmless
            and tainted_a.isdisjoint(a.sources.get(m.event_a, ()))
            and tainted_b.isdisjoint(b.sources.get(m.event_b, ()))
        ]

    def tainted(self, a: Store, b: Store, harmless: Collection[int] = ()) -> tuple[set[int], set[int]]:
        """For each run the events that differ, or that are made of some that do and meet none of the other run in full."""
        differing = [m for m in self.every if m.differs and m.event_a not in harmless]
        return (
            _tainted(a, {m.event_a for m in differing}, {m.event_a for m in self.every} - self.short[0]),
            _tainted(b, {m.event_b for m in differing}, {m.event_b for m in self.every} - self.short[1]),
        )


def _tainted(store: Store, differing: set[int], told: set[int]) -> set[int]:
    """Of one run; see `Meetings.tainted`.

    Args:
        told: events that meet one of the other run, so that they differ only if they are among the differing.
    """
    tainted: set[int] = set()
    for event in sorted(store.sources):
        made_of = event not in told and any(source in tainted for source in store.sources[event])
        if made_of or event in differing:
            tainted.add(event)
    return tainted


# ---------------------------------------------------------------------- which meets which


def meet_values(
    session: Session, a: Store, b: Store, threshold: float, before: Meetings | None = None
) -> Meetings:
    """The values that both runs have.

    Args:
        threshold: what a value may differ by, relative to its largest element, and still be the same in exact
            arithmetic.
        before: those of run A with another pass of run B, by the same threshold; values that did not change in it differ
            as they did.
    """
    earlier = {} if before is None else {(m.event_a, m.b.place): m for m in before.every}
    by_key_a, by_key_b = _by_key(a, session.a.trace), _by_key(b, session.b.trace)
    meetings: list[Meeting] = []
    short = set[int](), set[int]()
    session.progress.count(meetings.__len__, len(a.snapshots))
    for key, events_a in by_key_a.items():
        for event_a, event_b, numbers, absent in _met(session, a, events_a, b, by_key_b.get(key, []), short):
            snapshot_a, snapshot_b = a.snapshots[event_a], b.snapshots[event_b]
            seen = earlier.get((event_a, snapshot_b.place))
            if seen is not None and not seen.meets_alike(snapshot_a, snapshot_b, numbers):
                seen = None
            if seen is not None and torch.equal(snapshot_b.value, seen.b.value):
                meetings.append(replace(seen, event_b=event_b, b=snapshot_b, absent=absent))
                continue
            pairs = _pairs(session, snapshot_a, snapshot_b, numbers) if seen is None else seen.pairs
            if len(pairs) or absent:
                difference = gap(snapshot_a.value, snapshot_b.value, pairs)
                noise = threshold * _scale(difference) if snapshot_a.numeric else 0.0
                meetings.append(
                    Meeting(
                        event_a, event_b, snapshot_a, snapshot_b, pairs, difference, noise, absent, numbers
                    )
                )
    return Meetings(meetings, short)


def _by_key(store: Store, trace: Trace) -> dict[Hashable, list[int]]:
    """The events of each op, in order; where its outputs are columns of one value (`unbind`), all of them together."""
    by_key: dict[Hashable, list[int]] = {}
    for event, snapshot in store.snapshots.items():
        op = replace(snapshot.op, output=0) if _is_column(snapshot, trace) else snapshot.op
        by_key.setdefault(trace.key(op), []).append(event)
    return by_key


def _is_column(snapshot: Snapshot, trace: Trace) -> bool:
    return (
        snapshot.label is not None and snapshot.label.k is None and trace.table.one_of_many(snapshot.label.q)
    )


def _met(
    session: Session,
    a: Store,
    events_a: list[int],
    b: Store,
    events_b: list[int],
    short: tuple[set[int], set[int]],
) -> Iterator[tuple[int, int, Ints | None, frozenset[int]]]:
    """The events of one op that meet, at which coordinates, and which tokens one of them alone chose.

    The coordinates are None where they meet as a whole. Events that have more tokens than they meet are added to `short`.
    """
    tokens_a, tokens_b = (
        [event for event in events if store.snapshots[event].label is not None]
        for store, events in ((a, events_a), (b, events_b))
    )
    met = _meet_labels(session.shared, _labels(a, tokens_a), _labels(b, tokens_b))
    for events, tokens, lonely in zip(short, (tokens_a, tokens_b), met.alone, strict=True):
        events.update(tokens[at] for at in lonely)
    absent = _absent(session, (a, b), (tokens_a, tokens_b), met.alone)
    for at_a, at_b, numbers in met.together:
        pair = tokens_a[at_a], tokens_b[at_b]
        yield *pair, numbers, absent.pop(pair, frozenset())
    for (event_a, event_b), numbers in absent.items():
        yield event_a, event_b, np.zeros(0, dtype=np.int64), numbers
    by_sample = not met.together and not any(len(events) > 1 for events in (tokens_a, tokens_b))
    places: dict[int, list[int]] = {}
    for event_b in events_b:
        places.setdefault(b.snapshots[event_b].event.nth, []).append(event_b)
    for event_a in events_a:
        for event_b in _partners(session, a.snapshots[event_a], places, b):
            if by_sample or a.snapshots[event_a].label is None or b.snapshots[event_b].label is None:
                yield event_a, event_b, None, frozenset()


def _absent(
    session: Session,
    stores: tuple[Store, Store],
    tokens: tuple[list[int], list[int]],
    alone: tuple[dict[int, Ints], dict[int, Ints]],
) -> dict[tuple[int, int], frozenset[int]]:
    """For events of an op that chooses tokens by value, those that it chose in one run alone (again)."""
    absent: dict[tuple[int, int], frozenset[int]] = {}
    for side, lonely in enumerate(alone):
        for at, rows in lonely.items():
            event = tokens[side][at]
            snapshot = stores[side].snapshots[event]
            if snapshot.op.function not in _CHOOSING or snapshot.event.status == "view":
                continue
            numbers = frozenset(n for n in rows.tolist() if session.shared.coordinate(n)[1] is not None)
            others = {e: stores[1 - side].snapshots[e] for e in tokens[1 - side]}
            other = _same_place(snapshot, others)
            if numbers and other is not None:
                pair = (event, other) if side == 0 else (other, event)
                absent[pair] = absent.get(pair, frozenset()) | numbers
    return absent


def _same_place(snapshot: Snapshot, others: dict[int, Snapshot]) -> int | None:
    """The event of the other run at the same place, or else its first."""
    at = snapshot.event.call, snapshot.event.nth
    same = (event for event, other in others.items() if (other.event.call, other.event.nth) == at)
    return next(same, next(iter(others), None))


Labelled = tuple[tuple[Label, int], ...]
"""The label of each of some events of one run, and the call that the event lies in."""


def _labels(store: Store, events: list[int]) -> Labelled:
    snapshots = (store.snapshots[event] for event in events)
    return tuple((one.label, one.event.call) for one in snapshots if one.label is not None)


@dataclass(frozen=True)
class _MeetingPlaces:
    """Which events of one op meet, by their places among those with a label.

    Attributes:
        together: (place in A, place in B, shared numbers at which they meet).
        alone: for each run, by place, the shared numbers that meet none of the other.
    """

    together: list[tuple[int, int, Ints]]
    alone: tuple[dict[int, Ints], dict[int, Ints]]


def _meet_labels(shared: Shared, labels_a: Labelled, labels_b: Labelled) -> _MeetingPlaces:
    """Most ops of a model have the labels of many others, so that an answer is kept for the next."""
    key = "met", labels_a, labels_b
    worked_out = shared.worked_out
    places = worked_out.get(key)
    if places is None:
        rows_a = _passes(labels_a, shared.a, shared.home_a)
        rows_b = _passes(labels_b, shared.b, shared.home_b)
        places = _told_apart(rows_a, rows_b)
        if len(rows_a.numbers) + len(rows_b.numbers) <= MAX_CELLS and len(worked_out) < MAX_WORKED_OUT:
            worked_out[key] = places
    return places


def _told_apart(rows_a: PassTable, rows_b: PassTable) -> _MeetingPlaces:
    met, alone = meet(rows_a, rows_b)
    left, right = (np.concatenate([part[side] for part in met]) for side in (0, 1))
    together: list[tuple[int, int, Ints]] = []
    if len(left):
        pairs = np.stack([rows_a.events[left], rows_b.events[right]], axis=1)
        distinct, which = np.unique(pairs, axis=0, return_inverse=True)
        for number, (at_a, at_b) in enumerate(distinct.tolist()):
            together.append((at_a, at_b, rows_a.numbers[left[which.reshape(-1) == number]]))
    lonely = tuple(
        {int(at): rows.numbers[some[rows.events[some] == at]] for at in np.unique(rows.events[some])}
        for rows, some in zip((rows_a, rows_b), alone, strict=True)
    )
    return _MeetingPlaces(together, (lonely[0], lonely[1]))


def _passes(labels: Labelled, numbers: Ints, homes: Ints) -> PassTable:
    """The passes at the coordinates of some events; `events` are their places among the labels."""
    parts = [(np.zeros(0, dtype=np.int64),) * 4]
    for at, (label, call) in enumerate(labels):
        ids = np.unique(label.q)
        ids = ids[(ids >= 0) & (numbers[ids] > 0)]
        parts.append((numbers[ids], homes[ids] != call, np.full(len(ids), at), np.full(len(ids), call)))
    rows, again, of, calls = (np.concatenate(column) for column in zip(*parts, strict=True))
    return PassTable(rows, again.astype(bool), of, calls)


def _partners(session: Session, snapshot: Snapshot, places: dict[int, list[int]], b: Store) -> Iterator[int]:
    """Values without a coordinate meet by their place in the call, and in the run if both make as many calls."""
    one_to_one = len(session.a.run.calls) == len(session.b.run.calls)
    for event in places.get(snapshot.event.nth, ()):
        if not one_to_one or b.snapshots[event].event.call == snapshot.event.call:
            yield event


def _pairs(session: Session, a: Snapshot, b: Snapshot, numbers: Ints | None) -> Pairs:
    """Pair the elements of two values, at some coordinates alone where they are given."""
    pairs = pair_values(session, a, b)
    if numbers is None:
        return pairs
    if pairs.by_sample:
        return Pairs.none("they share no coordinate")
    if np.array_equal(pairs.coordinates, numbers):
        return pairs
    keep = np.isin(pairs.coordinates, numbers)
    if keep.all():
        return pairs
    return replace(
        pairs, first_a=pairs.first_a[keep], first_b=pairs.first_b[keep], coordinates=pairs.coordinates[keep]
    )


def _scale(difference: Gap) -> float:
    if not difference.max_rel or not np.isfinite(difference.max_rel):
        return 0.0
    return difference.max_abs / difference.max_rel


def pair_values(session: Session, a: Snapshot, b: Snapshot) -> Pairs:
    """Pair the elements of two values by their labels, or by where the tokens are along their dimensions."""
    value_a, value_b = a.value, b.value
    pairs = pair_elements(value_a, a.label, value_b, b.label, session.shared)
    if not len(pairs) and (a.label is None or b.label is None):
        places = (a.op, a.event.call), (b.op, b.event.call)
        return session.join.pair_open(None, *places, tuple(value_a.shape), tuple(value_b.shape))
    return pairs


# ---------------------------------------------------------------------- where a difference shows


def first_seen(root: Meeting, meetings: dict[int, Meeting], a: Store) -> Meeting | None:
    """The first floating-point op, from the root on, that carries its difference; or the decision about tokens.

    Where the difference makes other tokens pass, it is the comparison that does, or what chooses them.
    """

    def shows(meeting: Meeting) -> bool:
        return bool(meeting.absent) or (meeting.numeric and meeting.differs and not meeting.a.op.is_boundary)

    if shows(root) and not _is_hidden_view(root, meetings, a):
        return root
    if root.a.op.function == "output" and root.numeric and root.differs:
        return root  # made of ops that one run alone has: the module is where it happens
    reached = sorted(a.reached([root.event_a]))
    first = next((meetings[e] for e in reached if e in meetings and shows(meetings[e])), None)
    if first is None:
        return next((m for e, m in sorted(meetings.items()) if e > root.event_a and shows(m)), None)
    if first.absent:
        behind = a.behind([first.event_a])
        between = (meetings[e] for e in reached if e in behind and e in meetings)
        return next((m for m in between if m.differs and m.a.dtype == torch.bool), first)
    return first


def _is_hidden_view(root: Meeting, meetings: dict[int, Meeting], a: Store) -> bool:
    """A view of something that could not be compared says nothing by itself."""
    return root.a.event.status == "view" and not any(s in meetings for s in a.sources.get(root.event_a, ()))
