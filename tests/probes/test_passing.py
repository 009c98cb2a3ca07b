"""Values put in place as a run passes by: as in a run that is watched, or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

from forkpoint.explain.session import Session
from forkpoint.probes.meetings import pair_values
from forkpoint.probes.passing import turns_of
from forkpoint.probes.precision import PlainRuns
from forkpoint.probes.watchers import Store, Values


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
    kept_a, kept_b = ([k for k in store.kept.values() if k.op.function == "add"][1] for store in stores)
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
    turn = turns_of(runs.first)[place]
    turn.kept.value.add_(1)  # as if another value had come at that turn
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
