"""What counts as a mask, whose numbers are no positions: `python -m tests.test_missed_bugs --seed 13` has the first token's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from forkpoint.probes.positions import _is_mask


@pytest.mark.parametrize(
    ("value", "is_mask"),
    [
        (torch.tensor([[1, 1, 0]]), True),
        (torch.tensor([[1.0, 0.0]]), True),
        (torch.tensor([[True, True]]), True),
        (torch.tensor([[0], [0]]), False),
        (torch.tensor([[1], [1]]), False),
        (torch.tensor([[0, 1, 2]]), False),
        (torch.tensor([]), False),
        (torch.tensor([1j, 0]), False),
    ],
)
def test_a_mask_tells_some_from_others(value: Tensor, is_mask: bool) -> None:
    assert _is_mask(value) is is_mask
