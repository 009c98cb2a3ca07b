"""The patch probe: where something other than rounding enters, proved by putting it right.

Both runs are made in float64 with every value kept. A *root* is a value that differs though nothing
that it was made from does: there a difference enters. Whether it matters is asked of the model: the
other run's value is put in place at that root, and the rest runs on. If the result stays as it was,
the difference cancels later (every `arange` over columns that left padding shifts) and is not the
origin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forkpoint.align import Gap, gap, pair_elements
from forkpoint.drift import layer_paths
from forkpoint.pairs import Pairs
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.precision import Precision
from forkpoint.probes.watchers import Kept, Store, Values
from forkpoint.result import ProbeResult
from forkpoint.results import compare_results
from forkpoint.session import Session
from forkpoint.trace import Op, Trace

MAX_STORED = 1 << 31
"""Bytes of values kept of each run at once; beyond it only the first layer that differs is looked into."""
MAX_PATCHES = 24
"""Roots that are tried."""
_CLOSES_MOST = 0.5
"""Share of the gap that has to close for an integer root to be the origin at once."""
_CLOSES_SOME = 0.01
"""Share below which an integer root has closed nothing."""
_RELATIVE_NOISE = 1e3
"""How many times a result's relative noise a single value may differ, relative to its largest element."""


@dataclass
class Meeting:
    """One value of both runs, and how it differs.

    Attributes:
        noise: how far two elements may be apart and still be equal in exact arithmetic.
    """

    event_a: int
    event_b: int
    a: Kept
    b: Kept
    pairs: Pairs
    gap: Gap
    noise: float

    @property
    def differs(self) -> bool:
        return self.gap.max_abs > self.noise

    @cached_property
    def differing(self) -> frozenset[int]:
        """Shared numbers of the coordinates at which it differs."""
        return frozenset(self.pairs.coordinates[self.gap.largest > self.noise].tolist())

    @cached_property
    def equal(self) -> frozenset[int]:
        """Shared numbers of the coordinates at which it does not."""
        return frozenset(self.pairs.coordinates.tolist()) - self.differing


@dataclass
class Origin:
    """Where something other than rounding enters.

    Attributes:
        root: the first value that differs though its inputs don't, and whose difference reaches the result.
        seen: the first floating-point value that the difference shows in; often the same.
        closes: how much of the result's gap goes away when the root is put right, 0 to 1.
        store_a, store_b: what was kept of both runs.
        meetings: the values that both have, by A's event.
    """

    root: Meeting
    seen: Meeting
    closes: float
    result: ProbeResult
    store_a: Store
    store_b: Store
    meetings: dict[int, Meeting]


def origin(session: Session, exact: Precision, weights: tuple[Weight, ...] = ()) -> Origin | None:
    """Find the op at which the runs begin to differ in exact arithmetic; None if it can't be located."""
    with same_weights(weights):
        store_a, store_b = (
            Store(MAX_STORED, select, session.memory.shelf()) for select in _selections(session)
        )
        exact.runs.run("a", store_a)
        exact.runs.run("b", store_b)
        return _search(session, exact, store_a, store_b)


def _search(session: Session, exact: Precision, store_a: Store, store_b: Store) -> Origin | None:
    """Try root after root, an op's together (it may pass once for each call, or each expert).

    A floating-point root that moves the result is the origin. An integer or bool root is if it closes
    most of the gap: put right alone, in a table that several samples share, it can also make a mess.
    What leaves the result as it was is harmless: it stays put right, which uncovers what lies behind.
    """
    limits = _threshold(exact)
    gap_before = exact.compared.max_abs
    meetings = _meet(session, store_a, store_b, limits)
    candidates: list[Origin] = []
    unpatched: Origin | None = None
    ignored: set[int] = set()
    right: Values = {}
    tried = 0
    while tried < MAX_PATCHES:
        roots = _by_op(r for r in _roots(meetings, store_a, store_b, ignored) if r.event_a not in ignored)
        if not roots:
            break
        put_right = len(right)
        for passes in roots[: MAX_PATCHES - tried]:
            tried += 1
            ignored |= {root.event_a for root in passes}
            shown = ((root, _first_seen(root, meetings, store_a)) for root in passes)
            root, seen = next(((root, seen) for root, seen in shown if seen is not None), (passes[0], None))
            if seen is None:
                continue
            values = _values(passes)
            closes, moves = _try(session, exact, {**right, **values})
            found = _describe(root, seen, closes, moves, store_a, store_b, meetings, gap_before)
            if closes > _CLOSES_MOST or (moves > 1 and _numeric(root)):
                return found
            if moves < 0:
                unpatched = unpatched or (None if root.a.op.is_boundary else found)
            elif moves <= 1:
                right |= values
            else:
                candidates.append(found)
        if len(right) > put_right:
            store_b = Store(MAX_STORED, store_b.select, session.memory.shelf())
            exact.runs.patched(right, store_b)
            meetings = _meet(session, store_a, store_b, limits)
    best = max(candidates, key=lambda c: c.closes, default=None)
    return best if best is not None and best.closes > _CLOSES_SOME else unpatched


