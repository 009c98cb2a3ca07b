"""The positions probe: has the same token another position in the two runs?

Asked at the origin, of what no token's content enters: whole numbers that tell the tokens of a sample
apart, the rows that a lookup takes, or the rows of a table that the two runs take for the same token.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.writes import INDEXED_WRITES
from forkpoint.explain.locate import Located, named_inputs
from forkpoint.explain.session import Session
from forkpoint.match.align import gap
from forkpoint.match.pairs import Pairs
from forkpoint.probes.bench import Bench, benches
from forkpoint.probes.meetings import Meeting, pair_values
from forkpoint.probes.origin import Origin
from forkpoint.probes.watchers import Snapshot
from forkpoint.result import ProbeResult
from forkpoint.support.arrays import tensor_of

_LOOKUPS = frozenset({"embedding", "getitem", "index_select", "gather", "take_along_dim", "index", "take"})
_EQUAL = 1e-9
"""Relative to the largest value: up to which two rows of a table are one."""


def positions_at(session: Session, origin: Origin) -> ProbeResult | None:
    """Show that a token has other positions at an origin, or looks up other rows where it is first seen.

    Numbers made of a mask that is another one for the same token are no positions: it is the mask that differs.
    """
    for at in dict.fromkeys((origin.root.event_a, origin.seen.event_a)):
        meeting = origin.root if at == origin.root.event_a else origin.seen
        b, a = benches(session, origin, meeting)
        if _is_masked_otherwise(session, meeting, a, b):
            return None
        shown = other_positions(session, meeting, a, b)
        if shown is not None:
            return shown
    return None


def _is_masked_otherwise(session: Session, at: Meeting, a: Bench, b: Bench) -> bool:
    """Whether a value, or what it is made of right before, is a mask that differs for a token that both runs have."""
    made_of = (
        [bench.store.snapshots.get(e) for e in bench.store.sources.get(bench.root, ())] for bench in (a, b)
    )
    for one, other in ((at.a, at.b), *zip(*made_of, strict=False)):
        if one is None or other is None or not (_is_mask(one.value) and _is_mask(other.value)):
            continue
        pairs = pair_values(session, one, other)
        if len(pairs) and not pairs.by_sample and gap(one.value, other.value, pairs).differing:
            return True
    return False


def _is_mask(value: Tensor) -> bool:
    """Whether a value tells some from others by 0 and 1: the first token's position, 0 or 1 in all rows, does not."""
    if value.dtype == torch.bool:
        return True
    zeros, ones = (int((value == number).sum()) for number in (0, 1))
    return bool(zeros and ones and zeros + ones == value.numel())


def other_positions(session: Session, at: Meeting, a: Bench, b: Bench) -> ProbeResult | None:
    """Show that a token has other positions at a value of both runs; None where that is not so.

    Args:
        at: the value.
        a, b: the runs, at it.
    """
    for snapshot_a, snapshot_b, kind in _numbers(at, a, b):
        pairs = pair_values(session, snapshot_a, snapshot_b)
        difference = _first_other(snapshot_a.value, snapshot_b.value, pairs, session)
        if difference is not None:
            place, one, other = difference
            text = f"{named_token(place)} {kind} {one} in run A, {other} in run B"
            return ProbeResult("positions", "differ", float(abs(other - one)), text)
    return _other_rows(session, at, a, b)


def shifted_positions(session: Session, located: Located, gap: float) -> ProbeResult | None:
    """Show that the first divergence is one of positions, each sample's shifted as a whole; None where it is not.

    Args:
        gap: of the results in float64, which is no more than rounding.
    """
    op, (a, b) = located.row.op, (located.a, located.b)
    events = located.row.first_a, located.row.first_b
    if op.is_boundary or None in events or not all(op.output < len(t.outputs) for t in (a, b)):
        return None
    one, other = (
        Snapshot(op, event, call.outputs[op.output], call.output_labels[op.output], [])
        for event, call in zip(events, (a, b), strict=True)
        if event is not None
    )
    if not (_whole(one.value) and _whole(other.value)):
        return None
    pairs = pair_values(session, one, other)
    if not len(pairs):
        return None
    values = [v.value.reshape(-1).cpu()[tensor_of(i)].double() for v, i in ((one, pairs.a), (other, pairs.b))]
    shifts = _of_each_sample(session, pairs, values[1] - values[0])
    if len(values[0].unique()) < 2 or not shifts or not any(shifts):
        return None
    by = max(shifts, key=abs)
    text = (
        f"positions are {abs(by):.0f} {'higher' if by > 0 else 'lower'} in run B, where the runs first part; in float64 the "
        f"results agree to {gap:.2g} all the same, so that only distances between positions matter to this model"
    )
    return ProbeResult("positions", "shifted", float(abs(by)), text)


