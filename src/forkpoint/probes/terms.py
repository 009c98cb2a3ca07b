"""The terms probe: do the same terms enter two losses that differ, and only what they are divided by is another?

A loss is one number for a whole call, so it differs as soon as padding, or the size of a micro-batch, counts in what
its terms are divided by, although every token is right. From the loss the probe goes back to the values that it was
made from, as far as these belong to single tokens: where both runs have a token, they must be the same. And it must
be a quotient with another divisor: each loss is the sum of its terms over a count, and the counts differ; or, where the
terms are inside of an op (a cross-entropy), one function made both losses, and the same changes of the same terms move
them by other amounts, in one ratio. Terms of padding that are added to the sum are no matter of divisors:
where a loss moves with terms of what its run alone has, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import Tensor

from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.results import ResultComparison, ResultGap
from forkpoint.explain.session import Session, Traced
from forkpoint.match.align import gap, pair_elements
from forkpoint.probes.divisors import Loss, are_others, counts, divide_otherwise, numbers_of, own_terms_enter
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.precision import Precision
from forkpoint.probes.watchers import Snapshot, Store
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.runs.returned import all_results
from forkpoint.runs.run import Inputs, Run

MAX_STORED = 1 << 30
"""Bytes of a run's values that are kept."""
_SAME = 1e-9
"""Relative difference of terms, and of losses of one function, that is float64's rounding."""


def loss_terms(session: Session, exact: Precision, weights: tuple[Weight, ...] = ()) -> ProbeResult | None:
    """Whether two losses differ only in what the same terms are divided by; None where they don't, or more differs."""
    number = _lone_number(exact)
    if number is None:
        return None
    with same_weights(weights):
        a, b = (_trace_back(traced, number.result) for traced in (session.a, session.b))
        if a is None or b is None:
            return None
        count = _agreeing(session, a.terms, b.terms)
        if not count or _agreeing(session, a.marks, b.marks) is None:
            return None
        if not _divide_otherwise(session, number, a, b):
            return None
        sides = (session.a, session.shared.a, a), (session.b, session.shared.b, b)
        if any(own_terms_enter(traced, ids, number.result, loss) for traced, ids, loss in sides):
            return None
    losses = ["; ".join(f"{n:.6g}" for n in loss.numbers) for loss in (a, b)]
    text = (
        f"the terms that enter {number.result} are the same at all {count} places that both runs have, but it is "
        f"{losses[0]} in run A and {losses[1]} in run B: they are divided by other counts"
    )
    return ProbeResult("terms", "agree", float(count), text)


def _lone_number(exact: Precision) -> ResultGap | None:
    """The one number of whole calls that differs in float64, where all that belongs to tokens is the same."""
    numbers = [g for g in exact.compared.floating if g.gap.differing and g.a.numel() == 1 == g.b.numel()]
    others = tuple(g for g in exact.compared.gaps if all(g is not number for number in numbers))
    if not numbers or exact.beyond_noise(_of(exact.compared, others)) > 1:
        return None
    return max(numbers, key=lambda g: g.gap.max_abs)


def _of(compared: ResultComparison, gaps: tuple[ResultGap, ...]) -> ResultComparison:
    return replace(compared, gaps=gaps)


# ---------------------------------------------------------------------- what a loss was made from


def _trace_back(traced: Traced, name: str) -> Loss | None:
    """Make a run in float64 with its values kept, and go back from a result to the values of single tokens."""
    store = Store(MAX_STORED)
    results = traced.again(promotion=Promotion(), watcher=store)
    terms: dict[int, Snapshot] = {}
    marks: dict[int, Snapshot] = {}
    numbers = numbers_of(results, name)
    for call, number in numbers.items():
        event = _event_of(store, call, number)
        if event is None:
            return None
        for source in _frontier(traced, store, event):
            snapshot = store.snapshots[source]
            (terms if snapshot.numeric else marks)[source] = snapshot
    return Loss(tuple(numbers.values()), tuple(terms.values()), tuple(marks.values())) if terms else None


