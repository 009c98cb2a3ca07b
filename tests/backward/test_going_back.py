"""The backward pass of a run: which loss it begins with, and the gradients of parameters in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import forkpoint as fp
from forkpoint.backward.going_back import GoingBack, loss_of
from forkpoint.promotion import Promotion


class Tied(nn.Module):
    """Looks rows of its weight up, multiplies by it, by a part of it and by its transpose."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 4))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, ids):
        x = nn.functional.embedding(ids, self.weight)
        scores = nn.functional.linear(x, self.weight)
        half = x @ self.weight[:3].t()
        return {
            "loss": scores.tanh().sum() + (half @ self.weight.reshape(-1)[:12].view(3, 4)).square().mean()
        }


def gone_back(model, inputs, promotion=None) -> GoingBack:
    run = fp.Run(model, inputs)
    backward = GoingBack(run, "A", promotion)
    run.execute(backward=backward, around=lambda: promotion or torch.enable_grad())
    return backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_in_float64_are_those_of_the_model_in_float64(dtype):
    model, ids = Tied().to(dtype), torch.tensor([[0, 3, 3, 5]])
    backward = gone_back(model, {"ids": ids}, Promotion())
    double = copy.deepcopy(model).double()
    double(ids)["loss"].backward()
    exact = backward.exact[id(model.weight)]
    assert torch.allclose(exact, double.weight.grad, rtol=1e-12, atol=1e-12)
    assert backward.gradients[id(model.unused)] is None and id(model.unused) not in backward.exact
    assert model.weight.grad is None


def test_of_several_calls_gradients_add_up():
    model, ids = Tied(), torch.tensor([[0, 3, 3, 5]])
    backward = gone_back(model, [{"ids": ids}, {"ids": ids}], Promotion())
    once = gone_back(model, {"ids": ids}, Promotion())
    key = id(model.weight)
    assert torch.allclose(backward.exact[key], 2 * once.exact[key], rtol=1e-12)
    assert backward.losses == once.losses * 2


ONE, OTHER, LOGITS = torch.tensor(1.0), torch.tensor(2.0), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("output", "inputs", "loss"),
    [
        ({"logits": LOGITS, "loss": ONE}, {}, ONE),
        ({"logits": LOGITS, "aux_loss": ONE}, {}, None),
        ({"parts": {"loss": ONE}, "other": OTHER}, {}, ONE),
        ((ONE, LOGITS), {"labels": LOGITS}, ONE),
        ((ONE, LOGITS), {}, None),
        ((LOGITS, ONE), {"labels": LOGITS}, None),
        (ONE, {}, ONE),
        (LOGITS, {}, None),
        ({"loss": torch.zeros(4), "logits": LOGITS}, {}, None),
    ],
)
def test_which_number_is_the_loss(output, inputs, loss):
    assert loss_of(output, inputs) is loss
