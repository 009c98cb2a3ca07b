"""Gradients in float64: what is NaN or infinite in one run alone, and what is sparse."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.backward.models import (
    INPUTS,
    Product,
    Rounded,
    Sound,
    Tiny,
    compared,
    planted,
    statuses,
    tiny,
    with_product,
)
from torch import nn

import forkpoint as fp
from forkpoint.backward.exact import exact_gradient


class Hurt(Sound):
    """One element of whose gradient is not finite."""

    value = float("nan")

    @staticmethod
    def backward(ctx: Any, *gradients):
        hurt = gradients[0].clone()
        hurt[0, 0, 0] = Hurt.value
        return hurt


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_in_one_run_is_no_rounding(monkeypatch, value):
    monkeypatch.setattr(Hurt, "value", value)
    found = compared(planted(tiny(), "layers.1", Sound), planted(tiny(), "layers.1", Hurt))
    assert found.backward.rounding is False
    weight = next(one for one in found.backward.parameters if one.name == "embed.weight")
    assert (weight.status, weight.rounding, weight.relative, weight.cosine) == ("differs", False, None, None)
    rows = re.findall(r"embed.weight +NaN or infinite +more than rounding", found.to_text())
    assert len(rows) == 1 and "NaN" not in json.dumps(found.to_dict()["backward"]["parameters"])


def test_what_is_nan_in_both_runs_is_equal():
    hurt = planted(tiny(), "layers.1", Hurt)
    found = compared(hurt, hurt)
    assert found.backward.identical
    assert {one.relative for one in found.backward.parameters} == {0.0}
    found = compared(hurt, planted(hurt, "head", Rounded))
    assert found.first_backward is not None and found.backward.rounding is True


class HurtProduct(Product):
    """The gradient of the weight is NaN in one element."""

    @staticmethod
    def backward(ctx: Any, *gradients):
        of_x, of_weight = Product.backward(ctx, *gradients)
        of_weight[0, 0] = float("nan")
        return of_x, of_weight


@pytest.mark.parametrize("swapped", [False, True])
def test_nan_in_the_gradient_of_a_weight_alone(swapped):
    runs = with_product(Product), with_product(HurtProduct)
    found = compared(*(runs[::-1] if swapped else runs))
    assert found.backward.rounding is False and found.backward.origin is None


def test_overflow_is_not_called_rounding():
    def scaled(model, inputs):
        out = model(**inputs)
        return {"loss": out["loss"].float() * 1e7, "logits": out["logits"]}

    found = fp.compare(
        fp.Run(tiny().half(), INPUTS, call=scaled), fp.Run(tiny(), INPUTS, call=scaled), backward=True
    )
    assert found.verdict.kind is fp.VerdictKind.ROUNDING
    assert found.backward.rounding is None
    assert "which is no rounding" in found.backward.evidence[-1].text


def test_a_sparse_gradient_is_compared():
    def sparse() -> Tiny:
        model = tiny()
        model.embed.sparse = True
        return model

    found = compared(sparse(), sparse().bfloat16())
    assert statuses(found)["embed.weight"] == "differs" and found.backward.rounding is True
    assert compared(sparse(), tiny()).backward.identical


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_a_sum_that_lacks_a_share_is_not_taken_for_the_whole(share, parts):
    """As that of a weight which something reads in a way that is not seen."""
    weight = nn.Parameter(torch.zeros(200, dtype=torch.bfloat16))
    added = torch.randn(parts, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    narrow = torch.zeros(200, dtype=torch.bfloat16)
    for part in added * (1 + share):
        narrow += part.bfloat16()
    key = id(weight)
    backward = SimpleNamespace(
        gradients={key: narrow}, exact={key: added.sum(0)}, added=Counter({key: parts})
    )
    found, rounded = exact_gradient(backward, weight)
    assert torch.equal(found, narrow.double() if share else added.sum(0))
    assert (rounded == 0.0) == (not share)
