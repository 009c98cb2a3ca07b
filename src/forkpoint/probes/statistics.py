"""The statistics probe: is what couples tokens at the origin a normalisation by a mean, or a mean and a variance?

A softmax, a maximum or a length of vectors is taken over the others as well, in no order. What tells a
normalisation from them: a constant added to all values changes nothing, all values doubled change
nothing (or double it, where only a mean is taken away), and each of the others counts, however little
it is changed. Where a mean is not taken away but added, a constant adds one number to all values.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from forkpoint.match.align import pair_elements
from forkpoint.probes.bench import Bench, Mask
from forkpoint.probes.coupling import ROWS, Coupling
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.resampled import Rescaled
from forkpoint.probes.watchers import Snapshot
from forkpoint.support.arrays import tensor_of

_FAR = 1e4
"""What all values are multiplied by, so that an epsilon under a root has no part in them."""
_SHIFT, _NUDGE = 0.7, 1e-2
"""What is added to all values, or to those of one of the others, before they are multiplied."""
_EQUAL, _MOVED = 1e-6, 1e-12
"""Relative to the largest value: up to which two values are one, and from which one has moved."""
_EACH = 0.9
"""Share of the elements that has to move with one of the others; a largest value moves with few."""

_POINTS, _ON_LINE = 3, 1e-9
"""How many points make a line, and how far one may lie from it, relative to the largest value."""


NORMALISED, MEAN = "normalised", "mean"
"""A mean, or a mean and a variance, is taken away; or a mean is taken, and used otherwise."""


def statistics(coupled: Coupling, at: int | None = None) -> str | None:
    """By what statistics of others the first value of tokens, from the origin on, is made; None where by none.

    Args:
        coupled: what couples tokens at the origin.
        at: the event of another value to ask that of.
    """
    bench = coupled.bench
    at = _of_tokens(bench) if at is None and bench is not None else at
    if bench is None or coupled.others is None or at is None:
        return None
    here = bench.at(at)
    first = bench.first_of(coupled.moved)
    mine, others = bench.samples(first), coupled.others
    if ROWS not in coupled.what:
        others = others & bench.row_mates(first)
    before = [
        bench.store.snapshots[event]
        for event in bench.before & bench.content
        if event in bench.store.snapshots
    ]
    one = _one_of(bench, others, before, rows=coupled.of_rows)

    def values(factor: float, shift: float = 0.0, nudged: Mask | None = None) -> Tensor | None:
        watcher = Rescaled({snapshot.place for snapshot in before}, factor, shift, nudged, _NUDGE)
        value = here.again(watcher)
        return _at_tokens(here, value, mine) if value is not None and watcher.replaced else None

    plain = values(_FAR)
    if one is None or plain is None or not plain.numel() or not bool(plain.abs().max()):
        return None
    doubled, shifted = values(2 * _FAR), values(_FAR, _SHIFT)
    twice = _equal(2 * plain, doubled)
    normalised = _equal(plain, shifted) and (twice or _equal(plain, doubled))
    linear = twice and shifted is not None and shifted.shape == plain.shape and _one_number(shifted - plain)
    nudged = values(_FAR, nudged=one) if normalised or linear else None
    if nudged is None or nudged.shape != plain.shape:
        return None
    moved = (nudged - plain).abs() > _MOVED * plain.abs().max()
    if float(moved.double().mean()) <= _EACH:
        return None
    return NORMALISED if normalised else MEAN


def normalises_up_to(coupled: Coupling, later: Meeting) -> bool:
    """Whether a later value of tokens is, for each feature, a factor and a number of what comes in before the origin.

    So it is where a mean is taken away at one op, and the result divided by a deviation at the next. Whatever mixes tokens
    or features besides is no such line.
    """
    bench = coupled.bench
    event = None if bench is None else later.event_b if bench.side == "b" else later.event_a
    at = None if bench is None or event is None else _of_tokens(bench.at(event))
    if bench is None or at is None:
        return False
    made = bench.store.snapshots[at].value
    if made.dim() < 2:
        return False
    given = (
        bench.store.snapshots[e].value for e in bench.before & bench.content if e in bench.store.snapshots
    )
    tokens = tuple(range(made.dim() - 1))
    on_lines = any(
        _on_lines(one, made, over)
        for one in given
        if one.shape == made.shape
        for over in (tokens, tokens[:1], tokens[1:])
    )
    return on_lines and statistics(coupled, at) == NORMALISED


def _on_lines(given: Tensor, made: Tensor, over: tuple[int, ...]) -> bool:
    """Whether over some dimensions all points (given, made) lie on one line; three or more have to be there."""
    if not over or math.prod(given.shape[d] for d in over) < _POINTS:
        return False
    x, y = (value.double() - value.double().mean(over, keepdim=True) for value in (given, made))
    slope = (x * y).sum(over, keepdim=True) / (x * x).sum(over, keepdim=True)
    return bool((slope * x - y).abs().max() <= _ON_LINE * y.abs().max())


def _of_tokens(bench: Bench) -> int | None:
    """The origin, or the first value that is made from it and has one for each of several tokens."""
    for event in sorted(bench.store.reached([bench.root])):
        snapshot = bench.store.snapshots.get(event)
        if snapshot is None or snapshot.label is None or snapshot.label.k is not None or not snapshot.numeric:
            continue
        columns = bool((bench.slots & (bench.columns >= 0))[np.unique(snapshot.label.q)].all())
        if event in bench.content and (columns or bench.has_tokens(snapshot)):
            return event
    return None


def _one_of(bench: Bench, others: Mask, before: list[Snapshot], *, rows: bool) -> Mask | None:
    """One of the others that come in before the origin: a row, or else a column (or all that padding was made into)."""
    there = np.zeros(len(others), dtype=bool)
    for snapshot in before:
        if snapshot.label is not None:
            there[np.unique(snapshot.label.q)] = True
    ids = np.flatnonzero(others & there)
    if not len(ids):
        return None
    return others & (bench.rows == bench.rows[ids[-1]]) if rows else np.arange(len(others)) == ids[-1]


def _at_tokens(bench: Bench, snapshot: Snapshot, samples: frozenset[int]) -> Tensor | None:
    """The elements of a value at the tokens of some samples that both runs have."""
    pairs = pair_elements(snapshot.value, snapshot.label, snapshot.value, snapshot.label, bench.shared)
    if not len(pairs) or pairs.by_sample:
        return None
    of = {number: bench.samples({number}) <= samples for number in pairs.distinct.tolist()}
    keep = np.repeat([of[number] for number in pairs.coordinates.tolist()], len(pairs.inner_a))
    return snapshot.value.reshape(-1)[tensor_of(pairs.a[keep])].double()


def _equal(one: Tensor, other: Tensor | None) -> bool:
    if other is None or other.shape != one.shape:
        return False
    return bool((one - other).abs().max() <= _EQUAL * one.abs().max())


def _one_number(values: Tensor) -> bool:
    return bool(values.max() - values.min() <= _EQUAL * values.abs().max())
