"""Operations that refuse float64, done from their definition.

Each function here takes the arguments of an operation by the names of its schema, in lower case and in
float64, and gives its result. What it has no use for (the dtype of the result, options of a kernel) goes into
`_`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from forkpoint.promotion import attention, bitsandbytes
from forkpoint.promotion.dtypes import QUANTISED
from forkpoint.promotion.errors import CannotRewriteError


def grouped_mm(
    *,
    self: torch.Tensor,
    mat2: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """``aten::_grouped_mm``: one product per group, the groups ending at `offs` along a dimension.

    ``[T, K] @ [G, K, N] -> [T, N]``, ``[G, M, K] @ [K, N] -> [M, N]``, ``[M, K] @ [K, N] -> [G, M, N]`` (groups
    within K) and, without offsets, ``[G, M, K] @ [G, K, N] -> [G, M, N]``. Rows past the last offset, which the
    kernel leaves unwritten, are 0 here.
    """
    if self.dim() == 3 and mat2.dim() == 3:
        product = torch.bmm(self, mat2)
    elif offs is None:
        raise CannotRewriteError("grouped_mm without offsets")
    elif self.dim() == 2 and mat2.dim() == 3:
        product = self.new_zeros(self.shape[0], mat2.shape[2])
        for group, (start, end) in enumerate(_spans(offs)):
            product[start:end] = self[start:end] @ mat2[group]
    elif self.dim() == 3:
        product = self.new_zeros(self.shape[1], mat2.shape[1])
        for group, (start, end) in enumerate(_spans(offs)):
            product[:, start:end] = self[group] @ mat2[:, start:end]
    else:
        product = torch.stack([self[:, start:end] @ mat2[start:end] for start, end in _spans(offs)])
    return product if bias is None else product + bias


def _spans(offs: torch.Tensor) -> Iterator[tuple[int, int]]:
    start = 0
    for end in offs.tolist():
        yield start, end
        start = end


def scaled_mm(
    *,
    self: torch.Tensor,
    mat2: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    **_: Any,
) -> torch.Tensor:
    """``aten::_scaled_mm``: ``(self * scale_a) @ (mat2 * scale_b)``, a scale per tensor, row or block of either."""
    if out_dtype in QUANTISED:
        raise CannotRewriteError("scaled_mm with a quantised result")
    product = (self * _spread(scale_a, self)) @ (mat2 * _spread(scale_b, mat2))
    return product if bias is None else product + bias


def _spread(scale: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """The scale of every element."""
    if scale.numel() == 1:
        return scale.reshape(())
    for dim in (0, 1):
        repeats, left = divmod(matrix.shape[dim], scale.shape[dim]) if scale.dim() == 2 else (0, 1)
        if left:
            shapes = f"{tuple(matrix.shape)} with scales of shape {tuple(scale.shape)}"
            raise CannotRewriteError(f"scaled_mm of {shapes}")
        scale = scale.repeat_interleave(repeats, dim)
    return scale


def weight_int8pack_mm(
    *, self: torch.Tensor, mat2: torch.Tensor, scales: torch.Tensor, **_: Any
) -> torch.Tensor:
    """``aten::_weight_int8pack_mm``: ``self @ mat2.T * scales``, mat2 of shape ``[out, in]`` in int8."""
    return self @ mat2.to(self.dtype).T * scales


REWRITTEN: dict[str, Callable[..., Any]] = {
    "_grouped_mm": grouped_mm,
    "_scaled_mm": scaled_mm,
    "_weight_int8pack_mm": weight_int8pack_mm,
    "_flash_attention_forward": attention.aten_flash_attention,
    "flash_attn::_flash_attn_forward": attention.flash_attention,
    "flash_attn::_flash_attn_varlen_forward": attention.flash_attention_packed,
    **bitsandbytes.REWRITTEN,
}
"""By the name that `kinds.name_of` gives; always used."""


def math_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """`scaled_dot_product_attention` by the kernel that takes float64, whatever the model has limited itself to."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)


OTHERWISE: dict[str, Callable[..., Any]] = {"scaled_dot_product_attention": math_attention}
"""Operations that refuse float64 only at times, with their own arguments: used when they have."""


def by_name(overload: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by the names in its schema, in lower case.

    >>> by_name(torch.ops.aten.add.Tensor, (1, 2), {"alpha": 3})
    {'self': 1, 'other': 2, 'alpha': 3}
    """
    names = [argument.name for argument in overload._schema.arguments]
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name.lower(): value for name, value in arguments.items()}
