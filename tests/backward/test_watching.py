"""What the gradient of a value is made by, where not all that reads it can be seen."""

from __future__ import annotations

from typing import Any

import torch
from tests.backward.models import Sound, Wrong, compared, tiny
from torch import nn


class Kernel(torch.autograd.Function):
    """A kernel in another language: no call of torch is seen in it."""

    @staticmethod
    def forward(ctx: Any, x):
        with torch._C.DisableTorchFunction():
            return x * 2.0

    @staticmethod
    def backward(ctx: Any, *gradients):
        return gradients[0] * 2.0


class WrongKernel(Kernel):
    @staticmethod
    def backward(ctx: Any, *gradients):
        return gradients[0] * 2.1


def beside(kind) -> nn.Module:
    """A layer's output and what a kernel makes of it, added up."""
    model = tiny()
    layer = model.layers[1]
    forward = layer.forward

    def both(x):
        y = forward(x)
        return y + kind.apply(y)

    layer.forward = both
    return model


def test_a_kernel_that_is_not_seen_is_not_blamed_on_what_stands_beside_it():
    found = compared(beside(Kernel), beside(WrongKernel))
    first = found.first_backward
    assert first.op == "layers.1/transpose"
    made = {given.name.split(" ")[0]: given.status for given in first.inputs}
    assert made == {
        "layers.1/add": "equal", "KernelBackward": "not compared", "WrongKernelBackward": "not compared",
    }  # fmt: skip
    assert "the runs part in the backward of this op" not in found.to_text()
    assert compared(beside(Kernel), beside(Kernel)).backward.identical
    seen = compared(beside(Sound), beside(Wrong))
    assert {given.name.split(" ")[0] for given in seen.first_backward.inputs} == {
        "layers.1/add",
        "layers.1/mul",
    }
