"""How the words of a tensor's slices lie in memory, so that a kernel can read them in place.

A plan depends on shape, strides, dtype and row dimensions only, never on the address or the values: the
same few plans serve a whole model, and looking one up costs a fraction of a microsecond.

>>> find(torch.empty(1, 9, 50, 64).transpose(1, 2), (0, 1))  # [B, T, heads, D]: a row is 9 runs of 64 words
RowPlan(rows=50, words=576, kind=<ElementType.FLOAT32: 1>, direct=True, row_sizes=(1, 50), row_strides=(0, 64),
     piece_sizes=(1, 9), piece_strides=(0, 3200), run=64)
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from forkpoint.capture.digest import definition


class ElementType(enum.IntEnum):
    """How the elements in a word are made canonical."""

    RAW = 0
    FLOAT32 = 1
    BFLOAT16 = 2
    FLOAT16 = 3
    FLOAT8_E4M3 = 4
    FLOAT8_E5M2 = 5
    FLOAT64 = 6


_KINDS = {
    torch.float32: ElementType.FLOAT32,
    torch.bfloat16: ElementType.BFLOAT16,
    torch.float16: ElementType.FLOAT16,
    torch.float8_e4m3fn: ElementType.FLOAT8_E4M3,
    torch.float8_e5m2: ElementType.FLOAT8_E5M2,
    torch.float64: ElementType.FLOAT64,
}


@dataclass(frozen=True)
class Lanes:
    """What makes several small floats in one word canonical at once, without a branch.

    With ``n = (w & ~sign) + above & sign`` (set where an element is NaN) and
    ``w & ((w & ~sign) + ~sign | ~sign)`` (without the sign of a zero), no sum carries into a neighbour.
    """

    sign: int
    """The sign bit of every element of the word."""
    above: int
    """What lifts the magnitude of a NaN, and of nothing else, into the sign bit."""
    shift: int
    """From an element's sign bit to its lowest bit."""


def _lanes(dtype: torch.dtype) -> Lanes:
    bits = 8 * dtype.itemsize
    ones = sum(1 << place for place in range(0, 32, bits))
    above = (1 << (bits - 1)) - 1 - definition.LARGEST_NUMBER[dtype]
    return Lanes(ones << (bits - 1), above * ones, bits - 1)


LANES: tuple[Lanes, ...] = (Lanes(0, 0, 0), *(_lanes(dtype) for dtype in list(_KINDS)[:-1]), Lanes(0, 0, 0))
"""By kind. Raw words have no sign and come out unchanged; float64 needs code of its own."""


def kind(dtype: torch.dtype) -> ElementType:
    """The kind of a dtype, or of the parts of a complex one."""
    return _KINDS.get(dtype.to_real() if dtype.is_complex else dtype, ElementType.RAW)


class RowPlan(NamedTuple):
    """Where the words of every row lie; all strides and lengths count 4-byte words.

    Word ``j`` of run ``(a, b)`` of row ``(r, s)`` is at ``r * row_strides[0] + s * row_strides[1] +
    a * piece_strides[0] + b * piece_strides[1] + j``.
    """

    rows: int
    words: int
    """Words of one row, the last one filled up with zeros if need be."""
    kind: ElementType
    direct: bool
    """False if the slices must first be laid out as rows of whole words (`torch_impl.pack_rows`)."""
    row_sizes: tuple[int, int] = (1, 1)
    row_strides: tuple[int, int] = (0, 0)
    piece_sizes: tuple[int, int] = (1, 1)
    piece_strides: tuple[int, int] = (0, 0)
    run: int = 0
    """Words that lie side by side."""

    @property
    def fields(self) -> tuple[int, ...]:
        """The plan as a row of a kernel's table, in the order of `Field`."""
        return (
            self.rows,
            self.words,
            self.kind,
            self.row_sizes[1],
            *self.row_strides,
            *self.piece_sizes,
            *self.piece_strides,
            self.run,
        )


def check(x: torch.Tensor, dims: Sequence[int]) -> None:
    """Refuses what has no bytes to hash, and dimensions that are not ascending or not there.

    Raises:
        TypeError: the tensor is no plain strided tensor of numbers.
        ValueError: the dimensions are out of range or out of order.
    """
    if x.layout is not torch.strided or x.is_quantized or x.is_meta:
        description = f"{'quantized ' if x.is_quantized else ''}{x.layout} tensor on {x.device}"
        raise TypeError(f"a {description} has no plain values to digest")
    if not all(low < dim < x.dim() for low, dim in zip((-1, *dims), dims, strict=False)):
        raise ValueError(
            f"dimensions {tuple(dims)} of a tensor of shape {tuple(x.shape)}: expected ascending, in range"
        )


def find(x: torch.Tensor, row_dims: Sequence[int]) -> RowPlan:
    """The plan for the rows of a tensor."""
    check(x, row_dims)
    size, sizes, strides = x.dtype.itemsize, x.shape, x.stride()
    slice_dims = [dim for dim in range(len(sizes)) if dim not in row_dims]
    n_rows = math.prod([sizes[dim] for dim in row_dims])
    n_bytes = math.prod([sizes[dim] for dim in slice_dims]) * size
    copied = RowPlan(n_rows, -(-n_bytes // 4), kind(x.dtype), direct=False)
    if n_rows == 0 or n_bytes == 0:
        return packed(copied)
    if x.is_complex():
        return copied

    rows = merged([(sizes[dim], strides[dim] * size) for dim in row_dims])
    pieces = merged([(sizes[dim], strides[dim] * size) for dim in slice_dims])
    run = size
    if pieces and pieces[-1][1] == size:
        run *= pieces.pop()[0]
    elif pieces:
        return copied  # neighbours of a slice lie apart: copying reads the memory in order
    whole = run % 4 == 0 and all(stride % 4 == 0 for _, stride in rows + pieces)
    if len(rows) > 2 or len(pieces) > 2 or not whole:
        return copied
    outer_row, row = [(1, 0)] * (2 - len(rows)) + rows
    outer_piece, piece = [(1, 0)] * (2 - len(pieces)) + pieces
    return RowPlan(
        n_rows,
        copied.words,
        copied.kind,
        direct=True,
        row_sizes=(outer_row[0], row[0]),
        row_strides=(outer_row[1] // 4, row[1] // 4),
        piece_sizes=(outer_piece[0], piece[0]),
        piece_strides=(outer_piece[1] // 4, piece[1] // 4),
        run=run // 4,
    )


def packed(plan: RowPlan) -> RowPlan:
    """The plan of the copy that `torch_impl.pack_rows` makes."""
    return RowPlan(
        plan.rows,
        plan.words,
        plan.kind,
        direct=True,
        row_sizes=(1, plan.rows),
        row_strides=(0, plan.words),
        run=plan.words,
    )


def merged(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same walk over (size, stride) pairs with as few of them as possible.

    >>> merged([(2, 12), (3, 4), (1, 7), (4, 1)]), merged([(2, 12), (3, 1)])
    ([(24, 1)], [(2, 12), (3, 1)])
    """
    walk: list[tuple[int, int]] = []
    for size, stride in dims:
        if size == 1:
            continue
        if walk and walk[-1][1] == size * stride:
            walk[-1] = (walk[-1][0] * size, stride)
        else:
            walk.append((size, stride))
    return walk