def _by_op(roots: Iterable[Meeting]) -> list[list[Meeting]]:
    """The roots of each op together, those with floating-point values first: the others are many, and mostly harmless."""
    found: dict[object, list[Meeting]] = {}
    for root in roots:
        found.setdefault(root.a.op.key, []).append(root)
    return sorted(found.values(), key=lambda passes: not _numeric(passes[0]))


def _numeric(meeting: Meeting) -> bool:
    return meeting.a.numeric


def _threshold(exact: Precision) -> float:
    """What a value may differ by, relative to its largest element, and still be float64's rounding."""
    relative = 0.0
    for result in exact.compared.floating:
        scale = result.gap.max_abs / result.gap.max_rel if result.gap.max_rel else 0.0
        if scale:
            relative = max(relative, exact.noise.get(result.result, 0.0) / scale)
    return min(max(_RELATIVE_NOISE * relative, 1e-13), 1e-6)


def _selections(session: Session) -> tuple[Callable[[Op], bool], Callable[[Op], bool]]:
    """For each run: keep everything if there is room; else what lies outside the layers and the first that differs."""
    total = 0
    for event in session.a.trace.events:
        if event.status in ("digest", "view"):
            total += 8 * int(np.prod(event.shape, dtype=np.int64))
    if total <= MAX_STORED:
        return (lambda _: True), (lambda _: True)
    trace_a, trace_b = session.a.trace, session.b.trace
    paths = [trace_a.plain(path) for path in layer_paths(session.a.run.modules)]
    first = next(
        (r for r in sorted(session.join.rows, key=lambda r: r.order) if r.differing and r.floating), None
    )
    at = trace_a.plain(first.op.module) if first is not None else ""
    inside = next((p for p in paths if at.startswith(f"{p}.")), None)

    def select(op: Op, trace: Trace) -> bool:
        module = trace.plain(op.module)
        layer = next((p for p in paths if module == p or module.startswith(f"{p}.")), None)
        return layer is None or layer == inside or (op.is_boundary and module == layer)

    return (lambda op: select(op, trace_a)), (lambda op: select(op, trace_b))


# ---------------------------------------------------------------------- meetings


def _meet(session: Session, a: Store, b: Store, threshold: float) -> dict[int, Meeting]:
    """The values that both runs have, by A's event, in the order of execution."""
    by_key: dict[object, list[int]] = {}
    for event, kept in b.kept.items():
        by_key.setdefault(session.b.trace.key(kept.op), []).append(event)
    calls_a = {kept.event.call for kept in a.kept.values()}
    calls_b = {kept.event.call for kept in b.kept.values()}
    found: dict[int, Meeting] = {}
    session.progress.count(found.__len__, len(a.kept))
    for event_a, kept_a in a.kept.items():
        for event_b in _partners(
            kept_a, by_key.get(session.a.trace.key(kept_a.op), []), b, len(calls_a) == len(calls_b)
        ):
            kept_b = b.kept[event_b]
            meeting = _meeting(session, event_a, kept_a, event_b, kept_b, threshold)
            if meeting is not None and (
                event_a not in found or (meeting.differs and not found[event_a].differs)
            ):
                found[event_a] = meeting
    return found


def _partners(kept: Kept, events: list[int], b: Store, one_to_one: bool) -> Iterator[int]:
    for event in events:
        other = b.kept[event]
        if one_to_one and (other.event.call, other.event.nth) != (kept.event.call, kept.event.nth):
            continue
        if not one_to_one and other.event.nth != kept.event.nth:
            continue
        yield event


def _meeting(
    session: Session, event_a: int, a: Kept, event_b: int, b: Kept, threshold: float
) -> Meeting | None:
    pairs = pair_values(session, a, b)
    if not len(pairs):
        return None
    found = gap(a.value, b.value, pairs)
    noise = threshold * _scale(found) if a.numeric else 0.0
    return Meeting(event_a, event_b, a, b, pairs, found, noise)


def _scale(found: Gap) -> float:
    if not found.max_rel or not np.isfinite(found.max_rel):
        return 0.0
    return found.max_abs / found.max_rel


