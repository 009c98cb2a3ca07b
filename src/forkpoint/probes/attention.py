"""The attention probe: does a query see other keys in one run than in the other?

Whom a query sees is read off the weights, not off a mask: where softmax made them, from its result;
where one kernel does everything, from what it returns for the identity in place of the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.functions import parameter_names
from forkpoint.capture.labels import Label, spread
from forkpoint.capture.recorder import CopiedCall
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.session import Session, Traced
from forkpoint.probes.bench import Bench, benches
from forkpoint.probes.origin import Origin
from forkpoint.probes.positions import named_token
from forkpoint.probes.watchers import Snapshot, Store
from forkpoint.result import ProbeResult

KERNELS = frozenset({"scaled_dot_product_attention", "flex_attention"})
"""Functions of (query, key, value) that weigh values by softmax and don't return the weights."""

Heads = dict[tuple[int, int], int]
"""By the shared numbers of a query and a key, in how many heads the one sees the other."""

_PARAMETERS = {
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
}
"""Names of parameters that torch does not tell."""


def sees_other_keys(session: Session, origin: Origin, among: Iterable[Origin] = ()) -> ProbeResult | None:
    """Whether some query sees other keys, in the first attention that the difference reaches.

    The outcome is `other keys`, with the first such query and key, or `same keys`. None where no attention comes after
    the origin, or where its weights can't be read.

    Args:
        among: origins of which the same may be asked, so that their calls can be kept along with this one's.
    """
    attention = _attention(origin)
    if attention is None:
        return None
    b, a = benches(session, origin)
    others = [(part, pair) for part in among if (pair := _attention(part)) is not None]
    ahead_a = [snapshot for part, pair in others for snapshot in (pair[0], part.seen.a)]
    ahead_b = [
        snapshot
        for part, pair in others
        for snapshot in (pair[1], part.seen.b)
        if part.right.keys() == origin.right.keys()
    ]
    return _differ(session, _heads(a, attention[0], ahead_a), _heads(b, attention[1], ahead_b))


def _attention(origin: Origin) -> tuple[Snapshot, Snapshot] | None:
    """The first attention that the difference reaches, in both runs; None where there is none."""
    unmet = [_unmet(store, at, met) for store, at, met in (
        (origin.store_a, origin.root.event_a, set(origin.meetings)),
        (origin.store_b, origin.root.event_b, {meeting.event_b for meeting in origin.meetings.values()}),
    )]  # fmt: skip
    if all(unmet):
        return unmet[0][0], unmet[1][0]
    reached = origin.store_a.reached([origin.root.event_a, origin.seen.event_a])
    for event in sorted(reached):
        meeting = origin.meetings.get(event)
        if meeting is not None and _attends(meeting.a) and _attends(meeting.b):
            return meeting.a, meeting.b
    return None


def _unmet(store: Store, root: int, met: AbstractSet[int]) -> list[Snapshot]:
    """Attention right behind the origin that is written elsewhere in the other run's code."""
    behind = store.behind([root], lambda event: event not in met)
    return [
        store.snapshots[event]
        for event in sorted(behind)
        if event in store.snapshots and _attends(store.snapshots[event])
    ]


def _attends(snapshot: Snapshot) -> bool:
    if snapshot.op.function == "softmax":
        return snapshot.label is not None and snapshot.label.k is not None
    return snapshot.op.function in KERNELS


def _differ(session: Session, heads_a: Heads | None, heads_b: Heads | None) -> ProbeResult | None:
    if heads_a is None or heads_b is None:
        return None
    samples = session.shared.samples
    both = {query for query, _ in heads_a} & {query for query, _ in heads_b}
    pairs = heads_a.keys() | heads_b.keys()
    differing = [(q, k) for q, k in pairs if q in both and heads_a.get((q, k), 0) != heads_b.get((q, k), 0)]
    for query, key in differing:
        own = key >= 0 and samples[query] == samples[key]
        if key == _CARRIED_OVER or (own and not ((query, key) in heads_a and (query, key) in heads_b)):
            differing = []  # no key is hidden or shown: other keys were handed over
            break
    if not differing:
        return ProbeResult("attention", "same keys", 0.0, "each query sees the same keys in both runs")
    return ProbeResult(
        "attention", "other keys", float(len(differing)), _told(session, differing, heads_a, heads_b)
    )


