# ruff: noqa: N803
# pyright: reportInvalidTypeForm=false, reportMissingParameterType=false, reportMissingImports=false
"""A peer: batch invariance the way it is publicly described, as an override of torch's own operators on a GPU.

Matrix products with one tile and one order whatever their number of rows, means and log-softmaxes row by row; attention
stays what it is. Written for this comparison after published descriptions of such libraries, not copied from one.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl

_ROWS, _COLUMNS, _INNER = 128, 128, 64


@triton.jit
def _product(
    a, b, bias, out, rows, columns, inner, a_row, a_inner, b_inner, b_column, programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Persistent: each program takes every so-many-eth tile."""
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    step = tl.arange(0, INNER)
    for tile in range(tl.program_id(0), row_blocks * column_blocks, programs):
        row = (tile % row_blocks) * ROWS + tl.arange(0, ROWS)
        column = (tile // row_blocks) * COLUMNS + tl.arange(0, COLUMNS)
        a_at = a + (row % rows).to(tl.int64)[:, None] * a_row + step[None, :] * a_inner
        b_at = b + step[:, None] * b_inner + (column % columns).to(tl.int64)[None, :] * b_column
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, inner, INNER):
            left = tl.load(a_at, mask=step[None, :] < inner - start, other=0.0)
            right = tl.load(b_at, mask=step[:, None] < inner - start, other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
            a_at += INNER * a_inner
            b_at += INNER * b_inner
        if BIAS:
            total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
        at = out + row.to(tl.int64)[:, None] * columns + column[None, :]
        tl.store(at, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def _mean(x, out, size, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    values = tl.load(x + tl.program_id(0).to(tl.int64) * size + at, mask=at < size, other=0.0).to(tl.float32)
    tl.store(out + tl.program_id(0), (tl.sum(values, 0) / size).to(out.dtype.element_ty))


@triton.jit
def _log_softmax(x, out, size, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    row = tl.program_id(0).to(tl.int64) * size
    values = tl.load(x + row + at, mask=at < size, other=float("-inf")).to(tl.float32)
    values -= tl.max(values, 0)
    values -= tl.log(tl.sum(tl.exp(values), 0))
    tl.store(out + row + at, values.to(out.dtype.element_ty), mask=at < size)


def mm(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.mm`, plus a bias of one row."""
    (rows, inner), columns = a.shape, b.shape[1]
    out = torch.empty(rows, columns, dtype=a.dtype, device=a.device)
    programs = torch.cuda.get_device_properties(a.device).multi_processor_count
    tiles = -(-rows // _ROWS) * -(-columns // _COLUMNS)
    _product[(min(programs, tiles),)](
        a, b, a if bias is None else bias, out, rows, columns, inner, *a.stride(), *b.stride(), min(programs, tiles),
        _ROWS, _COLUMNS, _INNER, bias is not None, num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def addmm(
    bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> torch.Tensor:
    """`torch.addmm`."""
    if bias.dim() == 1 and beta == alpha == 1:
        return mm(a, b, bias)
    return bias * beta + mm(a, b) * alpha


def mean(
    x: torch.Tensor, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """`torch.mean` over the last dimension; over others, a sum and a quotient."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    if dims not in ((-1,), (x.dim() - 1,)):
        count = 1
        for one in dims:
            count *= x.shape[one]
        return x.sum(dim=dims, keepdim=keepdim, dtype=dtype) / count
    rows = x.contiguous().view(-1, x.shape[-1])
    out = torch.empty(len(rows), dtype=dtype or x.dtype, device=x.device)
    _mean[(len(rows),)](rows, out, x.shape[-1], triton.next_power_of_2(x.shape[-1]))
    return out.view(*x.shape[:-1], 1) if keepdim else out.view(x.shape[:-1])


def log_softmax(x: torch.Tensor, dim: int, half_to_float: bool) -> torch.Tensor:
    """`torch.log_softmax` over the last dimension."""
    moved = x.movedim(dim, -1).contiguous()
    out = torch.empty_like(moved, dtype=torch.float32 if half_to_float else x.dtype)
    _log_softmax[(moved.numel() // moved.shape[-1],)](
        moved, out, moved.shape[-1], triton.next_power_of_2(moved.shape[-1])
    )
    return out.movedim(-1, dim)


@contextmanager
def batch_invariant() -> Generator[None]:
    """Torch's operators on a GPU are these within."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("mm", mm, "CUDA")
        library.impl("addmm", addmm, "CUDA")
        library.impl("mean.dim", mean, "CUDA")
        library.impl("_log_softmax", log_softmax, "CUDA")
    try:
        yield
    finally:
        library._destroy()  # noqa: SLF001
