"""Every independent source of difference: the ops that part ways although all that goes in is run A's.

Run B is made once more, and whatever passes by is given run A's values at the coordinates that both have. Each op then works
on run A's values, so what it makes is compared with run A's on equal inputs: a difference is its own, and not one that an
earlier op has brought along. Ops that one run alone has are given run A's values, too, and are compared where they end: at
the next value that both have.
"""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import CopiedCall, Recorder
from forkpoint.capture.trace import Op
from forkpoint.explain.locate import (
    Tokens,
    common_module,
    compare_inputs,
    describe_values,
    fetch_ops,
    place_of,
)
from forkpoint.explain.session import Session
from forkpoint.match.align import gap
from forkpoint.match.distance import unit_at
from forkpoint.probes.meetings import Meeting, meet_values
from forkpoint.probes.watchers import Key, Place, Store, Values, with_elements
from forkpoint.result import Divergence, InputComparison

MAX_STORED = 1 << 31
"""Bytes of values kept of each run; what comes after them is not looked at."""


@dataclass(frozen=True)
class Sources:
    """What `sources` found.

    Attributes:
        divergences: of the ops, in the order of execution of run A.
        complete: whether all values that both runs have were looked at.
    """

    divergences: tuple[Divergence, ...]
    complete: bool


def sources(session: Session, tokens: Tokens) -> Sources:
    """Find all ops that part ways on equal inputs, each with its own error.

    Args:
        session: both runs.
        tokens: texts of tokens.
    """
    session.progress.begin("every source: run B with the values of run A")
    store_a, store_b = (Store(MAX_STORED, shelf=session.memory.shelf()) for _ in "ab")
    session.a.again(watcher=store_a)
    session.b.again(watcher=store_b)
    met = _SharedValues(store_a, store_b, meet_values(session, store_a, store_b, 0.0).every)
    values: Values = {}
    for meeting in met.forced:
        values.setdefault(meeting.b.place, []).append((meeting.a.value, meeting.pairs))
    forced = _Forced(values)
    session.b.again(watcher=forced)
    parting = [meeting for meeting in met.forced if meeting.b.place in forced.apart]
    hidden = _hidden(session, met, parting, forced)
    described = (
        _described(session, m, forced.apart[m.b.place], hidden.get(m.event_a, []), tokens) for m in parting
    )
    complete = max(store_a.used, store_b.used) < MAX_STORED
    return Sources(tuple(_once(shown for shown in described if shown is not None)), complete)


@dataclass
class _Forced:
    """Gives every value that passes by other elements, and keeps what was there where these are others.

    Attributes:
        values: for each place, the values to take elements from, and the pairs of elements.
        apart: the values that were there, and their labels, where they were others.
    """

    values: Values
    apart: dict[Place, tuple[Tensor, Label | None]] = field(
        default_factory=dict[Place, "tuple[Tensor, Label | None]"]
    )
    entrances_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._keys = {place[0] for place in self.values}

    def edits(self, key: Key) -> bool:
        return key in self._keys

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        place = key, nth, output, recorder.call
        given = self.values.get(place, ())
        if not any(gap(source, value, pairs).differing for source, pairs in given):
            return None
        self.apart[place] = value.detach().clone(), label
        return with_elements(value, given)

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        return None


class _SharedValues:
    """The values that both runs have, and which of them are given run A's elements."""

    def __init__(self, a: Store, b: Store, every: list[Meeting]) -> None:
        self.a, self.b = a, b
        self.events_a = {m.event_a for m in every if _counts(m)}
        self.events_b = {m.event_b for m in every if _counts(m)}
        self.forced = [m for m in every if _counts(m) and not self._follows(m)]

    def _follows(self, meeting: Meeting) -> bool:
        """Whether it is a view of values that were given run A's elements: to part it from them would undo writes."""
        made_of = self.b.sources.get(meeting.event_b, ())
        return meeting.b.event.status == "view" and bool(made_of) and self.events_b.issuperset(made_of)

    def between(self, meeting: Meeting) -> list[tuple[str, Op]]:
        """The ops that one run alone has, from the last value that both have up to a meeting that is made of them."""
        ops: list[tuple[str, Op]] = []
        for run, store, event, events in (
            ("a", self.a, meeting.event_a, self.events_a),
            ("b", self.b, meeting.event_b, self.events_b),
        ):
            last = max(
                (e for e in events if e < event and store.snapshots[e].event.status == "digest"), default=-1
            )
            passed = store.behind([event], lambda e, events=events: e not in events)
            for other in sorted(e for e in passed if e > last):
                op, record = store.ops[other]
                snapshot = store.snapshots.get(other)
                if (
                    not op.is_boundary
                    and record.status != "view"
                    and snapshot is not None
                    and snapshot.numeric
                ):
                    ops.append((run, op))
        return list(dict.fromkeys(ops))


