"""A parameter that the other model computes: its rounding is told from another weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.plain import Model, batch, ids, pair
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import forkpoint as fp


def normed(seed: int = 0) -> Any:
    model = Model(seed)
    model.layers[0] = parametrizations.weight_norm(model.layers[0])
    return model


def kept(computes: Any, change: Any = lambda weight: weight) -> Model:
    """The same model, which keeps the weight that the other computes."""
    model = Model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "layers.0.weight":
                parameter.copy_(computes.get_parameter(name))
        norm = computes.layers[0].parametrizations.weight
        scale, direction = norm.original0.double(), norm.original1.double()
        exact = scale * direction / direction.norm(dim=1, keepdim=True)
        model.layers[0].weight.copy_(change(exact).to(model.layers[0].weight.dtype))
    return model


def next_to(exact: Tensor) -> Tensor:
    """Half of the elements one unit in the last place farther from zero."""
    weight = exact.float()
    up = torch.nextafter(weight, weight.sign() * torch.inf)
    return torch.where(torch.arange(weight.numel()).reshape(weight.shape) % 2 == 0, up, weight)


@pytest.mark.parametrize("computes_in_a", [True, False])
def test_a_weight_that_the_other_model_computes_may_be_rounded_otherwise(computes_in_a):
    models = normed(), kept(normed(), next_to)
    a, b = models if computes_in_a else models[::-1]
    result = fp.compare(*pair(a, batch(ids()), batch(ids()), b))
    verdict = result.verdict
    assert (verdict.kind, verdict.mechanism) == (fp.VerdictKind.ROUNDING, "low_precision"), str(result)
    found = next(probe for probe in verdict.evidence if probe.name == "computed")
    assert found.figure is not None and found.figure < 1e-14
    assert "layers.0.weight first" in found.text


@pytest.mark.parametrize("times", [1.001, 1 + 2.0**-18])
def test_what_is_farther_than_rounding_takes_it_is_another_weight(times):
    result = fp.compare(
        *pair(normed(), batch(ids()), batch(ids()), kept(normed(), lambda exact: exact * times))
    )
    assert result.verdict.kind is fp.VerdictKind.SEMANTIC, str(result)
    assert "computed" not in {probe.name for probe in result.verdict.evidence}


def test_what_differs_beside_such_a_weight_is_the_origin():
    class Other(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return F.layer_norm(hidden, hidden.shape[-1:], eps=self.eps)

    computes = normed()
    keeps = kept(computes, next_to)
    for model, eps in ((computes, 1e-5), (keeps, 1e-3)):
        model.__class__, model.eps = Other, eps
    result = fp.compare(*pair(computes, batch(ids()), batch(ids()), keeps))
    assert result.verdict.kind is fp.VerdictKind.SEMANTIC
    assert [origin.op for origin in result.origins] == ["(model)/layer_norm"]
    assert result.origins[0].closes == 1.0


def test_a_parameter_that_nothing_is_computed_for_stays_one():
    class More(Model):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Parameter(torch.full((13,), 1e-3))

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + self.more

    result = fp.compare(*pair(More(), batch(ids()), batch(ids()), Model()))
    assert result.verdict.kind is fp.VerdictKind.SEMANTIC
