"""Products of float32 that are summed in float64: one order, no larger an error, gradients, and bounded room."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from forkpoint.invariance import plans, wide
from forkpoint.invariance.plans import Sums

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(200, 96, generator=GENERATOR)
ROWS = torch.randn(50, 96, generator=GENERATOR)
BIAS = torch.randn(200, generator=GENERATOR)


def transposed(rows, weight, bias):
    return rows @ weight if bias is None else torch.addmm(bias, rows, weight)


@pytest.mark.parametrize("bias", [None, BIAS])
@pytest.mark.parametrize("inner", [0, 1])
@pytest.mark.parametrize("room", [1 << 26, 1])
def test_the_result_is_rounded_once_whatever_the_room(monkeypatch, inner, bias, room):
    monkeypatch.setattr(wide, "_ROOM", room)
    parts: list[int] = []

    def whole(rows, weight, added):
        assert rows.dtype is weight.dtype is torch.float64 and (added is None) == (bias is None)
        parts.append(weight.shape[1 - inner])
        return (F.linear if inner else transposed)(rows, weight, added)

    made = wide.summed(whole, inner)(ROWS, WEIGHT if inner else WEIGHT.t().contiguous(), bias)
    assert parts == ([200] if room > 1 else [64, 64, 64, 8])
    exact = F.linear(ROWS.double(), WEIGHT.double(), None if bias is None else bias.double())
    assert made.dtype is torch.float32
    assert (made - exact).abs().max() <= 0.5001 * torch.finfo(torch.float32).eps * exact.abs().max()
    stock = F.linear(ROWS, WEIGHT, bias).double()
    assert (made - exact).pow(2).mean() <= (stock - exact).pow(2).mean()


@pytest.mark.parametrize("inner", [0, 1])
@pytest.mark.parametrize("bias", [None, BIAS, BIAS[None]])
def test_gradients_are_those_of_the_product(inner, bias):
    whole = F.linear if inner else transposed
    tensors = [ROWS, WEIGHT if inner else WEIGHT.t().contiguous(), *([] if bias is None else [bias])]
    grads = []
    for product in (whole, wide.summed(whole, inner)):
        given = [one.clone().requires_grad_() for one in tensors]
        made = product(given[0], given[1], given[2] if len(given) > 2 else None)
        grads.append(torch.autograd.grad(made.pow(2).sum(), given))
    for one, other in zip(*grads, strict=True):
        assert one.dtype is torch.float32 and (one - other).abs().max() <= 1e-5 * one.abs().max()


def test_a_trial_tells_two_orders_of_float64_apart(monkeypatch):
    monkeypatch.setattr(plans, "_plans", {})

    def whole(rows, weight, bias):
        turned = len(rows) < 16
        return F.linear(rows.flip(1), weight.flip(1), bias) if turned else F.linear(rows, weight, bias)

    sums = Sums("wide", wide.summed(whole, 1), partial(plans.cancelling, 1))
    every = sums.plan(ROWS, WEIGHT, None)(ROWS, WEIGHT, None)
    for count in (1, 2, 5, 15, 16, 40):
        rows = ROWS[:count].clone()
        assert torch.equal(sums.plan(rows, WEIGHT, None)(rows, WEIGHT, None), every[:count])
        assert sums.computed(count) == max(count, 16)


def test_only_float32_on_a_gpu_that_is_quick_in_float64_is_summed_so():
    assert not wide.serves(ROWS)
    assert wide.is_quick((9, 0)) and not wide.is_quick((8, 6))
