"""Norms by the root of the mean square, in one kernel of torch's on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from forkpoint.invariance.dispatch import plain

Forward = Callable[..., Any]
"""A module's own `forward`, not bound to it."""

_ROWS = 4096
"""Rows of a trial."""
_COUNTS = (1, 2, 3, 7, 8, 9, 15, 16, 33, 64, 257, 1024)
"""Numbers of rows that every trial makes."""
_held: dict[Hashable, bool] = {}
"""By what a kernel may depend on, and by the number of rows besides: whether a trial held."""


def may_be(kind: type[torch.nn.Module]) -> bool:
    """Whether modules of a class may be such norms, by its name; a trial of each decides."""
    return (
        kind.__name__.endswith("RMSNorm")
        and "forward" in vars(kind)
        and hasattr(torch.ops.aten, "_fused_rms_norm")
    )


def made(module: Any, stock: Forward, x: torch.Tensor) -> torch.Tensor | None:
    """The norm of each row of a tensor, or None where torch's kernel is not the module's function.

    Args:
        module: a module of a class that `may_be` one.
        stock: its own `forward`.
        x: `[…, size]`.
    """
    weight = module._parameters.get("weight")
    if weight is None or not x.is_cuda or x.dtype is not weight.dtype:
        return None
    epsilon = getattr(module, "variance_epsilon", None)
    if epsilon is None:
        epsilon = getattr(module, "eps", None)
    key = type(module), weight.shape, x.shape, x.dtype, x.device, epsilon
    held = _held.get(key)
    if held is None:
        with plain(), torch.no_grad():
            held = _held[key] = _is(module, stock, weight, epsilon, x)
    return torch.rms_norm(x, weight.shape, weight, epsilon) if held else None


def _is(module: Any, stock: Forward, weight: torch.Tensor, epsilon: Any, x: torch.Tensor) -> bool:
    """Whether torch's kernel computes what the module does, no less exactly, and a row alike beside any others."""
    if not isinstance(epsilon, float) or weight.dim() != 1 or x.shape[-1:] != weight.shape:
        return False
    size = weight.shape[0]
    generator = torch.Generator(x.device).manual_seed(size)
    rows = torch.randn(_ROWS, size, generator=generator, device=x.device).to(x.dtype)
    every = _made(rows, weight, epsilon)
    key = type(module), size, x.dtype, x.device, epsilon
    if key not in _held:
        _held[key] = _as_exact(module, stock, weight, epsilon, rows[:64]) and all(
            _equal(_made(rows[:count], weight, epsilon), every) for count in _COUNTS
        )
    count = x.numel() // size
    several = rows.repeat(-(-count // _ROWS), 1)[:count]
    more = tuple(one.repeat(-(-count // _ROWS), 1) for one in every)
    return _held[key] and _equal(_made(several, weight, epsilon), more)


def _made(rows: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel makes of rows, and what it divides by, in float32, which a narrow dtype would hide."""
    return torch.ops.aten._fused_rms_norm(rows, [rows.shape[1]], weight, epsilon)


def _equal(some: tuple[torch.Tensor, ...], every: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(one, other[: len(one)]) for one, other in zip(some, every, strict=True))


def _as_exact(module: Any, stock: Forward, weight: torch.Tensor, epsilon: float, rows: torch.Tensor) -> bool:
    wide = rows.double()
    exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon) * weight.double()
    own, other = (
        (one.double() - exact).abs()
        for one in (stock(module, rows), torch.rms_norm(rows, weight.shape, weight, epsilon))
    )
    near = 8 * torch.finfo(rows.dtype).eps * exact.abs().max()
    return bool(own.max() <= near) and bool(other.mean() <= 1.01 * own.mean())
