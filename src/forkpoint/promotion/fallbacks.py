"""Operations that refuse float64: done another way where there is one, else in the model's own dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from forkpoint.promotion import attention, bitsandbytes
from forkpoint.promotion.dtypes import QUANTISED, WIDE
from forkpoint.promotion.errors import CannotRewrite
from forkpoint.promotion.values import Values


# --- torch's own operations ---------------------------------------------------------------------------------


def grouped_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``torch._grouped_mm``: one product per group, the groups ending at `offs` along the dimension they share.

    ``[T, K] @ [G, K, N] -> [T, N]``, ``[G, M, K] @ [K, N] -> [M, N]``, ``[M, K] @ [K, N] -> [G, M, N]`` (groups
    within K) and ``[G, M, K] @ [G, K, N] -> [G, M, N]``. Rows past the last offset, which the kernel leaves
    unwritten, are 0 here.
    """
    if a.dim() == 3 and b.dim() == 3:
        product = torch.bmm(a, b)
        return product if bias is None else product + bias
    if offs is None:
        raise CannotRewrite("grouped_mm without offsets")
    spans = list(_spans(offs))
    if a.dim() == 2 and b.dim() == 3:
        product = a.new_zeros(a.shape[0], b.shape[2])
        for group, (start, end) in enumerate(spans):
            product[start:end] = a[start:end] @ b[group]
    elif a.dim() == 3 and b.dim() == 2:
        product = a.new_zeros(a.shape[1], b.shape[1])
        for group, (start, end) in enumerate(spans):
            product[:, start:end] = a[group] @ b[:, start:end]
    else:
        product = torch.stack([a[:, start:end] @ b[start:end] for start, end in spans])
    return product if bias is None else product + bias


def _spans(offs: torch.Tensor) -> Iterator[tuple[int, int]]:
    start = 0
    for end in offs.tolist():
        yield start, end
        start = end


def scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None = None,
    scale_result: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> torch.Tensor:
    """``torch._scaled_mm``: ``(a * scale_a) @ (b * scale_b)``, one scale per tensor, row or block of either."""
    if out_dtype in QUANTISED:
        raise CannotRewrite("scaled_mm with a quantised result")
    product = (a * _scale_of(a, scale_a)) @ (b * _scale_of(b, scale_b))
    return product if bias is None else product + bias


def _scale_of(matrix: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() != 2:
        raise CannotRewrite(f"scaled_mm with scales of shape {tuple(scale.shape)}")
    for dim in (0, 1):
        repeats, left = divmod(matrix.shape[dim], scale.shape[dim])
        if left:
            raise CannotRewrite(f"scaled_mm of {tuple(matrix.shape)} with scales of shape {tuple(scale.shape)}")
        scale = scale.repeat_interleave(repeats, dim)
    return scale


def weight_int8pack_mm(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``torch._weight_int8pack_mm``: ``x @ weight.T * scales``, weight of shape ``[out, in]`` in int8."""
    return x @ weight.to(x.dtype).T * scales


REWRITTEN: dict[str, Callable[..., Any]] = {
    "_grouped_mm": grouped_mm,
    "_scaled_mm": scaled_mm,
    "_weight_int8pack_mm": weight_int8pack_mm,
    "_flash_attention_forward": attention.aten_flash_attention,
    "flash_attn::_flash_attn_forward": attention.flash_attention,
    "flash_attn::_flash_attn_varlen_forward": attention.flash_attention_packed,
    **bitsandbytes.REWRITTEN,
}
"""Name of an operation, and a function that computes the same from arguments in float64."""

OTHERWISE: dict[str, Callable[..., Any]] = {
    "scaled_dot_product_attention": attention.scaled_dot_product_attention,
}
"""The same for operations that refuse float64 only sometimes: asked when they have."""


def linear_in_blocks(
    values: Values, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, block: int
) -> torch.Tensor:
    """``x @ weight.T + bias``, of which about `block` elements of `weight` are in float64 at a time."""
    x = values.of(x)
    rows = max(1, block // weight.shape[1])
    result = x.new_empty(*x.shape[:-1], weight.shape[0])
    for start in range(0, weight.shape[0], rows):
        part = weight[start : start + rows].to(x.dtype)
        result[..., start : start + rows] = torch.nn.functional.linear(x, part)
    return result if bias is None else result.add_(values.of(bias))


# --- anything else ------------------------------------------------------------------------------------------


def resolve(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch._ops.OpOverload | None, frozenset[int | str]]:
    """The overload that a call of a registered operator takes, and the arguments that it writes to."""
    overload = func
    if isinstance(func, torch._ops.OpOverloadPacket):
        try:
            name = torch._C._jit_resolve_packet(func._qualified_op_name, *args, **kwargs)
            overload = getattr(func, name or "default")
        except Exception:
            overload = getattr(func, func.overloads()[0])
    written: set[int | str] = set()
    for place, argument in enumerate(overload._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.add(argument.name if argument.name in kwargs else place)
    return overload, frozenset(written)


def backend_keys(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch._C.DispatchKeySet | None:
    """The dispatch key of the device that a call's tensors are on, where a kernel for it can be called alone."""
    for tensor in _tensors((args, kwargs)):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            return None
        key = {"cpu": torch._C.DispatchKey.CPU, "cuda": torch._C.DispatchKey.CUDA}.get(tensor.device.type)
        return None if key is None else torch._C.DispatchKeySet(key)
    return None


def native_dtypes(arguments: Any, native: torch.dtype | None) -> list[torch.dtype]:
    """In which dtypes to try a call that refuses float64: first those that its own arguments have."""
    own = [tensor.dtype for tensor in _tensors(arguments) if WIDE.get(tensor.dtype) is torch.float64]
    tried = [*own, native, torch.float32, torch.bfloat16, torch.float16]
    return list(dict.fromkeys(dtype for dtype in tried if dtype is not None))


def first_narrow(result: Any) -> torch.dtype | None:
    return next((tensor.dtype for tensor in _tensors(result) if tensor.dtype in WIDE), None)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
