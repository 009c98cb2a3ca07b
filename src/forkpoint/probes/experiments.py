"""One run, made again in float64 with other values in it, and what comes of that at some ops.

Origins are found one after the other: run B is made with those before put right, and looked at. An experiment on a later
one is made in such a run, too, so that what it changes is all that it changes. One that changes nothing is the control.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from forkpoint.capture.hooks import CopiedCall
from forkpoint.capture.trace import Event, Op
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.locate import fetch_ops
from forkpoint.explain.session import Session, Traced
from forkpoint.probes.passing import Experiment
from forkpoint.probes.resampled import Resampled, Rescaled
from forkpoint.probes.watchers import InTurn, Patch, Patched, Place, Snapshot, Store, Values
from forkpoint.promotion import Promotion

Called = tuple[Op, Event]
"""A call of a run: its op, and which of its calls it is."""


@dataclass(frozen=True)
class ExperimentResult:
    """What came of an experiment.

    Attributes:
        keys: ops of which the values were kept.
        store: these; None where the run ended in an error.
        replaced: how many values or rows were changed.
    """

    keys: frozenset[Any]
    store: Store | None
    replaced: int


def nothing_changed() -> Resampled:
    """What the control changes."""
    return Resampled(set(), np.zeros(0, dtype=bool))


@dataclass(frozen=True)
class Experiments:
    """Experiments on one run, each of which is made once, whoever asks.

    Attributes:
        side: `a` or `b`.
        store: what was kept of the run.
        right: what was put in place there, and is in every experiment.
    """

    session: Session
    side: str
    traced: Traced
    store: Store
    right: Values

    def value(
        self, watcher: Resampled | Rescaled, snapshot: Snapshot, asked: frozenset[Any]
    ) -> Snapshot | None:
        """A value with a watcher in the run; None where the run ends in an error, or does not come there.

        Args:
            asked: ops at which the same experiment will be looked at.
        """
        made, key = self.session.experiments, (*self._name, watcher.key)
        earlier = made.get(key)
        if earlier is None or snapshot.op.key not in earlier.keys:
            earlier = made[key] = self.made(watcher, asked | {snapshot.op.key})
        watcher.replaced = earlier.replaced
        return None if earlier.store is None else _at(earlier.store, snapshot.place)

    def made(self, watcher: Resampled | Rescaled, keys: frozenset[Any]) -> ExperimentResult:
        """The run with a watcher in it, and the values of some ops there."""
        store = Store(self.store.limit, lambda op: op.key in keys, self.store.shelf)
        try:
            passed = self.in_passing(watcher.afresh(), keys)
            if passed is not None:
                return passed
            places = {snapshot.place for snapshot in self.store.snapshots.values() if snapshot.op.key in keys}

            def enough() -> bool:
                return len(store.snapshots) >= len(places) and places <= {
                    snapshot.place for snapshot in store.snapshots.values()
                }

            both = InTurn(Patch(self.right), watcher)
            self.traced.again(promotion=Promotion(), watcher=Patched(both, store), enough=enough)
        except Exception as error:  # noqa: BLE001 - other values may steer the model's code anywhere
            reraise_out_of_memory(error)
            return ExperimentResult(keys, None, watcher.replaced)
        return ExperimentResult(keys, store, watcher.replaced)

    def in_passing(self, watcher: Resampled | Rescaled, keys: frozenset[Any]) -> ExperimentResult | None:
        """The same with nobody watching the rest of the run; None where that may come to something else."""
        store, turns = self.store, self.store.turns
        wanted = {snapshot.place for snapshot in store.snapshots.values() if snapshot.op.key in keys}
        places = watcher.places | wanted
        if not all(place in turns for place in places):
            return None
        starts = [turns[place].event for place in watcher.places]
        last = max(turns[place].event for place in places)
        while _are_one_call(store, last, last + 1):  # its choices come after the values that it chooses
            last += 1
        if any(event <= last and not self._has_numbers(event) for event in store.reached(starts)):
            return None
        before = {place for place in self.right if place not in turns or turns[place].event <= last}
        lost = (*self._name, "lost")
        if not all(place in turns for place in before) or lost in self.session.experiments:
            return None  # nor where the run goes another way by what it reads
        promotion, values = Promotion(), Store(store.limit, shelf=store.shelf)
        made_from = store.made_from
        experiment = Experiment(
            watcher, {place: turns[place] for place in places | before}, wanted, values, self.traced.recorder.table,
            promotion, Patch(self.right), store.reached([e for s in starts for e in made_from.get(s, ())]),
        )  # fmt: skip
        self.traced.in_float64(promotion, under=lambda: experiment)
        if experiment.complete:
            return ExperimentResult(keys, values, watcher.replaced)
        self.session.experiments[lost] = True
        return None

    def fetch(self, one: Called, ahead: Iterable[Called] = ()) -> CopiedCall | None:
        """One call of the run as it is; None if it did not come again.

        Args:
            one: its op and event.
            ahead: those of others that will be asked for, which are kept in the same run.
        """
        calls = self.session.experiments.setdefault((*self._name, "calls"), {})
        if _call(one) not in calls:
            wanted = [other for other in (one, *ahead) if _call(other) not in calls]
            watcher = Patch(self.right) if self.right else None
            fetched = fetch_ops(self.traced, wanted, promotion=Promotion(), watcher=watcher, until_found=True)
            calls.update(zip(map(_call, wanted), fetched, strict=True))
        return calls[_call(one)]

    @property
    def _name(self) -> tuple[str, frozenset[Place]]:
        """The run, and where something was put right in it: whatever is, is run A's."""
        return self.side, frozenset(self.right)

    def _has_numbers(self, event: int) -> bool:
        snapshot = self.store.snapshots.get(event)
        return snapshot is not None and snapshot.numeric


def _call(called: Called) -> Hashable:
    op, event = called
    return op.key, event.call, event.nth


def _are_one_call(store: Store, event: int, other: int) -> bool:
    """Whether two events are outputs of one call."""
    if event not in store.ops or other not in store.ops:
        return False
    of = [
        (op.module, op.function, op.site.chain, record.call, record.nth)
        for op, record in (store.ops[event], store.ops[other])
    ]
    return of[0] == of[1]


def _at(store: Store, place: Place) -> Snapshot | None:
    return next((snapshot for snapshot in store.snapshots.values() if snapshot.place == place), None)
