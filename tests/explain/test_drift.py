"""How the gap grows from layer to layer."""

from __future__ import annotations

from typing import Any

import pytest
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.explain.drift import layer_paths


def test_layers_are_the_entries_of_the_outermost_lists_of_like_modules():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
            self.layers = nn.ModuleList([Block(), Block()])
            self.single = nn.ModuleList([Block()])

    assert layer_paths(Whole()) == ["layers.0", "layers.1", "single.0.experts.0", "single.0.experts.1"]
    assert layer_paths(None) == []
    assert layer_paths(nn.Linear(2, 2)) == []


class Faulty(Model):
    by = 0.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        hidden = hidden.clone()
        hidden[1, -1, 3] += self.by
        return hidden


def test_the_gap_of_each_layer_per_token():
    model = Faulty()
    other = twin(model)
    other.by = 1.0
    tokens = ids()
    result = fp.compare(*pair(model, batch(tokens), batch(tokens, left=1), other), probes=False)
    assert [row.module for row in result.drift] == ["layers.0", "layers.1", "logits"]
    first, second, logits = result.drift
    assert first.max_abs == 0
    assert len(first.per_token) == 8
    assert second.max_abs > 0
    assert {(s, p) for s, p, gap in second.per_token if gap} == {(1, 3)}
    beyond_rounding = {(s, p) for s, p, gap in logits.per_token if gap > 1e-5}
    assert beyond_rounding == {(1, 3)}
    assert max(gap for *_, gap in second.per_token) == second.max_abs
    weight = model.layers[1].weight.detach()[:, 3]
    assert second.max_abs == pytest.approx(float(weight.abs().max()), rel=1e-4)


def test_identical_results_have_no_drift():
    assert fp.compare(*pair(Model(), batch(ids()), batch(ids())), probes=False).drift == ()
