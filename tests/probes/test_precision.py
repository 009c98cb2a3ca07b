"""The precision probe: what remains of the gap in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

import forkpoint as fp
from forkpoint.probes.inputs import inputs
from forkpoint.probes.precision import (
    NOISE_MARGIN,
    Precision,
    Rounding,
    largest_changes,
    measure_noise,
    precision,
)


class Summed(Model):
    """Adds up many numbers, in one order or the other."""

    reverse = False
    by = 0.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        parts = [hidden * float(i) * 0.01 for i in range(20)]
        total = parts.pop() * (1 + self.by)
        for part in reversed(parts) if self.reverse else parts:
            total = total + part
        return total


def asked(model: Model, other: Model) -> Precision:
    both = session(*pair(model, batch(ids()), batch(ids()), other))
    return precision(both, inputs(both).rounded)


def test_the_noise_of_complex_numbers_is_a_distance():
    z = torch.complex(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    moved = [{"z": (z + 2.0**-52, None), "n": (torch.tensor([1, 3]), None)}]
    exact = [{"z": (z, None), "n": (torch.tensor([1, 2]), None)}]
    assert largest_changes(exact, moved) == {"z": 2.0**-52, "n": 1.0}


def test_bits_that_rounding_changes_prove_nothing():
    """Read as integers, all numbers are others after a change of one ULP, and after any other."""
    model = Model()
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(4, 4)

    def bits(_: Model, inputs: dict[str, Any]) -> Tensor:
        return (layer(inputs["x"]) * inputs["gain"]).view(torch.int32)

    runs = [fp.Run(model, {"x": x, "gain": gain}, call=bits) for gain in (1.0, 1.5)]
    verdict = fp.compare(*runs).verdict
    assert verdict.kind == "undetermined"
    assert "integer results differ, and float64's own rounding changes as many" in verdict.summary


def test_another_order_of_a_sum_vanishes():
    model = Summed()
    other = twin(model)
    other.reverse = True
    found = asked(model, other)
    assert found.vanishes
    assert 0 <= found.gap < 1e-13
    assert found.beyond_noise(found.compared) <= 1
    assert found.refused == ()
    if found.gap:
        assert 0 < found.noise["logits"] < 1e-12
        assert found.result.text.startswith("in float64 the gap is ")


@pytest.mark.parametrize("by", [1e-2, 1e-6, 1e-10])
def test_another_function_remains_though_it_hides_in_float32(by):
    model = Summed()
    other = twin(model)
    other.by = by
    found = asked(model, other)
    assert not found.vanishes
    assert found.result.outcome == "remains"
    assert found.gap > NOISE_MARGIN * found.noise["logits"]


@pytest.mark.parametrize(("by", "runs"), [(0.0, 1), (1e-10, 2)])
def test_noise_is_measured_until_the_gap_is_within_it(by, runs, monkeypatch):
    def counted(*args: Any) -> dict[str, float]:
        seeds.append(args[-1])
        return measure_noise(*args)

    seeds: list[int] = []
    monkeypatch.setattr("forkpoint.probes.precision.measure_noise", counted)
    monkeypatch.setattr("forkpoint.probes.precision._FLOOR", 0.0)
    model = Summed()
    other = twin(model)
    other.reverse, other.by = not by, by
    found = asked(model, other)
    assert found.gap > 0
    assert (found.vanishes, seeds) == (not by, [*range(runs)])
    assert found.noise["logits"] == max(found.rounding.after(1)["logits"], found.rounding.after(2)["logits"])
    assert seeds == [0, 1]
    assert "float64's own rounding makes" in found.result.text


@pytest.mark.parametrize(("scale", "two_models", "runs"), [(1.0, False, 1), (1e-9, False, 2), (1.0, True, 2)])
def test_the_other_run_s_noise_is_not_measured_far_beyond_one_s(scale, two_models, runs):
    class Columns(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + scale * hidden.shape[1]

    model = Columns()
    both = session(*pair(model, batch(ids()), batch(ids(), right=2), twin(model) if two_models else None))
    exact = precision(both)
    assert not exact.vanishes
    assert len(exact.rounding.measurements) == runs
    assert exact.measured == exact.rounding.after(runs)


def test_rounding_is_the_largest_that_was_found():
    effects = [{"logits": 1.0, "loss": 0.5}, {"logits": 0.25, "hidden": 2.0}]
    rounding = Rounding(lambda run: effects[run])
    assert rounding.after(1) == effects[0]
    assert rounding.after(2) == {"logits": 1.0, "loss": 0.5, "hidden": 2.0}
    assert rounding.after(1) == effects[0]
    assert rounding.after(0) == {}


@pytest.fixture
def no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("noise was measured")

    monkeypatch.setattr("forkpoint.probes.precision.measure_noise", refuse)


@pytest.mark.usefixtures("no_measure")
def test_the_rounding_of_the_result_alone_needs_no_measure():
    model = Summed()
    other = twin(model)
    other.by = 4 * 2.0**-52
    found = asked(model, other)
    assert found.vanishes
    assert found.gap > 0
    assert "units in the last place of the largest value" in found.result.text


@pytest.mark.usefixtures("no_measure")
def test_the_same_function_leaves_nothing_and_needs_no_measure():
    found = asked(Summed(), Summed())
    assert (found.vanishes, found.gap) == (True, 0)
    assert found.result.text == "in float64 the results are the same, bit for bit"


def test_rounded_weights_are_made_the_same():
    model = Model()
    found = asked(model, twin(model).bfloat16())
    assert found.vanishes
    assert found.gap < 1e-13


def test_a_cast_in_the_model_is_promoted_too():
    class Cast(Summed):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return super().mix(hidden.to(torch.bfloat16)).float()

    model = Cast()
    other = twin(model)
    other.reverse = True
    assert asked(model, other).vanishes


def test_a_value_that_is_not_finite_remains():
    model = Summed()
    other = twin(model)
    other.by = math.inf
    assert not asked(model, other).vanishes
