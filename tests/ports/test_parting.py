"""What the reference makes in place of a value that only the port has."""

from __future__ import annotations

import pytest
import torch
from tests.ports.test_feeding import told
from torch import Tensor, nn


class Reference(nn.Module):
    """Two branches that meet in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.cos(self.left(x)), self.right(x)
        return self.last(torch.tanh(left) * torch.sigmoid(right))


class Port(nn.Module):
    """The same with other names."""

    def __init__(self, reference: Reference, fault: str) -> None:
        super().__init__()
        self.one, self.two, self.out = reference.left, reference.right, reference.last
        self.fault = fault

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.cos(self.one(x)), self.two(x)
        if self.fault == "both":
            return self.out(torch.maximum(one, two) * torch.sigmoid(two))
        return self.out(torch.tanh(one) * (torch.exp(two) if self.fault else torch.sigmoid(two)))


@pytest.mark.parametrize(
    ("fault", "at", "said"),
    [
        ("", None, ""),
        ("exp", "(model)/exp", "of the same, (model)/sigmoid"),
        ("both", "(model)/maximum", "the nearest of its own there is made by"),
    ],
)
def test_what_is_there_instead_is_made_of_the_same_or_is_said_to_be_the_nearest(
    fault: str, at: str | None, said: str
) -> None:
    """The reference makes nothing of both branches but their product, which comes later."""
    torch.manual_seed(0)
    reference = Reference()
    found, note = told(Port(reference, fault), reference)
    assert found == at
    assert said in note
