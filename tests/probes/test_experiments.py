"""Experiments on a later origin: what was put right before it stays so, and with nothing changed nothing moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.probes.bench import Bench, benches
from forkpoint.probes.coupling import coupling
from forkpoint.probes.experiments import nothing_changed
from forkpoint.probes.length import with_columns
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import precision
from forkpoint.probes.resampled import DRAWN


class Twice(Model):
    """Takes the mean of a row away, padding and all, and later does something else with its columns."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        hidden = hidden - hidden.mean(1, keepdim=True)
        return self.later((2 * hidden).tanh())

    def later(self, hidden: Tensor) -> Tensor:
        return hidden + hidden.roll(1, 1)


class Alone(Twice):
    """What it does later depends on the number of columns, and couples no tokens."""

    def later(self, hidden: Tensor) -> Tensor:
        return hidden * hidden.shape[1]


class Steered(Twice):
    """Python reads what is put right, so that no run of it can be made in passing."""

    def later(self, hidden: Tensor) -> Tensor:
        return super().later(hidden if float(hidden.abs().max()) < 9 else hidden + 1)


def at_the_second(model: Model) -> Bench:
    """Run B at the second origin."""
    both = session(*pair(model, batch(ids()), batch(ids(), right=2)))
    found = origin(both, precision(both))
    assert found is not None
    assert not found.right
    later = next(part for part in found.others if part.right)
    return next(benches(both, later))


@pytest.mark.parametrize("model", [Twice(), Alone(), Steered()], ids=["leak", "sizes", "read out"])
def test_the_control_moves_nothing_at_a_later_origin(model):
    bench = at_the_second(model)
    before, after = bench.store.snapshots[bench.root], bench.again(nothing_changed())
    assert after is not None
    assert torch.equal(before.value, after.value)
    assert bench.repeats


def test_the_run_as_it_is_moves_with_nothing_changed():
    bench = at_the_second(Twice())
    as_it_is = replace(bench, right={})
    before, after = as_it_is.store.snapshots[bench.root], as_it_is.again(nothing_changed())
    assert after is not None
    assert as_it_is.compare(before, after).numbers
    assert not as_it_is.repeats
    assert as_it_is.move(as_it_is.lacking) is None
    moved = bench.move(bench.lacking)
    assert moved is not None
    assert moved.numbers


@pytest.mark.parametrize("model", [Twice(), Steered()], ids=["in passing", "watched"])
def test_an_experiment_moves_what_it_changes_and_nothing_else(model):
    bench = at_the_second(model)
    moved = bench.move(bench.lacking, DRAWN)
    assert moved is not None
    of = bench.session.shared.coordinate
    assert {position for _, position in map(of, moved.numbers)} == {
        0
    }  # the last column is rolled to the first


def test_a_later_origin_that_couples_nothing_shows_no_coupling():
    both = session(*pair(Alone(), batch(ids()), batch(ids(), right=2)))
    found = origin(both, precision(both))
    assert found is not None
    assert coupling(both, found)
    for later in found.others:
        assert not coupling(both, later)


def test_longer_rows_tell_nothing_where_an_earlier_origin_comes_in():
    bench = at_the_second(Twice())
    assert with_columns(bench, 8, real=True) is None
    assert with_columns(replace(bench, earlier_origins=frozenset()), 8, real=True) is not None