def _event_of(store: Store, call: int, number: float) -> int | None:
    """The last event of a call whose value is the number that the call returned."""
    for event in sorted(store.snapshots, reverse=True):
        snapshot = store.snapshots[event]
        if (
            snapshot.event.call == call
            and snapshot.numeric
            and _size(snapshot) == 1
            and float(snapshot.value) == number
        ):
            return event
    return None


def _size(snapshot: Snapshot) -> int:
    return int(np.prod(snapshot.event.shape, dtype=np.int64))


def _frontier(traced: Traced, store: Store, event: int) -> Iterator[int]:
    """The values of single tokens behind an event, each the first on its way back."""
    queue, seen = [event], {event}
    while queue:
        for source in store.sources.get(queue.pop(), ()):
            if source in seen:
                continue
            seen.add(source)
            snapshot = store.snapshots.get(source)
            if snapshot is not None and _is_of_tokens(traced, snapshot):
                yield source
            else:
                queue.append(source)


def _is_of_tokens(traced: Traced, snapshot: Snapshot) -> bool:
    """Whether a value's elements belong to single columns of the input, not to sets of them."""
    return snapshot.label is not None and bool(traced.trace.table.is_slot(snapshot.label.q).any())


# ---------------------------------------------------------------------- are they the same?


def _agreeing(session: Session, a: tuple[Snapshot, ...], b: tuple[Snapshot, ...]) -> int | None:
    """At how many coordinates the values of both runs are the same; None where some are not, or have no partner."""
    shared: set[int] = set()
    for one in a:
        partners = [other for other in b if session.b.trace.key(other.op) == session.a.trace.key(one.op)]
        same, met = _same_at(session, one, partners or [other for other in b if other.numeric == one.numeric])
        if not same:
            return None
        shared |= met
    return len(shared)


def _same_at(session: Session, one: Snapshot, others: list[Snapshot]) -> tuple[bool, set[int]]:
    """Whether a value is the same as one of others wherever they share tokens, and the coordinates where it is."""
    shared: set[int] = set()
    value = one.value
    for other in others:
        pairs = pair_elements(value, one.label, other.value, other.label, session.shared)
        if not len(pairs):
            continue
        apart = gap(value, other.value, pairs)
        if apart.differing and (apart.max_rel > _SAME or not one.numeric):
            return False, shared
        shared |= set(pairs.distinct.tolist())
    return True, shared


# ---------------------------------------------------------------------- is it a quotient?


def _divide_otherwise(session: Session, number: ResultGap, a: Loss, b: Loss) -> bool:
    """Whether what the terms are divided by differs: as read off, or by moving them where one function made both losses."""
    divisors, name = (counts(a), counts(b)), number.result
    if divisors[0] is not None and divisors[1] is not None:
        return are_others(divisors[0], divisors[1], number.over_calls)
    if name.rsplit(".", maxsplit=1)[-1] != "loss" or not _one_function(session, name, a):
        return False
    return divide_otherwise(session, name, a, b, number.over_calls)


def _one_function(session: Session, name: str, loss: Loss) -> bool:
    """Whether run B's model, given run A's inputs, returns run A's loss."""
    a, b = session.a.run, session.b.run
    if not _plain_inputs_agree(a.calls, b.calls):
        return False
    if a.model is b.model and a.call is b.call:
        return True
    promotion = Promotion()
    try:
        outputs = Run(b.model, a.calls, layout=a.layout, call=b.call).execute(around=lambda: promotion)
        returned = [promotion.value(call[name]) for call in all_results(outputs) if name in call]
    except Exception as error:  # noqa: BLE001 - another model may not take these inputs
        reraise_out_of_memory(error)
        return False
    numbers = tuple(float(value) for value in returned if value.numel() == 1)
    return len(numbers) == len(loss.numbers) and bool(np.allclose(numbers, loss.numbers, rtol=_SAME, atol=0))


def _plain_inputs_agree(a: tuple[Inputs, ...], b: tuple[Inputs, ...]) -> bool:
    """Whether whatever is no tensor is the same in all calls."""
    plain = [
        {name: value for name, value in call.items() if not isinstance(value, Tensor)} for call in (*a, *b)
    ]
    try:
        return all(bool(given == plain[0]) for given in plain)
    except (RuntimeError, ValueError):  # arrays that don't compare
        return False