def _told(session: Session, differing: list[tuple[int, int]], a: Heads, b: Heads) -> str:
    """The first query that sees other keys, which key that is, and in which run; how many such pairs there are."""
    of = session.shared.coordinate

    def order(pair: tuple[int, int]) -> tuple[int, ...]:
        return tuple(
            -1 if n is None else n for n in (*of(pair[0]), *(of(pair[1]) if pair[1] >= 0 else _LAST))
        )

    query, key = min(differing, key=order)
    seen = a.get((query, key), 0), b.get((query, key), 0)
    what = f"the key of {named_token(of(key))}" if key >= 0 else "a key that the other run lacks"
    where = f"in run {'A' if seen[0] else 'B'} alone"
    if all(seen):
        where = f"{seen[0]} times in run A and {seen[1]} times in run B"
    if all(seen) and key < 0:
        what = f"{seen[0]} keys of no token that both runs have in run A, and on {seen[1]} in run B"
        where = ""
    others = f", one of {len(differing)} such pairs" if len(differing) > 1 else ""
    return f"the query of {named_token(of(query))} has a weight on {' '.join(filter(None, (what, where)))}{others}"


_LAST = (1 << 62, 0)
"""Where keys that one run alone has come in order."""
_OTHERS, _CARRIED_OVER = -1, -2
"""Keys that one run alone has: of this call, or padding; of tokens of an earlier call."""


def _heads(bench: Bench, snapshot: Snapshot, ahead: Sequence[Snapshot]) -> Heads | None:
    """In how many heads each query that both runs have sees each key that is at hand."""
    traced, numbers, shared = bench.traced, bench.numbers, bench.session.shared
    home = shared.home_a if bench.side == "a" else shared.home_b
    labelled = _weights(bench, snapshot, ahead)
    if labelled is None:
        return None
    weights, label = labelled
    assert label.k is not None
    shape = tuple(weights.shape)
    carried = (numbers < 0) & (home < snapshot.event.call) & _tokens(traced)
    query = spread(numbers[label.q], shape)
    key = spread(np.where(carried, _CARRIED_OVER, numbers)[label.k], shape)
    mine = query >= 0
    pairs, place = np.unique(np.stack([query[mine], key[mine]], axis=1), axis=0, return_inverse=True)
    heads = np.bincount(place.reshape(-1), weights=(weights > 0).cpu().numpy()[mine], minlength=len(pairs))
    return {(query, key): int(count) for (query, key), count in zip(pairs.tolist(), heads, strict=True)}


def _tokens(traced: Traced) -> NDArray[np.bool_]:
    """For each id whether it is a token's; the last two stand for none and for everything."""
    return np.asarray([*(token is not None for token in traced.recorder.table.tokens), False, False])


def _weights(bench: Bench, snapshot: Snapshot, ahead: Sequence[Snapshot]) -> tuple[Tensor, Label] | None:
    """The attention weights of one call, in float64, and which query and key each belongs to."""
    if snapshot.op.function not in KERNELS:
        return None if snapshot.label is None else (snapshot.value, snapshot.label)
    call = bench.experiments.fetch((snapshot.op, snapshot.event), [(one.op, one.event) for one in ahead])
    if call is None:
        return None
    names = _PARAMETERS.get(call.op.function) or parameter_names(call.op.function, len(call.args))
    given = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    query, key = given["query"], given["key"]
    label_query, label_key = call.input_labels.get(id(query)), call.input_labels.get(id(key))
    if label_query is None or label_key is None:
        return None
    label = bench.traced.recorder.labels.make(label_query.q, np.swapaxes(label_key.q, -1, -2))
    weights = _for_identity(call, given)
    return None if label is None or label.k is None or weights is None else (weights, label)


def _for_identity(call: CopiedCall, given: dict[str, object]) -> Tensor | None:
    key = given["key"]
    assert isinstance(key, Tensor)
    one = torch.eye(key.shape[-2], dtype=torch.float64, device=key.device)
    exact = {
        n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in given.items()
    }
    exact["value"] = one.expand(*key.shape[:-2], *one.shape)
    if "dropout_p" in exact:
        exact["dropout_p"] = 0.0
    try:
        with torch.no_grad():
            result = call.func(**exact)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reraise_out_of_memory(error)
        return None
    return result if isinstance(result, Tensor) else None
