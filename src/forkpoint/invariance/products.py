"""Matrix products of tokens with the model's own matrices, row by row the same bits: linear, addmm, mm, bmm and more."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Any

import torch

from forkpoint.invariance import gpu, padding, plans, state, wide
from forkpoint.invariance.dispatch import Stock, kernel
from forkpoint.invariance.plans import Rows, Sums, cancelling

_TWO_ACTIVATIONS = (
    "both its factors come from tokens (an attention of the model's own, perhaps), "
    "and the order of its sums follows the layout"
)
_ORDINARY = (torch.Tensor, torch.nn.Parameter)
_MANY = 1 << 16
_PARTS = 4
"""Parts of a sum of float32 on a GPU that is slow in float64."""
_ways: dict[tuple[Hashable, ...], Rows] = {}
"""By the address of a matrix and what tells calls apart: how a product is computed, so that a later call asks nothing."""
_MM: Any = torch.ops.aten.mm.default
_C: Any = torch._C
LINEAR: Any = _C._nn.linear
"""`F.linear` itself, whatever stands under its name."""


@kernel("linear")
def linear(stock: Stock, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    """`F.linear`."""
    tokens = padding.of(x)
    if tokens is not None:
        made = linear(stock, tokens.rows_of(x), weight, bias)
        return made if made is NotImplemented else tokens.put(made)
    way = ready(x, weight, bias)
    if way is not None:
        return way(x, weight, bias)
    if weight.dim() != 2 or not _concerns(x):
        return NotImplemented
    if not state.resembles_constant(weight):
        state.refuse("linear", _TWO_ACTIVATIONS)
        return stock(x, weight, bias)
    rows, bias = plans.aligned(x.reshape(-1, x.shape[-1])), _row(bias, weight.shape[0])
    if not len(rows):
        return stock(x, weight, bias)
    size = ("linear", bias is None, *_size(weight))
    sums = Sums(size, _exact(x, _whole, 1), partial(cancelling, 1), _reference(weight, 1))
    way = sums.plan(rows, weight, bias)
    if sums.computed(len(rows)) is not None:
        if len(_ways) > _MANY:
            _ways.clear()
        _ways[_key(x, weight, bias)] = _short(sums, way, rows, weight, bias)
    return way(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])


def ready(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Rows | None:
    """What computes `F.linear` for tensors of this form, `[…, inner]`, with this matrix; None if it must be asked for first."""
    way = _ways.get(_key(x, weight, bias))
    if way is None or not x.is_contiguous() or not weight.is_contiguous() or x.data_ptr() % plans.ALIGNMENT:
        return None
    if _row(bias, weight.shape[0]) is not bias:
        return None
    return way


def _row(bias: torch.Tensor | None, columns: int) -> torch.Tensor | None:
    """A bias as a row of that many columns, contiguous and aligned: libraries add another one in a way of its own."""
    if bias is None:
        return None
    return plans.aligned(bias if bias.shape[-1:] == (columns,) else bias.expand(*bias.shape[:-1], columns))


def _key(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[Hashable, ...]:
    return weight.data_ptr(), weight.shape, x.shape, x.dtype, bias is None


def _whole(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return LINEAR(rows[None], weight, bias)[0]


def _exact(x: torch.Tensor, whole: Rows, inner: int) -> Rows:
    """The same, but for float32 on a GPU: there a library splits the sums of few rows, which makes them more exact."""
    if wide.serves(x):
        return wide.summed(whole, inner)
    return _in_parts if whole is _whole and x.is_cuda and x.dtype is torch.float32 else whole


def _in_parts(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The same as a sum of products of a quarter of the columns each: fewer values are added up one by one."""
    size = rows.shape[1]
    step = -(-size // _PARTS // 16) * 16
    made = LINEAR(rows[:, :step], weight[:, :step], bias)
    for start in range(step, size, step):
        made = torch.addmm(made, rows[:, start : start + step], weight[:, start : start + step].t())
    return made


def _short(
    sums: Sums, way: Rows, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> Rows:
    """The same way for `[…, inner]`, with as few calls as can be."""
    computed = sums.computed(len(rows))
    if computed == len(rows) and sums.whole is _whole:
        return LINEAR
    if not computed and sums.reference is not None:
        short = gpu.product_of(rows, weight, bias)
        if short is not None:
            return short
    return lambda x, weight, bias: way(x.view(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


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
    row = _row(bias, weight.shape[1])

    def whole(rows: torch.Tensor, matrix: torch.Tensor, added: torch.Tensor | None) -> torch.Tensor:
        return stock(added, rows, matrix, beta=beta, alpha=alpha)

    size = ("addmm", beta, alpha, *_size(weight))
    if beta == 1 and alpha == 1:
        return _summed(size, _exact(x, whole, 0), _reference(weight, 0), x, weight, row)
    return _summed(size, whole, None, x, weight, row)


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
    whole = _exact(a, lambda rows, matrix, _: _MM(rows, matrix), 0)
    return _summed(("mm", *_size(b)), whole, _reference(b, 0), a, b, None)


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
    plans.begin()
    matmul = torch.backends.cuda.matmul
    now = (
        torch.get_num_threads(),
        matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,  # pyright: ignore[reportAttributeAccessIssue]
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation,
    )
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
