"""The replay probe: the first divergent op alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

from forkpoint.explain.locate import locate
from forkpoint.probes.replay import ReplayErrors, replay


def asked(model: Model, other: Model, b: Any = None) -> ReplayErrors:
    both = session(*pair(model, batch(ids()), b or batch(ids()), other))
    located = locate(both, lambda sample, position: None)
    assert located is not None
    return replay(located)


class Scaled(Model):
    factor = 1.0
    dtype = torch.float32

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return torch.mul(hidden, self.factor).to(self.dtype).float()


def test_an_op_that_rounds_once_is_within_half_a_unit():
    model = Scaled()
    other = twin(model)
    other.factor = 1.25
    found = asked(model, other)
    assert found.error_a == 0
    assert 0 < found.error_b <= 0.5
    assert found.other_call
    assert not found.other_kernel
    assert found.result.outcome == "rounding"
    assert found.result.text.startswith("alone, on its own inputs, it is off the exact result by 0 and 0.")


def test_a_narrow_output_is_measured_in_its_own_units():
    class Narrow(Model):
        by = 0.0

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            hidden = (hidden + 0.0).to(torch.bfloat16)
            with torch._C.DisableTorchFunction():
                factor = torch.full((13, 13), 0.3 + self.by, dtype=torch.bfloat16)
            return torch.matmul(hidden, factor).float()

    model = Narrow()
    other = twin(model)
    other.by = 0.1
    found = asked(model, other)
    assert found.error_a is not None
    assert found.error_a <= 1
    assert found.kernels_a
    assert found.kernels_a == found.kernels_b


def test_an_attention_with_a_mask_is_another_call():
    class Attending(Model):
        masked = False

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            heads = hidden[:, None]
            mask = torch.ones(4, 4).tril().bool() if self.masked else None
            return F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)[:, 0]

    model = Attending()
    other = twin(model)
    other.masked = True
    assert asked(model, other).other_call


def test_a_module_is_no_single_op():
    model = Model()
    other = twin(model)
    other.layers[0].register_forward_hook(lambda module, args, output: output + 1)
    found = asked(model, other)
    assert (found.error_a, found.error_b, found.kernels_a, found.result.outcome) == (
        None,
        None,
        (),
        "nothing",
    )
    assert found.result.text == "the runs part inside a module, so there is no single op to repeat"


@pytest.mark.parametrize("function", ["add_", "out"])
def test_an_op_that_writes_does_not_spoil_its_inputs(function):
    class Writing(Model):
        by = 0.125

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            if function == "out":
                return torch.add(hidden, self.by, out=torch.empty_like(hidden))
            return hidden.add_(self.by)

    model = Writing()
    other = twin(model)
    other.by = 0.375
    found = asked(model, other)
    assert found.error_a is None or found.error_a <= 0.5
    assert found.error_b is None or found.error_b <= 0.5


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_an_output_in_float8_is_measured_as_any_other(dtype: torch.dtype):
    class Cast(Model):
        to = torch.float16

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden.to(self.to).float()

    model = Cast()
    other = twin(model)
    other.to = dtype
    assert asked(model, other).result.name == "replay"
