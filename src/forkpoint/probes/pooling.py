"""The pooling probe: is a sample's vector made from its tokens alone, and from the same ones in both runs?

A pooled value belongs to a sample as a whole, is made from what its tokens hold, and goes back to none of them: what
does, as statistics or the first column added to all, is a coupling of tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from forkpoint.explain.session import Session
from forkpoint.probes.bench import Bench
from forkpoint.probes.content import id_names
from forkpoint.probes.coupling import PADDING, Coupling
from forkpoint.probes.length import changes_with_length
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.origin import Origin
from forkpoint.probes.resampled import Rescaled
from forkpoint.result import ProbeResult
from forkpoint.runs.masks import states_layout
from forkpoint.support.arrays import tensor_of

_CASTS = frozenset({"to", "type", "long", "int"})
_ONE = 1e-9
"""How far a sum of weights may be from 1."""


def other_token(session: Session, a: Bench, b: Bench) -> ProbeResult | None:
    """Show that the origin takes one token of a sample in run A, and another or padding in run B, for the sample."""
    if any(returns_to_tokens(bench) for bench in (a, b)):
        return None
    tokens_a, tokens_b = _chosen_tokens(a), _chosen_tokens(b)
    for sample in sorted(tokens_a.keys() & tokens_b.keys()):
        one, other = tokens_a[sample], tokens_b[sample]
        if one == other or (None not in (one, other) and not _both(session, sample, one, other)):
            continue
        text = f"of sample {sample} run A takes {_named(one)}, run B {_named(other)}"
        return ProbeResult("pooling", "other token", None, text)
    return None


def takes_what_was_given(a: Bench, b: Bench) -> bool:
    """Whether an input of each run, as it was given, says which tokens the origin takes."""
    return all(any(_is_given(bench, event) for event in _sources(bench, bench.root)) for bench in (a, b))


def _is_given(bench: Bench, event: int) -> bool:
    """Whether whole numbers are an input of the model, moved at most."""
    ids = id_names(bench.traced)
    while event in bench.store.ops:
        op, record = bench.store.ops[event]
        if op.is_input and not op.module:
            name, snapshot = op.function.removeprefix("input:"), bench.store.snapshots.get(event)
            whole = snapshot is not None and not snapshot.numeric and snapshot.dtype != torch.bool
            return whole and name not in ids and not states_layout(name)
        before = _sources(bench, event)
        if len(before) != 1 or not (record.status == "view" or op.function in _CASTS):
            return False
        event = before[0]
    return False


def _sources(bench: Bench, event: int) -> list[int]:
    return bench.store.sources.get(event, [])


def _named(position: int | None) -> str:
    return "padding" if position is None else f"token {position}"


def _both(session: Session, sample: int, one: int | None, other: int | None) -> bool:
    """Whether both runs have both tokens, so that each could have taken the other's."""
    names = session.shared.names
    return all(any(isinstance(n, tuple) and n[1:] == (sample, p) for n in names) for p in (one, other))


def _chosen_tokens(bench: Bench) -> dict[int, int | None]:
    """For each sample of run A which of its tokens the origin takes out of several; None for padding."""
    snapshot = bench.store.snapshots[bench.root]
    table = bench.traced.trace.table
    if snapshot.label is None or snapshot.label.k is not None:
        return {}
    ids = np.unique(snapshot.label.q)
    rows = bench.session.shared.sample_rows_a if bench.side == "a" else bench.session.shared.sample_rows_b
    among = [
        np.unique(source.label.q)
        for event in bench.store.sources.get(bench.root, ())
        if (source := bench.store.snapshots.get(event)) is not None
        and source.label is not None
        and source.numeric
    ]
    chosen: dict[int, int | None] = {}
    for sample in set(rows[ids].tolist()) - {-1}:
        mine = ids[rows[ids] == sample]
        several = any((rows[source] == sample).sum() > 1 and np.isin(mine, source).all() for source in among)
        if len(mine) == 1 and several and bench.slots[mine[0]]:
            token = table.tokens[int(mine[0])]
            chosen[sample] = None if token is None else token[2]
    return chosen


def pools_padding(session: Session, origin: Origin, coupled: Coupling, a: Bench, b: Bench) -> bool:
    """Whether the origin makes one value for each sample out of its tokens and its padding, in no order.

    Or the weights of such a value: then tokens must be summed by them.
    """
    root = origin.root
    if coupled.what != (PADDING,) or coupled.ordered():
        return False
    if for_each_sample(session, root):
        return not any(returns_to_tokens(bench) for bench in (a, b))
    return _weighs_padding(session, root) and _is_pooled(session, origin, a)


