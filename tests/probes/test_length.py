"""The length probe: how far two values are apart where both have elements."""

from __future__ import annotations

import pytest
import torch

from forkpoint.probes.length import changed


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64],
)
def test_values_of_every_dtype_are_measured(dtype):
    before = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    longer = torch.cat([before, torch.ones(2, 2).to(dtype)], 1)
    assert changed(before, longer) == 0.0
    longer[0, 0] = 1
    assert changed(before, longer) == 1.0


def test_both_parts_of_complex_numbers_count():
    before = torch.tensor([1 + 1j, 2 + 0j])
    assert changed(before, before + 3j) == 3.0


def test_rounding_and_other_numbers_of_dimensions_are_no_change():
    before = torch.ones(4, dtype=torch.float64)
    assert changed(before, before + 1e-15) == 0.0
    assert changed(before, before[None] + 1) == 0.0
    assert changed(before[:0], before) == 0.0
