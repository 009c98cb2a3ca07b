"""64-bit digests of slices of tensors: one number per token instead of the token's values.

>>> import torch
>>> x = torch.arange(12.0).reshape(1, 3, 4)  # [B, T, H]
>>> a, b = rows(x, (0, 1)), rows(x.flip(1), (0, 1))
>>> bool((a == b.flip(0)).all()), bool((a == b).all())
(True, False)

`definition` says what a digest is; the other modules compute the same bits faster. NaN equals NaN and -0.0
equals 0.0 here. Which implementation serves a device (numba on the CPU, Triton on CUDA, plain torch
elsewhere and for whatever the others refuse) is settled here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from forkpoint.capture.digest.backend import implementation, prepare
from forkpoint.capture.digest.batch import (
    DevicePlan,
    DigestBatch,
    Digests,
    PlanGroup,
    ShelvedDigests,
    planned,
)

__all__ = [
    "DevicePlan",
    "DigestBatch",
    "Digests",
    "PlanGroup",
    "ShelvedDigests",
    "accumulate",
    "grid",
    "of_memory",
    "planned",
    "prepare",
    "rows",
]


def rows(x: Tensor, row_dims: Sequence[int], first_word: Tensor | None = None) -> Tensor:
    """One digest per row: of the slice over all dimensions that are not in ``row_dims``.

    Args:
        x: Any strided tensor, of any dtype with bytes, on any device.
        row_dims: Ascending dimensions that enumerate the rows, in row-major order.
        first_word: int64 or int32[rows], the index of each row's first word in the slice that it is a part
            of; lane-wise sums of the digests of such parts (`accumulate`) are the digest of the whole.

    Returns:
        int64[rows] on the device of ``x``.

    Raises:
        TypeError: the tensor is sparse, quantized or on the meta device.
        ValueError: the dimensions are out of range or not ascending.
    """
    return implementation(x.device).rows(x, row_dims, first_word)


def grid(x: Tensor, grid_dims: Sequence[int], keys: Tensor | None = None) -> Tensor:
    """One digest per cell of the grid over ``grid_dims``, each element being a word of its own.

    Made for attention weights: [B, heads, Tq, Tk] with ``grid_dims`` (0, 2, 3) and the key tokens' positions
    as ``keys`` gives a digest per pair of tokens, of all heads; summed over the keys by `accumulate`, it does
    not depend on where a layout puts them.

    Args:
        x: Any strided tensor, as for `rows`.
        grid_dims: Ascending dimensions that enumerate the cells, in row-major order.
        keys: Integers, taken modulo 2**32, that broadcast to the sizes of ``grid_dims``.

    Returns:
        int64[cells] on the device of ``x``.

    Raises:
        TypeError: the tensor is sparse, quantized or on the meta device.
        ValueError: the dimensions are out of range or not ascending.
    """
    return implementation(x.device).grid(x, grid_dims, keys)


def of_memory(memory: Tensor) -> Tensor:
    """What changes if a memory does, at the speed at which it is read.

    Args:
        memory: uint8[n] on any device.

    Returns:
        int64 numbers on that device.
    """
    n_bytes = memory.numel()
    whole = n_bytes - n_bytes % _LINE
    lines, rest = memory[:whole].view(torch.int32).view(-1, _LINE // 4), memory[whole:].sum(dtype=torch.int64)
    if memory.device.type == "cpu":
        return torch.cat([rows(lines, (0,)), rest.view(1)])
    # Nothing that has to be made ready first: it is asked before the first pass.
    return torch.cat([lines.sum(1), lines.sum(0), rest.view(1)])


_LINE = 1 << 14
"""Bytes that share a number."""


def accumulate(digests: Tensor, index: Tensor, size: int) -> Tensor:
    """Lane-wise sums of the digests that share an index; those with a negative index are dropped.

    Args:
        digests: int64[n].
        index: int64 or int32[n], below ``size``.
        size: How many cells.

    Returns:
        int64[size] on the device of ``digests``.
    """
    return implementation(digests.device).accumulate(digests, index, size)
