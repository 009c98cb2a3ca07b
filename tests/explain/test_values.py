"""Values by the names that the source gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.plain import Model, batch, ids, pair
from torch import Tensor

import forkpoint as fp


class Named(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        scaled = hidden * 2
        for _ in range(2):
            scaled = scaled + 1
        return scaled


MODEL = Named()
TOKENS = ids()


@pytest.fixture(scope="module")
def result() -> fp.Result:
    return fp.compare(*pair(MODEL, batch(TOKENS), batch(TOKENS, left=1)), probes=False)


def hidden() -> Tensor:
    with torch.no_grad():
        return MODEL.layers[0](MODEL.embed(TOKENS)).tanh()


def test_a_variable_a_function_or_both(result):
    wanted = hidden() * 2
    for name in ("scaled", "mul", "scaled/mul"):
        assert torch.equal(result.value("", name), wanted)
    assert torch.equal(result.value("", "scaled/add", index=1), wanted + 1 + 1)
    assert torch.equal(result.value("", "scaled", index=-1), wanted + 1 + 1)


def test_what_goes_into_and_comes_out_of_a_module(result):
    with torch.no_grad():
        assert torch.equal(result.value("layers.0", "input"), MODEL.embed(TOKENS))
        assert torch.equal(result.value("layers.0", "input:input"), MODEL.embed(TOKENS))
        assert torch.equal(result.value("layers.0", "output"), MODEL.layers[0](MODEL.embed(TOKENS)))


def test_a_parameter_is_a_copy(result):
    weight = result.value("layers.0", "weight")
    assert torch.equal(weight, MODEL.layers[0].weight)
    weight.zero_()
    assert MODEL.layers[0].weight.any()


def test_the_other_run(result):
    assert result.value("", "scaled", run="b").shape == (2, 5, 13)


def test_messages(result):
    def message(**arguments: Any) -> str:
        with pytest.raises(fp.InputError) as raised:
            result.value(**{"module": "", "name": "scaled", **arguments})
        return str(raised.value)

    assert message(run="c") == "run='c'; expected 'a' or 'b'"
    assert message(module="layers.7") == (
        "no module 'layers.7' in the model; expected a path of model.named_modules()"
    )
    assert message(module="layers.0", name="absent") == (
        "no value named 'absent' in call 0 of module 'layers.0'; "
        "expected one of: hidden, hidden/linear, input:input, linear, output"
    )
    assert message(index=3) == "value 3 of 3 named 'scaled' in call 0 of module '(model)'; expected 0 to 2"
    assert message(call=1) == "call 1 of a run of 1; expected 0 to 0"
