"""A line that runs several times, where one run lets go of a value's memory before it is read: no pass meets another one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import forkpoint as fp


class Repeating(nn.Module):
    """Multiplies by one, two and so on in one line.

    Args:
        freed: after which of the multiplications its value's memory is let go of.
        factor: what the last product is multiplied by, too.
        times: how often it multiplies.
    """

    def __init__(self, freed: int | None = None, factor: float = 1.0, times: int = 3) -> None:
        super().__init__()
        self.freed, self.factor, self.times = freed, factor, times

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for k in range(self.times):
            product = x * (k + 1.0) * (self.factor if k == 2 else 1.0)
            total = total + product
            if k == self.freed:
                product.untyped_storage().resize_(0)
        return total


def compared(a: Repeating, b: Repeating) -> fp.Result:
    x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    return fp.compare(fp.Run(a, {"x": x}), fp.Run(b, {"x": x}), probes=False)


@pytest.mark.parametrize("freed", [0, 1, 2])
def test_passes_that_one_run_could_not_read_leave_the_others_in_their_places(freed: int):
    result = compared(Repeating(), Repeating(freed))
    assert result.identical
    assert result.first is None
    assert [row.op for row in result.ops if row.status == "differs"] == []
    [row] = [row for row in result.ops if "let go of" in row.reason]
    assert row.function == "mul"
    assert row.compared > 0


@pytest.mark.parametrize("freed", [0, 1])
def test_a_pass_that_differs_is_still_found(freed: int):
    result = compared(Repeating(), Repeating(freed, factor=1.5))
    assert result.first is not None
    assert result.first.function == "mul"
    assert result.first.value_b == pytest.approx(1.5 * result.first.value_a)


def test_nothing_is_said_of_passes_that_cannot_be_told_apart():
    """One run makes a pass more, and it is not known which: the first that is known to differ is what the model returns."""
    result = compared(Repeating(times=3), Repeating(0, times=2))
    assert result.first is not None
    assert result.first.function is None
    assert all(row.compared == 0 for row in result.ops if "let go of" in row.reason)