def pools_columns(session: Session, root: Meeting, a: Bench, b: Bench) -> ProbeResult | None:
    """Show that what the origin makes of a sample's tokens changes with the number of columns of padding."""
    if not for_each_sample(session, root) or any(bench.of_layout(bench.root) for bench in (a, b)):
        return None
    if any(returns_to_tokens(bench) for bench in (a, b)):
        return None
    counted = changes_with_length(session, root, a, b, real=False)
    return None if counted is None else replace(counted, name="pooling", outcome="counts padding")


def for_the_call(session: Session, root: Meeting, a: Bench, b: Bench) -> bool:
    """Whether the origin's value is one of the whole call, and no value of a token is made from it."""
    of = [session.shared.coordinate(int(number)) for number in root.pairs.distinct]
    of_samples = root.pairs.by_sample or any(sample is not None for sample, _ in of)
    if of_samples and (root.a.value.dim() or any(position is not None for _, position in of)):
        return False
    return not any(returns_to_tokens(bench) for bench in (a, b))


def for_each_sample(session: Session, root: Meeting) -> bool:
    """Whether the origin's values belong to samples, each as a whole: one number is the call's, as a loss is."""
    if not root.a.value.dim():
        return False
    if root.pairs.by_sample:
        return True
    of = [session.shared.coordinate(int(number)) for number in root.pairs.distinct]
    return all(sample is not None and position is None for sample, position in of)


def returns_to_tokens(bench: Bench, start: int | None = None) -> bool:
    """Whether what an event (by default the origin) makes goes back into values of single tokens, as statistics do."""
    start = bench.root if start is None else start
    for event in bench.store.reached([start]) - {start}:
        snapshot = bench.store.snapshots.get(event)
        if snapshot is None or snapshot.label is None or not snapshot.numeric:
            continue
        if (
            snapshot.label.q.size > 1
            and bool(bench.slots[snapshot.label.q].all())
            and _several_a_row(bench, snapshot.label.q)
        ):
            return True
    return False


def _several_a_row(bench: Bench, ids: np.ndarray) -> bool:
    rows = [bench.traced.trace.table.places[int(item)][0] for item in np.unique(ids)]
    return len(rows) > len(set(rows))


def _is_pooled(session: Session, origin: Origin, bench: Bench) -> bool:
    """Whether what the tokens of a sample hold is summed by the weights that the origin makes, to a value of the sample.

    That value is twice as much with all weights doubled: weights that are added to what tokens hold weigh nothing.
    """
    store, root = bench.store, origin.root.event_a
    weighed = store.reached([root])
    for event in sorted(weighed - {root}):
        meeting = origin.meetings.get(event)
        if meeting is None or not meeting.numeric or not for_each_sample(session, meeting):
            continue
        beside = store.behind([event], lambda e: e != root) - weighed  # not by way of the weights
        if beside & bench.content and not returns_to_tokens(bench, event):
            return _grows_with(bench, event)
    return False


def _grows_with(bench: Bench, event: int) -> bool:
    """Whether a value is twice as much where the origin is: so it is not if tokens are added to the origin's values."""
    twice = Rescaled({bench.store.snapshots[bench.root].place}, 2.0)
    before, after = bench.store.snapshots[event].value, bench.at(event).again(twice)
    if after is None or after.value.shape != before.shape:
        return False
    return bool((after.value - 2 * before).abs().max() <= _ONE * before.abs().max())


def _weighs_padding(session: Session, root: Meeting) -> bool:
    """Whether the origin's values are weights that add up to 1 over a sample in run A, and with padding in run B."""
    pairs = root.pairs
    places = [session.shared.coordinate(int(number)) for number in pairs.coordinates]
    if any(sample is None or position is None for sample, position in places):
        return False
    width = len(pairs.inner_a)
    samples = np.asarray([sample for sample, _ in places])
    one, other = (
        snapshot.value.reshape(-1)[tensor_of(flat)].double().reshape(-1, width)
        for snapshot, flat in ((root.a, pairs.a), (root.b, pairs.b))
    )
    for sample in np.unique(samples):
        mine = tensor_of(samples == sample)
        whole, part = one[mine].sum(0), other[mine].sum(0)
        if (
            bool((whole - 1).abs().max() > _ONE)
            or bool((part > 1 + _ONE).any())
            or bool((other[mine] < 0).any())
        ):
            return False
    return True
