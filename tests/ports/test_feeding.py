"""What a module is given: values that the reference has, too, in another module's place; zeros that are added to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import forkpoint as fp


def told(port: nn.Module, reference: nn.Module) -> tuple[str | None, str]:
    """The op at fault, and what is said of it."""
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))
    result = fp.compare(fp.Run(port, (x,)), fp.Run(reference, {"x": x}))
    return (None, "") if result.origin is None else (result.origin.op, result.origin.note)


class Parallel(nn.Module):
    """Two branches of one value, each behind a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_left, self.ln_right = nn.LayerNorm(8), nn.LayerNorm(8)
        self.left, self.right = nn.Linear(8, 12), nn.Linear(8, 12)
        self.back = nn.Linear(12, 8)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(self.ln_left(x)), self.right(self.ln_right(x))
        return x + self.back(torch.tanh(left) + torch.sigmoid(right))


class Port(nn.Module):
    """The same in other words; `other` swaps the norms' weights, `wired` has one norm for both branches."""

    def __init__(self, reference: Parallel, fault: str = "") -> None:
        super().__init__()
        norms = [reference.ln_left, reference.ln_right]
        self.norm_1, self.norm_2 = norms[::-1] if fault == "other" else norms
        self.fc_1, self.fc_2, self.proj = reference.left, reference.right, reference.back
        self.wired = fault == "wired"

    def forward(self, h: Tensor) -> Tensor:
        second = self.norm_2(h)
        first = second if self.wired else self.norm_1(h)
        inner = torch.tanh(self.fc_1(first))
        return h + self.proj(inner + torch.sigmoid(self.fc_2(second)))


@pytest.mark.parametrize(
    ("fault", "at"), [("", None), ("other", "norm_1/layer_norm"), ("wired", "fc_1/linear")]
)
def test_a_norm_with_anothers_weights_is_told_from_a_norm_that_is_called_in_anothers_place(
    fault: str, at: str
):
    reference = Parallel()
    found, note = told(Port(reference, fault), reference)
    assert found == at
    assert ("to the same weights it gives what ln_left/layer_norm" in note) is (fault == "other")


class Experts(nn.Module):
    """Each token goes to the expert of its first element's sign; rows are added to zeros, as `index_add` does."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.up = nn.Parameter(torch.randn(2, 10, 8, generator=generator))
        self.down = nn.Parameter(torch.randn(2, 8, 10, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 8)
        made = torch.zeros_like(rows)
        for expert in range(2):
            at = torch.where((rows[:, 0] > 0) == bool(expert))[0]
            inner = F.silu(F.linear(rows[at], self.up[expert]))
            made.index_add_(0, at, F.linear(inner, self.down[expert]))
        return x + made.reshape(x.shape)


class ExpertsOneByOne(nn.Module):
    """A port that has a module for each expert, and writes where it has read."""

    def __init__(self, reference: Experts, *, swapped: bool = False, fill: str = "zeros_like") -> None:
        super().__init__()
        self.first, self.second = (nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2)) for _ in "ud")
        self.fill = fill
        for e in range(2):
            down = reference.down[1 - e if swapped else e]
            self.first[e].weight = nn.Parameter(reference.up[e].detach().clone())
            self.second[e].weight = nn.Parameter(down.detach().clone())

    def forward(self, h: Tensor) -> Tensor:
        y: Any = h.flatten(0, 1)
        out = torch.zeros_like(y) if self.fill == "zeros_like" else y.new_zeros(2, *y.shape).sum(0)
        for e in range(2):
            which = torch.where((y[:, 0] > 0) == bool(e))[0]
            out[which] += self.second[e](F.silu(self.first[e](y[which])))
        return h + out.view_as(h)


@pytest.mark.parametrize("fill", ["zeros_like", "new_zeros"])
def test_zeros_that_are_added_to_are_not_at_fault(fill: str):
    reference = Experts()
    assert told(ExpertsOneByOne(reference, fill=fill), reference)[0] is None
    found = told(ExpertsOneByOne(reference, swapped=True, fill=fill), reference)[0]
    assert found in ("second.0/linear", "second.1/linear")