def _of_each_sample(session: Session, pairs: Pairs, differences: Tensor) -> list[float]:
    """The one difference of all numbers of each sample; empty where a sample has several, as rounded numbers have.

    Numbers that belong to no sample belong to them all.
    """
    width = max(len(pairs.inner_a), 1)
    of: dict[int | None, set[float]] = {}
    for cell, one in enumerate(differences.reshape(-1, width)):
        sample = (
            session.shared.coordinate(int(pairs.coordinates[cell]))[0] if len(pairs.coordinates) else None
        )
        of.setdefault(sample, set()).update(one.tolist())
    return (
        [by for shifts in of.values() for by in shifts]
        if all(len(shifts) == 1 for shifts in of.values())
        else []
    )


def _numbers(root: Meeting, a: Bench, b: Bench) -> Iterator[tuple[Snapshot, Snapshot, str]]:
    """Whole numbers at a value that may be positions, of both runs."""
    if a.of_layout(a.root) and b.of_layout(b.root) and _whole(root.a.value) and _whole(root.b.value):
        yield root.a, root.b, "stands at"
    lookups = [_lookup(bench) for bench in (a, b)]
    if None not in lookups:
        yield from (
            (one, other, "looks up row")
            for one, other in zip(_indices(a, lookups[0]), _indices(b, lookups[1]), strict=False)
        )


def _lookup(bench: Bench) -> int | None:
    """The event of the lookup that makes the origin's value: the origin itself, or what a module returns unchanged."""
    event: int | None = bench.root
    while event is not None and bench.store.ops[event][0].function == "output":
        event = next(iter(bench.store.sources.get(event, ())), None)
    return event if event is not None and bench.store.ops[event][0].function in _LOOKUPS else None


def _indices(bench: Bench, lookup: int | None) -> list[Snapshot]:
    """The whole numbers that went into a lookup, and are the layout's: what tokens hold chooses experts, not positions."""
    if lookup is None:
        return []
    store, events = bench.store, bench.store.sources.get(lookup, [])
    if lookup in store.snapshots and not store.snapshots[lookup].numeric and len(events) > 1:
        events = events[1:]  # the first is the table, which holds whole numbers itself
    if any(store.ops[event][0].function in INDEXED_WRITES for event in events):
        indices = _as_read(bench, lookup) if all(map(bench.of_layout, events)) else []
    else:
        indices = [
            store.snapshots[event] for event in events if event in store.snapshots and bench.of_layout(event)
        ]
    return [k for k in indices if not k.numeric and k.dtype != torch.bool]


def _as_read(bench: Bench, lookup: int) -> list[Snapshot]:
    """The inputs of a lookup as it was called: an event that writes some elements holds no more than those."""
    op, event = bench.store.ops[lookup]
    call = bench.experiments.fetch((op, event))
    if call is None:
        return []
    return [Snapshot(op, event, t, call.input_labels.get(id(t)), []) for t in named_inputs(call).values()]


def _whole(value: Tensor) -> bool:
    if value.dtype == torch.bool or value.is_complex():
        return False
    return not value.is_floating_point() or bool((value == value.round()).all())


