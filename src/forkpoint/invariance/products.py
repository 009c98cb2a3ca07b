"""Matrix products of tokens with the model's own matrices, row by row the same bits: linear, addmm, mm, bmm and more."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Any

import torch

from forkpoint.invariance import gpu, plans, state
from forkpoint.invariance.dispatch import Stock, kernel
from forkpoint.invariance.plans import Rows, Sums, cancelling

_TWO_ACTIVATIONS = (
    "both its factors come from tokens (an attention of the model's own, perhaps), "
    "and the order of its sums follows the layout"
)
_ORDINARY = (torch.Tensor, torch.nn.Parameter)
_MANY = 1 << 16
_ways: dict[tuple[Hashable, ...], Rows] = {}
"""By the address of a matrix and what tells calls apart: how a product is computed, so that a later call asks nothing."""
_MM: Any = torch.ops.aten.mm.default


@kernel("linear")
def linear(stock: Stock, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    """`F.linear`."""
    key = weight.data_ptr(), weight.shape, x.shape, x.dtype, bias is None
    way = _ways.get(key)
    if (
        way is not None
        and x.is_contiguous()
        and weight.is_contiguous()
        and not x.data_ptr() % plans.ALIGNMENT
    ):
        return way(x.view(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)
    if weight.dim() != 2 or not _concerns(x):
        return NotImplemented
    if not state.resembles_constant(weight):
        state.refuse("linear", _TWO_ACTIVATIONS)
        return stock(x, weight, bias)
    rows = plans.aligned(x.reshape(-1, x.shape[-1]))
    if not len(rows):
        return stock(x, weight, bias)
    size = ("linear", bias is None, *_size(weight))
    way = Sums(size, stock, partial(cancelling, 1), _reference(weight, 1)).plan(rows, weight, bias)
    if len(_ways) > _MANY:
        _ways.clear()
    _ways[key] = way
    return way(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])


@kernel("addmm")
def addmm(
    stock: Stock, bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Any:
    """`torch.addmm`: with a bias of one row in one go, with any other one the product first."""
    if not _concerns(x):
        return NotImplemented
    if bias.dim() == 2 and bias.shape[0] != 1:
        return bias * beta + _matrices(x, weight) * alpha
    if not _is_constant(weight, "addmm"):
        return stock(bias, x, weight, beta=beta, alpha=alpha)

    def whole(rows: torch.Tensor, matrix: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        return stock(added, rows, matrix, beta=beta, alpha=alpha)

    reference = _reference(weight, 0) if beta == 1 and alpha == 1 else None
    return _summed(("addmm", beta, alpha, *_size(weight)), whole, reference, x, weight, bias)


@kernel("mm")
def mm(stock: Stock, a: torch.Tensor, b: torch.Tensor) -> Any:
    """`torch.mm`."""
    del stock
    return _matrices(a, b) if _concerns(a) else NotImplemented


@kernel("mv")
def mv(stock: Stock, a: torch.Tensor, vector: torch.Tensor) -> Any:
    """`torch.mv`: a product with a matrix of one column."""
    del stock
    return _matrices(a, vector[:, None])[:, 0] if _concerns(a) else NotImplemented


@kernel("bmm")
def bmm(stock: Stock, a: torch.Tensor, b: torch.Tensor) -> Any:
    """`torch.bmm`: matrix by matrix, unless nothing is summed."""
    if not _concerns(a):
        return NotImplemented
    if a.shape[-1] == 1:
        return a * b
    if not (state.is_constant(a) or state.is_constant(b)):
        state.refuse("bmm", _TWO_ACTIVATIONS)
        return stock(a, b)
    return torch.stack([_matrices(one, other) for one, other in zip(a, b, strict=True)])


def _matrices(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product of two matrices, of which the rows of the one that is not the model's own are tokens."""
    if a.shape[-1] == 1:
        return a * b
    if not state.is_constant(b) and state.is_constant(a):
        return _matrices(b.t(), a.t()).t()
    if not _is_constant(b, "mm"):
        return _MM(a, b)
    return _summed(("mm", *_size(b)), lambda rows, matrix, _: _MM(rows, matrix), _reference(b, 0), a, b, None)


def _summed(
    size: Hashable, whole: Rows, reference: Rows | None, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:  # fmt: skip
    """The product of `[rows, inner]` with `[inner, columns]`, plus a bias."""
    rows = plans.aligned(x)
    if not len(rows):
        return whole(rows, weight, bias)
    return Sums(size, whole, partial(cancelling, 0), reference).plan(rows, weight, bias)(rows, weight, bias)


def _is_constant(weight: torch.Tensor, what: str) -> bool:
    """Whether a factor is the model's own; if not, it is refused, or left as it is."""
    if state.is_constant(weight):
        return True
    state.refuse(what, _TWO_ACTIVATIONS)
    return False


def _concerns(x: torch.Tensor) -> bool:
    """Whether a product is computed in floating point on a device that has numbers to show."""
    return x.is_floating_point() and x.device.type in ("cpu", "cuda") and type(x) in _ORDINARY


def refresh() -> None:
    """Reads again what the order of sums may depend on, at the beginning of a block and of each call of its model."""
    reduced = torch._C._get_cublas_allow_bf16_reduced_precision_reduction()
    now = torch.get_num_threads(), torch.get_float32_matmul_precision(), reduced
    if _settings[0] != now:
        _settings[0] = now
        _ways.clear()


_settings: list[tuple[Hashable, ...]] = [()]
"""The threads and flags of torch, as last read."""


def _size(weight: torch.Tensor) -> tuple[Hashable, ...]:
    """What the order of the sums may depend on besides the number of rows."""
    at = weight.data_ptr() % plans.ALIGNMENT
    return *weight.shape, weight.stride(), at, weight.dtype, weight.device, *_settings[0]


def _reference(weight: torch.Tensor, inner: int) -> Rows | None:
    """A kernel of our own for products with a matrix; None where blocks must do."""
    if weight.device.type != "cuda" or weight.dtype not in gpu.NARROW or not gpu.available():
        return None
    return lambda rows, matrix, bias: gpu.product(rows, matrix, inner, bias)
