"""What rounding of attention is proportional to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from forkpoint.engines.forced import _size_of_attention

HALF_ULP = 2.0**-24


def heads(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Four heads of queries and two of keys and values, with large scores."""
    generator = torch.Generator().manual_seed(seed)
    query = 4 * torch.randn(1, 4, 12, 16, generator=generator)
    key = 4 * torch.randn(1, 2, 12, 16, generator=generator)
    return query, key, torch.randn(1, 2, 12, 16, generator=generator)


def in_another_order(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same attention, whose sums go over features and keys from the last to the first, one by one."""
    key, value = (x.repeat_interleave(2, 1) for x in (key, value))
    scores = torch.zeros(1, 4, 12, 12, dtype=query.dtype)
    for i in reversed(range(16)):
        scores = scores + query[..., i, None] * key[..., None, :, i]
    shares = (scores * 16**-0.5 + mask).softmax(-1)
    found = torch.zeros_like(query)
    for i in reversed(range(12)):
        found = found + shares[..., i, None] * value[..., None, i, :]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_rounding_stays_within_a_few_units_and_another_scale_does_not(seed: int) -> None:
    query, key, value = heads(seed)
    mask = torch.zeros(12, 12).masked_fill(~torch.ones(12, 12, dtype=torch.bool).tril(), -torch.inf)
    unit = _size_of_attention(query, key, value, mask) * HALF_ULP
    assert unit.shape == (12,)
    truth = in_another_order(query.double(), key.double(), value.double(), mask.double())

    def units(made: Tensor) -> Tensor:
        return (made.double() - truth).abs().amax((0, 1, 3)) / unit

    plain = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    for made in (plain, in_another_order(query, key, value, mask)):
        assert units(made).max() < 2
    other = F.scaled_dot_product_attention(query, key, value, mask, scale=0.2525, enable_gqa=True)
    assert units(other).max() > 64


def test_masks_of_either_kind_and_a_causal_one_mean_the_same() -> None:
    query, key, value = heads(0)
    kept = torch.ones(12, 12, dtype=torch.bool).tril()
    bias = torch.zeros(12, 12).masked_fill(~kept, -torch.inf)
    found = [
        _size_of_attention(query, key, value, kept),
        _size_of_attention(query, key, value, bias),
        _size_of_attention(query, key, value, is_causal=True),
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
