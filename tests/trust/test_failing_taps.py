"""Models that work, and fail where single functions are looked at, are followed by their modules."""

from __future__ import annotations

from collections.abc import Callable

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


def compared(does: Callable[[Tensor], Tensor]) -> fp.Result:
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    layout = fp.Layout.from_mask(torch.ones(1, 4, dtype=torch.long))
    model = Between(does)
    return fp.compare(*(fp.Run(model, {"x": x}, layout=layout) for _ in range(2)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("does", [no_modes, nested])
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