def _counts(meeting: Meeting) -> bool:
    return meeting.numeric and meeting.b.numeric and len(meeting.pairs) > 0 and not meeting.a.op.is_input


def _hidden(
    session: Session, met: _SharedValues, parting: list[Meeting], forced: _Forced
) -> dict[int, list[tuple[str, Op]]]:
    """For meetings, by A's event, the ops of one run alone that the difference comes from.

    Where such ops go into an op that both have, it is looked at what they hand to it: if that is equal, they made nothing.
    """
    hidden = {m.event_a: ops for m in parting if (ops := met.between(m))}
    asked = [m for m in parting if m.event_a in hidden and not _moves(m)]
    if not asked:
        return hidden
    calls_a = fetch_ops(session.a, [(m.a.op, m.a.event) for m in asked])
    calls_b = fetch_ops(session.b, [(m.b.op, m.b.event) for m in asked], watcher=forced)
    for meeting, a, b in zip(asked, calls_a, calls_b, strict=True):
        if a is not None and b is not None and not any(_differs(i) for i in compare_inputs(session, a, b)):
            del hidden[meeting.event_a]
    return hidden


def _moves(meeting: Meeting) -> bool:
    """Whether it computes nothing: a view, or a module's output."""
    return meeting.a.op.is_boundary or "view" in (meeting.a.event.status, meeting.b.event.status)


def _differs(given: InputComparison) -> bool:
    floating = given.dtype_a is not None and ("float" in given.dtype_a or "complex" in given.dtype_a)
    return given.status == "differs" and floating


def _described(
    session: Session,
    meeting: Meeting,
    made: tuple[Tensor, Label | None],
    hidden: list[tuple[str, Op]],
    tokens: Tokens,
) -> Divergence | None:
    a, b, (value_b, label_b) = meeting.a, meeting.b, made
    taken_a = CopiedCall(a.op, a.event.call, a.event.nth, None, (), {}, (a.value,), {}, (a.label,))
    taken_b = CopiedCall(b.op, b.event.call, b.event.nth, None, (), {}, (value_b,), {}, (label_b,))
    shown = describe_values(session, a.op, 0, taken_a, taken_b, tokens)
    if shown is None:
        return None
    shown = replace(shown, error=_error(shown, a.value, value_b))
    if not hidden:
        return shown
    place = place_of(session, Op(common_module(session, hidden), "output", a.op.site))
    return replace(shown, **place, between=tuple(dict.fromkeys(f"{run}: {op.place}" for run, op in hidden)))


def _error(shown: Divergence, a: Tensor, b: Tensor) -> float | None:
    """How far the values are apart, in units in the last place of the largest of them, in the narrower dtype."""
    dtypes = [value.dtype for value in (a, b)]
    if shown.max_abs is None or not all(dtype.is_floating_point for dtype in dtypes):
        return None
    largest = max(float(value.double().nan_to_num(0.0, 0.0, 0.0).abs().max()) for value in (a, b))
    return shown.max_abs / max(
        float(unit_at(torch.tensor(largest, dtype=torch.float64), dtype)) for dtype in dtypes
    )


def _once(divergences: Iterable[Divergence]) -> Iterator[Divergence]:
    """Each op once, with the pass that is farthest apart; passes of one op are one source."""
    by_op: dict[tuple[str, str], Divergence] = {}
    for shown in divergences:
        key = shown.op, shown.source
        if key not in by_op or (shown.error or 0.0) > (by_op[key].error or 0.0):
            by_op[key] = shown
    yield from by_op.values()