def _first_other(
    a: Tensor, b: Tensor, pairs: Pairs, session: Session
) -> tuple[tuple[int | None, int | None], int, int] | None:
    """Where the numbers of a token differ, and which they are; None unless they tell a sample's tokens apart."""
    if not len(pairs) or pairs.by_sample:
        return None
    width = len(pairs.inner_a)
    one, other = (
        value.reshape(-1)[tensor_of(flat).to(value.device)].cpu().double().reshape(-1, width)
        for value, flat in ((a, pairs.a), (b, pairs.b))
    )
    differing = torch.nonzero((one != other).any(1)).reshape(-1).tolist()
    places = [session.shared.coordinate(int(number)) for number in pairs.coordinates]
    if not differing:
        return None
    if float(torch.maximum(one.abs(), other.abs()).max()) < 2:  # a mask, or nothing that can be told from one
        return None
    if not (_tells_apart(one, places) or _tells_apart(other, places)):
        sample, position = places[differing[0]]
        of_tokens = position is not None if sample is not None else max(len(a.unique()), len(b.unique())) > 1
        if not of_tokens or one.numel() > 1:
            return None
    cell = differing[0]
    element = int(torch.nonzero(one[cell] != other[cell])[0])
    return places[cell], int(one[cell, element]), int(other[cell, element])


def _tells_apart(values: Tensor, places: list[tuple[int | None, int | None]]) -> bool:
    """Whether some sample's tokens have other numbers each, as a length or a count of them all has not."""
    of: dict[int | None, list[int]] = {}
    for cell, (sample, _) in enumerate(places):
        of.setdefault(sample, []).append(cell)
    return any(len(values[cells].unique()) > 1 for cells in of.values())


def _other_rows(session: Session, root: Meeting, a: Bench, b: Bench) -> ProbeResult | None:
    """Whether the two runs take other rows of one table for the same tokens."""
    if not (a.of_layout(a.root) and b.of_layout(b.root) and root.a.numeric) or root.pairs.by_sample:
        return None
    rows = _rows(root)
    if rows is None:
        return None
    rows_a, rows_b, tokens = rows
    near = _EQUAL * float(rows_a.abs().max() or 1.0)
    np_same = ((rows_a[:, None] - rows_b[None]).abs().amax(-1) <= near).numpy()
    matched = [
        (int(np.flatnonzero(np_same[:, cell])[0]), cell)
        for cell in range(np_same.shape[1])
        if np_same[:, cell].any() and not np_same[cell, cell]
    ]
    if len(matched) < 2:
        return None
    other, cell = matched[0]
    mine, theirs = (_named(session, root, tokens, c) for c in (cell, other))
    text = f"{mine} takes in run B the row of a table that run A takes for {theirs}"
    return ProbeResult("positions", "differ", float(len(matched)), text)


def _rows(root: Meeting) -> tuple[Tensor, Tensor, list[int]] | None:
    """The rows of both runs' values for the same tokens, and which each is; None unless there are several."""
    pairs = root.pairs
    a, b = root.a.value, root.b.value
    if len(pairs.inner_a) > 1:  # a cell for each token
        tokens, width = list(range(len(pairs.first_a))), len(pairs.inner_a)
        rows_a = a.reshape(-1)[tensor_of(pairs.a)].reshape(-1, width)
        rows_b = b.reshape(-1)[tensor_of(pairs.b)].reshape(-1, width)
    else:  # a dimension that follows the tokens, and is as long as the columns
        along = [d for d in range(a.dim()) if a.dim() == b.dim() and a.shape[d] != b.shape[d]]
        if len(along) != 1:
            return None
        d = along[0]
        places_a, places_b = (
            np.unravel_index(flat, tuple(value.shape))[d] for flat, value in ((pairs.a, a), (pairs.b, b))
        )
        places = sorted(set(zip(places_a.tolist(), places_b.tolist(), strict=True)))
        tokens = list(range(len(places)))
        rows_a = a.movedim(d, 0)[[one for one, _ in places]].reshape(len(places), -1)
        rows_b = b.movedim(d, 0)[[other for _, other in places]].reshape(len(places), -1)
    return (rows_a, rows_b, tokens) if len(tokens) > 1 and rows_a.shape[1] > 1 else None


def _named(session: Session, root: Meeting, tokens: list[int], row: int) -> str:
    if len(root.pairs.inner_a) > 1:
        return named_token(session.shared.coordinate(int(root.pairs.coordinates[row])))
    return f"token {tokens[row]}"


def named_token(place: tuple[int | None, int | None]) -> str:
    """What a report calls a token."""
    sample, position = place
    if sample is None or position is None:
        return "a token"
    return f"token {position} of sample {sample}"
