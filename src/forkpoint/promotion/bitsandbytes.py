"""The arithmetic of bitsandbytes' operators, in float64.

Their kernels take float16 and float32 only. What they compute is simple, so it is done here with the same
quantisation decisions: int8 stays int8, outlier columns stay outlier columns, and only the rounding of what is
*not* quantised goes. Whatever depends on other tokens (which columns are outliers depends on all rows of the
batch) still does.

Sources: LLM.int8() (arXiv:2208.07339), section 3; QLoRA (arXiv:2305.14314), section 3; bitsandbytes 0.50,
``backends/default/ops.py``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Sequence
from math import prod
from typing import Any

import torch

from forkpoint.promotion.errors import CannotRewriteError
from forkpoint.support.restoring import undone

_INT8_MAX = 127.0
_ABSMAX_BLOCK = 256  # of the quantised block scales ("double quantisation"), fixed in bitsandbytes


def int8_vectorwise_quant(
    *, a: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """``[rows, columns]`` to int8 by each row's largest value; elements of at least `threshold` are set aside."""
    outlier_columns = None
    inliers = a
    if threshold > 0.0:
        outliers = a.abs() >= threshold
        outlier_columns = outliers.any(dim=0).nonzero().view(-1)
        inliers = a.masked_fill(outliers, 0.0)
    largest = inliers.abs().amax(dim=1)
    # A row of zeros has a scale of 0, which makes whatever stands in it 0 again.
    quantised = torch.round(inliers * (_INT8_MAX / largest.unsqueeze(-1))).nan_to_num(0.0).to(torch.int8)
    if outlier_columns is not None and quantised.shape[0] > 1:
        quantised[:, outlier_columns] = 0
    return quantised, largest, outlier_columns


def int8_vectorwise_dequant(*, a: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """A weight of shape ``[out, in]`` from int8 and the largest value of each row."""
    return a * (stats.view(-1, 1) / _INT8_MAX)


def int8_mm_dequant(
    *,
    a: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """A product of int8 matrices, scaled by the largest values of its rows and columns."""
    scale = row_stats.reshape(-1, 1) * col_stats.reshape(1, -1) / _INT8_MAX**2
    product = a.view(-1, a.shape[-1]) * scale
    return product if bias is None else product + bias


def int8_scaled_mm(
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    row_stats: torch.Tensor,
    col_stats: torch.Tensor,
    bias: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """``a @ b.T`` of int8 matrices with their scales."""
    # Products of int8 are below 2**14, so that float64 sums 2**39 of them without rounding.
    product = a.to(torch.float64) @ b.to(torch.float64).t()
    scaled = int8_mm_dequant(a=product, row_stats=row_stats, col_stats=col_stats, bias=bias)
    return scaled.view(*a.shape[:-1], b.shape[0])


def int8_mixed_scaled_mm(
    *,
    a: torch.Tensor,
    ca: torch.Tensor,
    cb: torch.Tensor,
    sca: torch.Tensor,
    scb: torch.Tensor,
    outlier_cols: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`int8_scaled_mm`, plus the outlier columns of `a` as they are."""
    product = int8_scaled_mm(a=ca, b=cb, row_stats=sca, col_stats=scb, bias=bias)
    if outlier_cols is None or outlier_cols.numel() == 0:
        return product, a.new_empty(0)
    outliers = a[:, outlier_cols].contiguous()
    weight = int8_vectorwise_dequant(a=cb[:, outlier_cols], stats=scb)
    return product.addmm(outliers, weight.t()), outliers


def dequantize_blockwise(
    *, a: torch.Tensor, absmax: torch.Tensor, code: torch.Tensor, blocksize: int, **_: Any
) -> torch.Tensor:
    """Each byte's entry in `code`, times the scale of the block of `blocksize` elements that it is in."""
    flat = code[a.reshape(-1).to(torch.int64)]
    return (flat * absmax.reshape(-1).repeat_interleave(blocksize)[: flat.numel()]).reshape(a.shape)


def dequantize_4bit(
    *, a: torch.Tensor, absmax: torch.Tensor, blocksize: int, quant_type: str, shape: Sequence[int], **_: Any
) -> torch.Tensor:
    """Two elements a byte, the first in the upper half."""
    packed = a.contiguous().view(torch.uint8).reshape(-1)
    halves = torch.stack([packed >> 4, packed & 0xF], dim=1).reshape(-1)[: prod(shape)]
    code = _code(quant_type, a.device)
    return dequantize_blockwise(a=halves, absmax=absmax, code=code, blocksize=blocksize).reshape(*shape)


def gemm_4bit(
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    shapeb: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """``a @ b.T + bias``; with double quantisation the scales of b's blocks are quantised themselves."""
    if absmax_8bit is not None:
        if absmax_code is None or absmax_offset is None:
            raise CannotRewriteError("gemm_4bit with quantised scales but without their code")
        scales = dequantize_blockwise(a=absmax_8bit, absmax=absmax, code=absmax_code, blocksize=_ABSMAX_BLOCK)
        absmax = scales + absmax_offset
    weight = dequantize_4bit(a=b, absmax=absmax, blocksize=blocksize, quant_type=quant_type, shape=shapeb)
    return torch.nn.functional.linear(a, weight, bias)


def gemv_4bit(
    *,
    a: torch.Tensor,
    b: torch.Tensor,
    shapeb: Sequence[int],
    absmax: torch.Tensor,
    code: torch.Tensor,
    blocksize: int,
) -> torch.Tensor:
    """`gemm_4bit` as older versions call it for one row."""
    if a.device.type == "cpu":
        raise CannotRewriteError("gemv_4bit on a CPU takes weights in a layout of its own")
    kind = "fp4" if code[1] > 0 else "nf4"
    return gemm_4bit(a=a, b=b, shapeb=shapeb, absmax=absmax, blocksize=blocksize, quant_type=kind)


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keeps bitsandbytes from warning, at each call, that it is going to round inputs that it is not."""
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    with undone(lambda: logger.removeFilter(_says_no_cast)):
        logger.addFilter(_says_no_cast)
        yield


def _says_no_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast from" not in str(record.msg)


def _code(quant_type: str, device: torch.device) -> torch.Tensor:
    from bitsandbytes.functional import get_4bit_type  # type: ignore[import-untyped]

    return get_4bit_type(quant_type, device=device).to(torch.float64)


REWRITTEN: dict[str, Callable[..., Any]] = {
    f"bitsandbytes::{function.__name__}": function
    for function in (
        int8_vectorwise_quant,
        int8_vectorwise_dequant,
        int8_mm_dequant,
        int8_scaled_mm,
        int8_mixed_scaled_mm,
        dequantize_blockwise,
        dequantize_4bit,
        gemm_4bit,
        gemv_4bit,
    )
}
