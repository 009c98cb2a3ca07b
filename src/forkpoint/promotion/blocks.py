"""A large weight is cast and multiplied in blocks of rows: its float64 copy never exists as a whole."""

from __future__ import annotations

import torch

from forkpoint.promotion.dtypes import WIDE
from forkpoint.promotion.values import Values

_BLOCK = {"cpu": 1 << 20}
_BLOCK_ELSEWHERE = 1 << 26
"""Elements of a weight beyond which a linear layer casts and multiplies it in blocks of rows: on a CPU what its caches
hold, on a GPU what its memory can spare."""


def pays(weight: torch.Tensor) -> bool:
    """Whether a weight is one to multiply by in blocks."""
    return (
        weight.dtype in WIDE
        and weight.dim() == 2
        and weight.numel() > _block(weight)
        and weight.layout is torch.strided
    )


def linear(values: Values, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As ``torch.nn.functional.linear``, in float64. Call it within `hidden()`."""
    x = values.of(x)
    rows = max(1, _block(weight) // weight.shape[1])
    result = x.new_empty(*x.shape[:-1], weight.shape[0])
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows].to(x.dtype)
        result[..., start : start + rows] = torch.nn.functional.linear(x, part)
    return result if bias is None else result.add_(values.of(bias))


def _block(weight: torch.Tensor) -> int:
    return _BLOCK.get(weight.device.type, _BLOCK_ELSEWHERE)
