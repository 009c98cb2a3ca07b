"""Functions of one value whose bits depend on where in memory the value stands.

A CPU computes many values at once by one formula, and those left over at the end by another one. Where the two disagree,
the values are padded so that none is left over, for any number of threads.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from forkpoint.invariance.dispatch import Kernel, Stock, conditional, overload

_UNIT = 64
"""Values that torch computes in one step at most: two vectors of 64 bytes of a narrow dtype."""
_GRAIN = 32768
"""Values for each thread at least, before torch asks for another one."""

_NAMES = (
    "sigmoid", "silu", "gelu", "tanh", "exp", "exp2", "expm1", "log", "log1p", "erf", "sin", "cos", "rsqrt", "softplus",
    "mish", "elu", "hardswish", "log_sigmoid_forward", "pow.Tensor_Scalar",
)  # fmt: skip
_IN_PLACE = (
    "sigmoid_", "silu_", "gelu_", "tanh_", "exp_", "exp2_", "expm1_", "log_", "log1p_", "erf_", "sin_", "cos_", "rsqrt_",
    "mish_", "elu_", "hardswish_",
)  # fmt: skip
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "gelu": ({}, {"approximate": "tanh"}),
    "pow.Tensor_Scalar": ({"exponent": 2}, {"exponent": 3}),
}
"""Ways of calling that choose other formulas."""


@conditional(*_NAMES)
def out_of_place(name: str) -> Kernel | None:
    """The kernel for an op, or None where no value depends on its place."""
    stock = overload(name)
    dtypes = frozenset(dtype for dtype in _DTYPES if depends_on_place(name, dtype))
    if not dtypes:
        return None

    def kernel(_: Stock, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        count = x.numel()
        if x.dtype not in dtypes or x.device.type != "cpu" or not count:
            return stock(x, *args, **kwargs)
        if x.is_contiguous() and _whole_units(count) == count:
            return stock(x, *args, **kwargs)
        return aligned(lambda flat: stock(flat, *args, **kwargs), x)

    return kernel


@conditional(*_IN_PLACE)
def in_place(name: str) -> Kernel | None:
    """The same for an op that writes its result over its argument."""
    kernel, stock = out_of_place(name.removesuffix("_")), overload(name.removesuffix("_"))
    if kernel is None:
        return None
    return lambda _, x, *args, **kwargs: x.copy_(kernel(stock, x, *args, **kwargs))


def aligned(function: Any, x: torch.Tensor) -> Any:
    """A function of one value, with all values computed by the formula for many."""
    count = x.numel()
    size = _whole_units(count)
    flat = x.contiguous().view(-1)
    if size != count:
        flat = torch.nn.functional.pad(flat, (0, size - count))
    result = function(flat)
    if isinstance(result, tuple):  # log_sigmoid_forward has a buffer beside its result
        return tuple(one[:count].view(x.shape) if one.numel() else one for one in result)
    return result[:count].view(x.shape)


def _whole_units(count: int) -> int:
    """The next number of values of which every thread gets whole units.

    >>> _whole_units(100)
    128
    """
    threads = 1 if count < _GRAIN else min(torch.get_num_threads(), math.ceil(count / _GRAIN))
    step = _UNIT * threads
    return (count + step - 1) // step * step


@cache
def depends_on_place(name: str, dtype: torch.dtype) -> bool:
    """Whether values at the end, or with a gap between them, come out otherwise than in the midst."""
    stock = overload(name)
    values = torch.linspace(0.01 if "log" in name or "rsqrt" in name else -6, 6, 4096 + 7).to(dtype)
    for options in _OPTIONS.get(name, ({},)):

        def function(x: torch.Tensor, options: dict[str, Any] = options) -> torch.Tensor:
            result = stock(x, **options)
            return result[0] if isinstance(result, tuple) else result

        try:
            midst = function(torch.nn.functional.pad(values, (0, 4096 - 7)))[: len(values)]
            ends = torch.cat([function(part) for part in values.split(7)])
            apart = function(torch.stack((values, values), 1)[:, 0])
        except (RuntimeError, NotImplementedError):  # no kernel for this dtype
            return False
        if not (torch.equal(midst, ends) and torch.equal(midst, apart)):
            return True
    return False
