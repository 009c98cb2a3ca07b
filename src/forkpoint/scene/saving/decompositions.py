"""Decompositions of fused functions into plain ones, one named value after the other.

The values are computed as plain torch functions in the dtype of the inputs (norms in float32, as their
kernels do), so that it shows which part of the whole gives the two runs other bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

Value = tuple[str, str, Tensor]
"""What it is called, its formula, and the value."""
Decomposition = Callable[..., Iterator[Value]]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001 - seen from the numbers of heads
) -> Iterator[Value]:
    """`scaled_dot_product_attention`; query [..., heads, Tq, D], key and value [..., heads, Tk, D]."""
    if dropout_p:
        return
    if query.dim() > 3 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    yield "scores", "query · keyᵀ · scale", scores
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = torch.where(seen, scores, float("-inf"))
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = torch.where(attn_mask, scores, float("-inf"))
    elif attn_mask is not None:
        scores = scores + attn_mask
    yield "masked scores", "scores where the mask lets the key be seen, else -inf", scores
    weights = torch.softmax(scores, -1)
    yield "softmax", "softmax over the keys", weights
    yield "weighted sum", "softmax · value", torch.matmul(weights, value)


def layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Iterator[Value]:
    """`layer_norm`, over the last dimensions."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide = _wide(input)
    mean = wide.mean(dims, keepdim=True)
    yield "mean", "mean(x)", mean
    centred = wide - mean
    variance = torch.mean(centred * centred, dims, keepdim=True)
    yield "variance", "mean((x - mean)²)", variance
    yield from _scaled(centred * torch.rsqrt(variance + eps), weight, bias, input.dtype)


def rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Iterator[Value]:
    """`rms_norm`, over the last dimensions."""
    dims = tuple(range(-len(normalized_shape), 0))
    wide = _wide(input)
    square = torch.mean(wide * wide, dims, keepdim=True)
    yield "mean of squares", "mean(x²)", square
    epsilon = torch.finfo(wide.dtype).eps if eps is None else eps
    yield from _scaled(wide * torch.rsqrt(square + epsilon), weight, None, input.dtype)


def _scaled(value: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Iterator[Value]:
    yield "normalised", "centred and divided by the standard deviation", value
    if weight is not None:
        value = value * weight
    if bias is not None:
        value = value + bias
    yield "scaled", "normalised · weight + bias", value.to(dtype)


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.dtype in (torch.float16, torch.bfloat16) else value


def int8_quantised(a: Tensor, threshold: float = 0.0) -> Iterator[Value]:
    """`bitsandbytes::int8_vectorwise_quant`: rows of [tokens, columns] to int8."""
    rows = a.reshape(-1, a.shape[-1])
    outliers = rows.abs() >= threshold if threshold else torch.zeros_like(rows, dtype=torch.bool)
    yield "outliers", "|x| ≥ threshold", outliers
    inliers = torch.where(outliers, torch.zeros((), dtype=rows.dtype, device=rows.device), rows)
    largest = inliers.abs().amax(-1, keepdim=True)
    yield "scale of each row", "max |x| without outliers", largest
    yield "quantised", "round(127 x / scale)", torch.round(inliers.float() * (127.0 / largest.float()))


def int8_product(
    a: Tensor,
    ca: Tensor,
    cb: Tensor,
    sca: Tensor,
    scb: Tensor,
    outlier_cols: Tensor | None = None,
    bias: Tensor | None = None,
) -> Iterator[Value]:
    """`bitsandbytes::int8_mixed_scaled_mm`: the int8 product, and the outlier columns in the input's dtype."""
    yield "quantised", "the input in int8", ca
    scale = sca.reshape(-1, 1).float() * scb.reshape(1, -1).float() / (127.0 * 127.0)
    product = torch.matmul(ca.double(), cb.double().t()) * scale
    yield "int8 product", "quantised · weightᵀ · scales", product
    if outlier_cols is not None and outlier_cols.numel():
        columns = outlier_cols.long()
        weight = cb[:, columns].to(a.dtype) * (scb.reshape(-1, 1) / 127.0).to(a.dtype)
        yield (
            "outlier columns",
            "x · weightᵀ over the columns with outliers",
            torch.matmul(a[:, columns], weight.t()),
        )
    if bias is not None:
        yield "with bias", "int8 product + bias", product + bias


DECOMPOSITIONS: dict[str, Decomposition] = {
    "scaled_dot_product_attention": attention,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "bitsandbytes.int8_vectorwise_quant": int8_quantised,
    "bitsandbytes.int8_mixed_scaled_mm": int8_product,
}
"""By the public name of the function."""


def decompose(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Value]:
    """The named values of a call, in order; none for a function that isn't known."""
    decomposition = DECOMPOSITIONS.get(name)
    if decomposition is not None:
        yield from decomposition(*args, **_lowered(name, kwargs))


def _lowered(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    return (
        {key.lower(): value for key, value in kwargs.items()} if name.startswith("bitsandbytes") else kwargs
    )
