"""The repeat probe: the same run, made again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.explain.session import trace_faithfully
from forkpoint.probes.repeat import Repeat, repeat


def asked(model: Model, state: bool = True) -> tuple[Repeat, bool]:
    from tests.joined import session

    runs = pair(model, batch(ids()), batch(ids()))
    both = session(*runs)
    both.a, both.b = (trace_faithfully(run) for run in runs)
    before = torch.get_rng_state()
    found = repeat(both)
    return found, torch.equal(torch.get_rng_state(), before)


def test_a_run_that_repeats_itself():
    found, untouched = asked(Model())
    assert (found.steady, found.mechanism, found.result.outcome) == (True, None, "same")
    assert untouched


def test_a_run_that_draws_numbers():
    class Drawing(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return F.dropout(hidden, 0.5)

    found, untouched = asked(Drawing())
    assert (found.steady, found.mechanism) == (False, "random_state")
    assert untouched


def test_numbers_that_are_drawn_and_not_used_are_steady():
    class Idle(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            torch.rand(3)
            return hidden

    assert asked(Idle())[0].steady


def test_a_run_that_depends_on_more_than_the_random_state():
    class Outside(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            calls.append(1)
            return hidden + len(calls)

    calls: list[int] = []
    found = asked(Outside())[0]
    assert (found.steady, found.mechanism) == (False, None)
    assert found.result.text.endswith("; what changes between them was not found")


def test_an_op_that_alone_gives_other_bits():
    calls: list[int] = []

    @torch.library.custom_op("forkpoint_tests::unsteady", mutates_args=())
    def unsteady(x: Tensor) -> Tensor:
        calls.append(1)
        return x + len(calls)

    class Unsteady(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return unsteady(hidden)

    found, untouched = asked(Unsteady())
    assert (found.steady, found.mechanism) == (False, "atomics")
    assert "unsteady alone does so on equal inputs" in found.result.text
    assert untouched


def test_a_generator_of_somebody_else_is_no_kernel_that_adds_in_another_order():
    elsewhere = torch.Generator().manual_seed(0)

    class Drawing(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + torch.rand(hidden.shape, generator=elsewhere)

    found = asked(Drawing())[0]
    assert (found.steady, found.mechanism) == (False, None)


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_the_state_of_pythons_and_numpys_generators_is_random_state(draw: Callable[[], float]):
    class Drawing(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden * draw()

    found = asked(Drawing())[0]
    assert (found.steady, found.mechanism) == (False, "random_state")
    traced = trace_faithfully(pair(Drawing(), batch(ids()), batch(ids()))[0])
    assert traced.repeats
    assert traced.draws


def test_a_run_that_settles_is_not_taken_for_one_that_tracing_changes():
    class Settling(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            calls.append(1)
            return hidden + min(len(calls), 2)

    calls: list[int] = []
    traced = trace_faithfully(pair(Settling(), batch(ids()), batch(ids()))[0])
    assert (traced.functions, traced.repeats) == (True, False)


def test_a_run_that_tracing_changes_is_watched_by_its_modules():
    class Shy(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + torch._C._is_torch_function_mode_enabled()

    traced = trace_faithfully(pair(Shy(), batch(ids()), batch(ids()))[0])
    assert (traced.functions, traced.repeats) == (False, True)
