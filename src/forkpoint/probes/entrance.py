"""The entrance probe: where does what only one run has reach a token that both have, though the runs agree?

The padding of a run may be harmless as it is, and not whatever it holds. Then the runs do not differ in
exact arithmetic, and no origin is found; but the same run with other content where the other run has
none differs from itself. The first value at which it does is an origin like any other: experiments on
couplings can be made there.
"""

from __future__ import annotations

import math
from dataclasses import replace

from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.session import Session
from forkpoint.match.align import gap, pair_elements
from forkpoint.probes.content import ContentProbe, id_names
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.origin import MAX_STORED, Origin
from forkpoint.probes.watchers import OtherContent, Patched, Store
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult

_UNCHANGED = 1e-9
"""Change of a value in float64, relative to its largest element, that is rounding."""


def entrance(session: Session, leak: ContentProbe) -> tuple[Session, Origin] | None:
    """One run against itself, and where other content first moves a value that both runs have; None where none is found.

    Args:
        session: the two runs.
        leak: the run whose other content its result noticed, and whether that is token ids.
    """
    name = leak.run
    shared = session.shared
    traced, keep = (session.a, shared.may_enter_a) if name == "a" else (session.b, shared.may_enter_b)
    alone = replace(session, a=traced, b=traced, shared=shared.within(name), experiments={})
    before, after = (Store(MAX_STORED, shelf=session.memory.shelf()) for _ in range(2))
    try:
        traced.again(promotion=Promotion(), watcher=before)
        names = id_names(traced) if leak.ids else frozenset[str]()
        content = OtherContent(keep, names=names, padding=leak.padding)
        traced.again(promotion=Promotion(), watcher=Patched(content, after))
    except Exception as error:  # noqa: BLE001 - other values may steer the model's code anywhere
        reraise_out_of_memory(error)
        return None
    meetings = _meetings(alone, before, after)
    root = next((m for _, m in sorted(meetings.items()) if m.differs and not m.a.op.is_input), None)
    if root is None:
        return None
    text = (
        f"other content where the other run has none first moves a value that both runs have at {root.a.op.name} "
        f"({root.a.op.site.short}), by {root.gap.max_abs:.2g}"
    )
    result = ProbeResult("coupling", "enters", root.gap.max_abs, text)
    return alone, Origin(root, root, math.nan, result, before, before, meetings)


def _meetings(session: Session, before: Store, after: Store) -> dict[int, Meeting]:
    """The values at coordinates that both runs have, in two passes of one run, as far as these went the same way."""
    again = {snapshot.place: snapshot for snapshot in after.snapshots.values()}
    meetings: dict[int, Meeting] = {}
    for event, snapshot in before.snapshots.items():
        other = again.get(snapshot.place)
        if other is None or snapshot.label is None:
            continue
        pairs = pair_elements(snapshot.value, snapshot.label, other.value, other.label, session.shared)
        if len(pairs):
            moved = gap(snapshot.value, other.value, pairs)
            scale = moved.max_abs / moved.max_rel if moved.max_rel else 0.0
            noise = _UNCHANGED * scale if snapshot.numeric else 0.0
            meetings[event] = Meeting(event, event, snapshot, snapshot, pairs, moved, noise)
    return meetings