def pair_values(session: Session, a: Kept, b: Kept) -> Pairs:
    """Pair the elements of two values by their labels, or by where the tokens are along their dimensions."""
    value_a, value_b = a.value, b.value
    pairs = pair_elements(value_a, a.label, value_b, b.label, session.shared)
    if not len(pairs) and (a.label is None or b.label is None):
        places = (a.op, a.event.call), (b.op, b.event.call)
        return session.join.pair_open(None, *places, tuple(value_a.shape), tuple(value_b.shape))
    return pairs


def _roots(meetings: dict[int, Meeting], a: Store, b: Store, harmless: set[int]) -> list[Meeting]:
    """Values that differ though nothing does that they were made from, harmless roots apart."""
    differing = {e: m.event_b for e, m in meetings.items() if m.differs and e not in harmless}
    tainted_a = _tainted(a, set(differing), set(meetings))
    tainted_b = _tainted(b, set(differing.values()), {m.event_b for m in meetings.values()})
    roots: list[Meeting] = []
    for event, meeting in sorted(meetings.items()):
        if not meeting.differs:
            continue
        made_of_a = any(source in tainted_a for source in a.sources.get(event, ()))
        made_of_b = any(source in tainted_b for source in b.sources.get(meeting.event_b, ()))
        if not made_of_a and not made_of_b:
            roots.append(meeting)
    return roots


def _tainted(store: Store, differing: set[int], met: set[int]) -> set[int]:
    """Events that differ; those that no value of the other run meets, where something they are made of does."""
    tainted: set[int] = set()
    for event in sorted(store.sources):
        if event in met:
            if event in differing:
                tainted.add(event)
        elif any(source in tainted for source in store.sources[event]):
            tainted.add(event)
    return tainted


def _first_seen(root: Meeting, meetings: dict[int, Meeting], a: Store) -> Meeting | None:
    """The first floating-point op, from the root on, that carries its difference."""

    def shows(meeting: Meeting) -> bool:
        return meeting.a.numeric and meeting.differs and not meeting.a.op.is_boundary

    if shows(root) and not _is_hidden_view(root, meetings, a):
        return root
    if root.a.op.function == "output" and _numeric(root) and root.differs:
        return root  # made of ops that one run alone has: the module is where it happens
    following = [
        meetings[e] for e in sorted(a.reached([root.event_a])) if e in meetings and shows(meetings[e])
    ]
    if following:
        return following[0]
    later = [m for e, m in sorted(meetings.items()) if e > root.event_a and shows(m)]
    return later[0] if later else None


def _is_hidden_view(root: Meeting, meetings: dict[int, Meeting], a: Store) -> bool:
    """A view of something that could not be compared says nothing by itself."""
    return root.a.event.status == "view" and not any(s in meetings for s in a.sources.get(root.event_a, ()))


# ---------------------------------------------------------------------- patching


def _values(meetings: Iterable[Meeting]) -> Values:
    """What puts run B right at some meetings."""
    values: Values = {}
    for meeting in meetings:
        values.setdefault(meeting.b.place, []).append((meeting.a.value, meeting.pairs))
    return values


def _try(session: Session, exact: Precision, values: Values) -> tuple[float, float]:
    """Put A's values in place in run B: what share of the gap closes, and by how many times noise the result moves.

    A negative second figure says that a value could not be put in place.
    """
    try:
        patched = exact.runs.patched(values)
    except Exception:  # noqa: BLE001 - a patched value may steer the model's code anywhere
        return 0.0, -1.0
    if patched is None:
        return 0.0, -1.0
    before = exact.compared.distance
    after = compare_results(session, exact.a, patched)
    moved = compare_results(session, exact.b, patched, own="b")
    closes = 0.0 if before == 0 else max(0.0, 1 - after.distance / before)
    if not np.isfinite(before):  # NaN or infinity in one run alone
        closes = float(np.isfinite(after.max_abs))
    return closes, exact.beyond_noise(moved)


def _describe(
    root: Meeting, seen: Meeting, closes: float, moves: float, a: Store, b: Store,
    meetings: dict[int, Meeting], before: float,
) -> Origin:  # fmt: skip
    op = seen.a.op
    text = (
        f"with run A's value put in place at {root.a.op.name} ({root.a.op.site.short}), "
        f"{100 * closes:.0f} % of the gap of {before:.2g} closes"
    )
    if not np.isfinite(before):
        text = f"with run A's value put in place at {root.a.op.name} ({root.a.op.site.short}), " + (
            "the NaN and infinities are the same in both runs"
            if closes > _CLOSES_MOST
            else "some of the NaN remain"
        )
    outcome = "closes" if closes > 0.5 else "moves" if moves > 1 else "nothing"
    if seen is not root:
        text += f"; it shows first in {op.name}"
    return Origin(root, seen, closes, ProbeResult("patch", outcome, closes, text), a, b, meetings)
