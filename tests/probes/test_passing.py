"""Values put in place as a run passes by: as in a run that is watched, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

from forkpoint.explain.session import Session
from forkpoint.probes.bench import Bench
from forkpoint.probes.meetings import meet_values, pair_values
from forkpoint.probes.precision import PlainRuns
from forkpoint.probes.resampled import LOUD, Resampled, Rescaled
from forkpoint.probes.watchers import Patched, Store, Values
from forkpoint.promotion import Promotion


class Twice(Model):
    """Two calls from one line, of which either may be another in run B."""

    by = (0.0, 0.0)
    drifts = False

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        for by in self.by:
            hidden = hidden.add(by).view(hidden.shape)
        if self.drifts and bool((hidden > 0.9).any()):
            hidden = hidden.add(0.25)
        return hidden.tanh()


def put_right(by: tuple[float, float], *, drifts: bool = False) -> tuple[Session, PlainRuns, Values]:
    """Run B's second sum with run A's values in place."""
    model = Twice()
    other = twin(model)
    other.by, model.drifts, other.drifts = by, drifts, drifts
    both = session(*pair(model, batch(ids()), batch(ids(), left=1), other))
    runs = PlainRuns(both)
    stores = Store(1 << 20), Store(1 << 20)
    for name, store in zip("ab", stores, strict=True):
        runs.run(name, store)
    kept_a, kept_b = ([k for k in store.snapshots.values() if k.op.function == "add"][1] for store in stores)
    assert kept_b.event.nth == 1
    return both, runs, {kept_b.place: [(kept_a.value, pair_values(both, kept_a, kept_b))]}


def watched(runs: PlainRuns, values: Values) -> Tensor:
    found = runs.patched(values, Store(0))
    assert found is not None
    return found[0]["logits"][0]


def test_it_comes_to_what_a_watched_run_does(monkeypatch):
    both, runs, values = put_right((0.0, 1.0))
    expected = watched(runs, values)
    monkeypatch.setattr(type(both.b), "again", None)  # a watched run can't be made any more
    found = runs.patched(values)
    assert found is not None
    assert torch.equal(found[0]["logits"][0], expected)
    exact = both.a.results[0]["logits"][0].double()
    assert torch.allclose(expected[:, 1:], exact, atol=1e-6)


def test_a_value_that_is_not_what_it_was_is_put_in_place_by_a_watched_run():
    _both, runs, values = put_right((0.0, 1.0))
    expected = watched(runs, values)
    assert runs.first is not None
    place = next(iter(values))
    turn = runs.first.turns[place]
    turn.snapshot.value.add_(1)  # as if another value had come at that turn
    assert runs._in_passing(values) is None
    assert torch.equal(runs.patched(values)[0]["logits"][0], expected)  # type: ignore[index]


def test_a_place_that_was_not_kept_is_put_right_by_a_watched_run():
    _both, runs, values = put_right((0.0, 1.0))
    runs.first = None
    assert runs._in_passing(values) is None
    assert runs.patched(values) is not None


@pytest.mark.parametrize("by", [(0.0, 0.0), (1.0, 0.0), (0.5, 0.5)])
def test_what_a_run_does_behind_it_is_its_own(by):
    _, runs, values = put_right(by, drifts=True)
    found = runs.patched(values)
    assert found is not None
    assert torch.equal(found[0]["logits"][0], watched(runs, values))


class Read(Model):
    """Every token gets the mean of all, after something else that only its subclasses do."""

    def first(self, hidden: Tensor) -> Tensor:
        return hidden

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        hidden = self.first(hidden * 2)
        return hidden - hidden.mean((0, 1), keepdim=True)


class ReadOut(Read):
    def first(self, hidden: Tensor) -> Tensor:
        return hidden / hidden.abs().max().item()


class Chosen(Read):
    def first(self, hidden: Tensor) -> Tensor:
        order = hidden.sum(2).argsort(1)
        return hidden.gather(1, order[..., None].expand(hidden.shape))


class Ranked(Read):
    """Its values come first of the call that chooses them."""

    def first(self, hidden: Tensor) -> Tensor:
        return hidden.topk(2, dim=1).values


def at_the_mean(model: Model) -> Bench:
    """Run B with padding, at what is made of all of its tokens."""
    both = session(*pair(model, batch(ids()), batch(ids(), left=2)))
    store = Store(1 << 20)
    both.b.again(promotion=Promotion(), watcher=store)
    name = "topk" if isinstance(model, Ranked) else "mean"
    at = next(event for event, kept in store.snapshots.items() if kept.op.function == name)
    doubled = next(event for event, kept in store.snapshots.items() if kept.op.function == "mul")
    return Bench(both, "b", both.b, store, at, frozenset({doubled}), False, np.zeros(0, dtype=np.int64))


def others(bench: Bench) -> list[Resampled | Rescaled]:
    """Experiments on what run A lacks, right before."""
    places = {bench.store.snapshots[event].place for event in bench.before}
    return [
        Resampled(places, bench.lacking),
        Resampled(places, bench.lacking, LOUD),
        Rescaled(places, 100.0, 0.5, bench.lacking, 0.25),
    ]


def test_an_experiment_in_passing_comes_to_what_a_watched_one_does():
    bench = at_the_mean(Read())
    key = frozenset({bench.store.snapshots[bench.root].op.key})
    for watcher in others(bench):
        passed = bench.experiments.in_passing(watcher.afresh(), key)
        assert passed is not None
        found = Store(1 << 20, lambda op: op.key in key)
        bench.traced.again(promotion=Promotion(), watcher=Patched(watcher, found))
        (mine,), (expected,) = passed.store.snapshots.values(), found.snapshots.values()  # type: ignore[union-attr]
        assert torch.equal(mine.value, expected.value)
        assert not torch.equal(mine.value, bench.store.snapshots[bench.root].value)
        assert (mine.place, passed.replaced) == (expected.place, watcher.replaced)
        assert mine.label == expected.label


@pytest.mark.parametrize("model", [Chosen(), Ranked()], ids=["by whole numbers", "in one call"])
def test_none_is_made_in_passing_where_tokens_are_chosen_by_what_changes(model, monkeypatch):
    bench = at_the_mean(model)
    key = frozenset({bench.store.snapshots[bench.root].op.key})
    monkeypatch.setattr(type(bench.traced), "in_float64", None)  # it is not even begun
    for watcher in others(bench):
        assert bench.experiments.in_passing(watcher, key) is None
        assert bench.again(watcher) is not None


def test_none_is_told_in_passing_where_python_reads_what_changes():
    bench = at_the_mean(ReadOut())
    key = frozenset({bench.store.snapshots[bench.root].op.key})
    watcher, *more = others(bench)
    assert bench.experiments.in_passing(watcher.afresh(), key) is None
    assert bench.again(watcher) is not None
    runs = []
    bench.traced.in_float64 = lambda *_, **__: runs.append(1)  # type: ignore[method-assign]
    for other in more:
        assert bench.experiments.in_passing(other, key) is None
    assert not runs  # once is enough


def test_a_value_that_is_read_after_the_last_one_matters_nothing():
    class Late(Read):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            hidden = super().mix(hidden)
            return hidden / hidden.abs().max().item()

    bench = at_the_mean(Late())
    key = frozenset({bench.store.snapshots[bench.root].op.key})
    assert all(bench.experiments.in_passing(watcher, key) is not None for watcher in others(bench))


@pytest.mark.parametrize("model", [Read(), ReadOut(), Chosen(), Ranked()])
def test_an_experiment_comes_to_what_a_run_that_is_watched_to_its_end_does(model):
    bench = at_the_mean(model)
    kept = bench.store.snapshots[bench.root]
    for watcher in others(bench):
        found = Store(1 << 20, lambda op: op.key == kept.op.key)
        bench.traced.again(promotion=Promotion(), watcher=Patched(watcher.afresh(), found))
        mine, expected = bench.again(watcher), next(iter(found.snapshots.values()))
        assert mine is not None
        assert torch.equal(mine.value, expected.value)
        assert mine.label == expected.label
        assert watcher.replaced


def test_values_that_another_pass_left_as_they_were_meet_as_they_did():
    both, runs, values = put_right((0.0, 1.0))
    stores = [Store(1 << 20) for _ in range(3)]
    runs.run("a", stores[0])
    runs.run("b", stores[1])
    runs.patched(values, stores[2])
    a, *passes = stores
    first = meet_values(both, a, passes[0], 1e-12)
    again = meet_values(both, a, passes[1], 1e-12, first)
    anew = meet_values(both, a, passes[1], 1e-12)
    told = [
        [(m.event_a, m.event_b, m.gap.max_abs, m.differs, m.differing) for m in met.every]
        for met in (again, anew, first)
    ]
    assert told[0] == told[1]
    assert told[0] != told[2]
    taken = {id(m.gap) for m in first.every} & {id(m.gap) for m in again.every}
    assert 0 < len(taken) < len(again.every)
    assert all(m.b is passes[1].snapshots[m.event_b] for m in again.every)
