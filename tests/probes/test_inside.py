"""Operators of a library that decide inside are named where noise hides the gap, and no others."""

from __future__ import annotations

import pytest
import torch
from tests.corpus import CASES
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

import forkpoint as fp
from forkpoint.probes.inside import decides_inside
from forkpoint.report import to_text


def compared(name: str) -> fp.Result:
    a, b, how, patches = CASES[name].build()
    with patches:
        return fp.compare(a, b, **how)


def test_the_operator_is_named_with_the_step_that_was_measured():
    result = compared("49-operator-decides-inside")
    found = next(probe for probe in result.verdict.evidence if probe.name == "inside")
    assert found.outcome == "decides"
    assert found.figure is not None
    assert found.figure > 0.5
    assert found.text.startswith("decisions are taken inside mixers.0/corpus.two_ways (cases_remaining.py:")
    assert result.verdict.kind == "undetermined"
    assert found.text in result.verdict.summary
    assert "Put plain torch functions in that operator's place" in result.verdict.advice
    assert "在内部作出决策" in to_text(result, lang="zh")


def test_a_model_without_operators_is_not_said_to_have_one():
    result = compared("40-chaos")
    assert result.verdict.kind == "undetermined"
    assert "inside" not in [probe.name for probe in result.verdict.evidence]


@torch.library.custom_op("inside::smooth", mutates_args=())
def smooth(x: Tensor) -> Tensor:
    return x.tanh() * 100


@torch.library.custom_op("inside::random", mutates_args=())
def random(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


@torch.library.custom_op("inside::refusing", mutates_args=())
def refusing(x: Tensor) -> Tensor:
    if not bool((x == x.round(decimals=1)).all()):
        raise RuntimeError("only tenths")
    return x.clone()


@torch.library.custom_op("inside::steps", mutates_args=())
def steps(x: Tensor) -> Tensor:
    return (x >= x.flatten()[0].item()).to(x.dtype)


class Calling(Model):
    def mix(self, hidden: Tensor, **inputs: Tensor) -> Tensor:
        return self.called[0](hidden.round(decimals=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("operator", "named"), [(smooth, False), (random, False), (refusing, False), (steps, True)]
)
def test_only_a_step_counts(operator, named, dtype):
    model = Calling().to(dtype)
    model.called = (operator,)
    found = decides_inside(session(*pair(model, batch(ids()), batch(ids()))))
    assert (found is not None) is named
