"""Models that work, and fail where single functions are looked at, are followed by their modules."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.trust.wrapping import Between
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

import forkpoint as fp


def no_modes(y: Tensor) -> Tensor:
    if _get_current_function_mode_stack():
        raise ValueError("deliberate")
    return y * 2


def nested(y: Tensor) -> Tensor:
    return torch.nested.to_padded_tensor(torch.nested.nested_tensor(list(y)) * 2, 0.0)


def quantised(y: Tensor) -> Tensor:
    return torch.quantize_per_tensor(y, 0.1, 0, torch.qint8).dequantize() * 1.0


def conditional(y: Tensor) -> Tensor:
    return torch.cond(y.sum() > 0, lambda a: a * 2, lambda a: a * 3, (y,))


def unwatched(y: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        z = torch.relu(y) + 1
        z.mul_(2)
    with torch._C.DisableTorchFunctionSubclass():
        return z * 3 + y


def compared(does: Callable[[Tensor], Tensor], *, longer: int = 0, by_length: float = 0.0) -> fp.Result:
    """A run against itself, or against one that is longer by some columns of padding."""
    x = torch.randn(1, 4 + longer, 8, generator=torch.Generator().manual_seed(0))
    model = Between(does, by_length=by_length)
    return fp.compare(
        *(
            fp.Run(model, {"x": x[:, :n]}, layout=fp.Layout.from_mask((torch.arange(n) < 4).long()[None]))
            for n in (4, 4 + longer)
        )
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("does", [no_modes, nested, pytest.param(conditional, marks=pytest.mark.slow)])
def test_only_modules_are_watched_and_it_is_said(does: Callable[[Tensor], Tensor]):
    result = compared(does)
    assert result.identical
    assert any("only its modules were watched" in note for note in result.a.notes)
    assert {row.op for row in result.ops} >= {"first/output", "last/output"}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_quantised_values_are_left_out():
    result = compared(quantised)
    assert result.identical
    assert "a quantized tensor has no plain values" in [left.reason for left in result.not_compared]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("does", [no_modes, nested])
def test_a_model_that_refuses_experiments_proves_nothing(does: Callable[[Tensor], Tensor]):
    result = compared(does, longer=3, by_length=0.25)
    assert result.verdict.kind == "undetermined"
    assert "an experiment ended in an error, where the runs themselves end well: " in result.verdict.summary
    assert str(result)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("does", [no_modes, nested, quantised])
def test_another_number_in_a_model_without_float64_is_not_called_rounding(does: Callable[[Tensor], Tensor]):
    assert compared(does, longer=3, by_length=0.25).verdict.kind not in ("rounding", "identical")


def test_what_modes_are_switched_off_for_is_seen_where_it_is_used():
    assert compared(unwatched).identical
    result = compared(unwatched, longer=3, by_length=0.25)
    assert result.verdict.kind == "semantic"
    assert result.first is not None
    assert result.first.op == "(model)/mul"


@pytest.mark.parametrize("where", [torch.device, torch.set_default_device])
def test_a_default_device_that_has_no_values(where: Callable[[str], Any]):
    """What forkpoint makes for itself has values wherever the user's tensors are made."""
    try:
        with where("meta") or nullcontext():
            x = torch.randn(1, 4, 8, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
            model = Between(torch.relu, by_length=0.25).to_empty(device="cpu")
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(torch.linspace(-1, 1, weight.numel(), device="cpu").reshape(weight.shape))
            masks = [torch.tensor([[1] * 4 + [0] * n], device="cpu") for n in (0, 3)]
            layouts = [fp.Layout.from_mask(mask) for mask in masks]
            runs = [
                fp.Run(model, {"x": torch.cat([x, x[:, : n - 4]], 1)}, layout=layout)
                for n, layout in zip((4, 7), layouts, strict=True)
            ]
            assert fp.compare(runs[0], runs[0]).identical
            result = fp.compare(*runs)
    finally:
        torch.set_default_device(None)
    assert result.verdict.kind == "semantic"
    assert result.first is not None
    assert result.first.op == "(model)/mul"
