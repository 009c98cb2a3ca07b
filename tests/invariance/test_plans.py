"""Trials of matrix products: they find an order that depends on the number of rows, in every dtype."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import forkpoint as fp
from forkpoint.invariance import plans
from forkpoint.invariance.plans import Sums

WEIGHT = torch.randn(24, 40)


def backwards(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same sums, in the opposite order."""
    return F.linear(rows.flip(1), weight.flip(1), bias)


@pytest.fixture(autouse=True)
def _no_plans(monkeypatch):
    monkeypatch.setattr(plans, "_plans", {})


def product(whole, rows: Tensor) -> Tensor:
    sums = Sums("a test", whole, partial(plans.cancelling, 1))
    weight = WEIGHT.to(rows.dtype)
    return sums.plan(rows, weight, None)(rows, weight, None)


def planned(rows: int) -> int:
    return plans._plans["a test", rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_in_another_order_are_padded(dtype):
    def whole(rows, weight, bias):
        return (backwards if len(rows) < 16 else F.linear)(rows, weight, bias)

    rows = torch.randn(100, 40).to(dtype)
    every = product(whole, rows)
    for count in (1, 2, 5, 15, 16, 40):
        assert torch.equal(product(whole, rows[:count]), every[:count])
        assert planned(count) == max(count, 16)


def test_an_order_that_many_rows_have_is_avoided():
    def whole(rows, weight, bias):
        return (backwards if len(rows) > 70 else F.linear)(rows, weight, bias)

    rows = torch.randn(100, 40)
    assert torch.equal(product(whole, rows)[:3], product(whole, rows[:3]))
    assert planned(100) == 0


def test_a_row_that_depends_on_its_place_is_refused():
    def whole(rows, weight, bias):
        return torch.cat((F.linear(rows[:5], weight, bias), backwards(rows[5:], weight, bias)))

    with pytest.raises(fp.InvarianceError, match="where a row stands"):
        product(whole, torch.randn(9, 40))


def test_what_only_the_real_rows_show_counts():
    def whole(rows, weight, bias):
        made = F.linear(rows, weight, bias)
        return made + 1 if len(rows) == 3 and (rows == 7).all() else made

    rows = torch.full((4, 40), 7.0)
    assert torch.equal(product(whole, rows[:3]), product(whole, rows)[:3])
    assert planned(3) != 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cancelling_products_tell_orders_apart(dtype):
    rows, weight = plans.cancelling(1, torch.empty(6, 40, dtype=dtype), WEIGHT.to(dtype), 0)
    exact = rows.double() @ weight.double().t()
    assert exact.abs().max() < 1e-10
    one = F.linear(rows.float(), weight.float())
    other = backwards(rows.float(), weight.float(), None)
    assert (one != other).float().mean() > 0.8


def test_functions_called_by_hand_are_products_too():
    model = torch.nn.Linear(40, 24).eval()
    rows = torch.randn(50, 40)
    exact = rows.double() @ model.weight.double().t()
    with torch.no_grad(), fp.invariant(model):
        for call in (
            lambda x: F.linear(x, model.weight),
            lambda x: x @ model.weight.t(),
            lambda x: torch.addmm(model.bias, x, model.weight.t()),
            lambda x: (model.weight @ x.t()).t(),
            lambda x: torch.einsum("tk,nk->tn", x, model.weight),
            lambda x: (x @ model.weight[0])[:, None],
            lambda x: torch.bmm(x[None], model.weight.t()[None])[0],
        ):
            whole = call(rows)
            assert torch.allclose(whole.double(), exact[:, : whole.shape[1]], atol=1)
            for count in (1, 2, 3, 5, 33):
                assert torch.equal(call(rows[:count]), whole[:count])


def test_gradients_of_the_rows_pass():
    model = torch.nn.Linear(40, 24).eval()
    rows = torch.randn(2, 40, requires_grad=True)
    with fp.invariant(model):
        made = model(rows).sum(-1)
    made.sum().backward()
    assert rows.grad is not None and torch.allclose(rows.grad, model.weight.sum(0).expand(2, -1), atol=1e-5)


def test_a_linear_of_tokens_with_tokens_is_refused():
    model = torch.nn.Linear(40, 24).eval()
    with torch.no_grad(), fp.invariant(model):
        assert F.linear(torch.randn(3, 40).double(), model.weight.double()).shape == (3, 24)
        with pytest.raises(fp.InvarianceError, match=r"linear.*both its factors"):
            F.linear(torch.randn(3, 40), torch.randn(7, 40))


def test_with_a_reference_of_one_kernel_a_trial_waits_for_another_call():
    calls: list[str] = []

    def whole(rows, weight, bias):
        calls.append("whole")
        return F.linear(rows, weight, bias)

    def reference(rows, weight, bias):
        calls.append("reference")
        return F.linear(rows, weight, bias)

    sums = Sums("another test", whole, partial(plans.cancelling, 1), reference)
    rows = torch.randn(5, 40)
    for _ in range(3):  # several layers of one call
        sums.plan(rows, WEIGHT, None)(rows, WEIGHT, None)
    assert calls == ["reference"] * 3 and sums.computed(5) is None
    plans.begin()
    sums.plan(rows, WEIGHT, None)
    assert "whole" in calls and sums.computed(5) == 5


@pytest.mark.parametrize("bias", ["strided", "one", "shifted", "row"])
def test_a_bias_of_any_form_is_added_alike_for_any_rows(bias):
    model = torch.nn.Linear(40, 24).eval()
    room = torch.randn(100)
    added = {"strided": room[::2][:24], "one": room[:1], "shifted": room[3:27], "row": room[None, :24]}[bias]
    rows = torch.randn(50, 40)
    exact = F.linear(rows.double(), model.weight.double(), added.double())
    with torch.no_grad(), fp.invariant(model):
        for call in (
            lambda x: F.linear(x, model.weight, added),
            lambda x: torch.addmm(added, x, model.weight.t()),
        ):
            whole = call(rows)
            assert torch.allclose(whole.double(), exact, atol=1e-5)
            for count in (1, 5, 5, 33):
                assert torch.equal(call(rows[:count]), whole[:count])
