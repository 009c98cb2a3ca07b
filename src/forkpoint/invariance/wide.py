"""Products of float32 on a GPU, whose sums are made in float64 and rounded once.

A library splits the sums of few rows into many parts, and adds those of many rows one by one: no order of float32 serves
both, without being less exact than the library's for few rows. A product of float32 values is exact in float64, and what
is left of the order of its sums there is far below the last place of the result.
"""

from __future__ import annotations

from typing import Any

import torch

from forkpoint.invariance import gpu
from forkpoint.invariance.plans import Rows

_ROOM = 1 << 26
"""Values of a matrix that are made float64 at a time: half a gigabyte."""
_QUICK = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))


def is_quick(capability: tuple[int, int]) -> bool:
    """Whether GPUs of a compute capability multiply in float64 at a pace like that of float32.

    Those for data centres do; others take 16 to 64 times as long.

    >>> is_quick((9, 0)), is_quick((8, 9)), is_quick((12, 0))
    (True, False, False)
    """
    return capability in _QUICK


def serves(x: torch.Tensor) -> bool:
    """Whether products of a tensor are to be summed so: float32 that is meant as such, on a GPU that is quick."""
    return (
        x.is_cuda
        and x.dtype is torch.float32
        and torch.backends.cuda.matmul.fp32_precision != "tf32"
        and is_quick(torch.cuda.get_device_capability(x.device))
    )


def summed(whole: Rows, inner: int) -> Rows:
    """The same product as `whole`, of float32, summed in float64.

    Args:
        whole: a product in any dtype; of a part of the matrix's columns it is that part of the result.
        inner: the dimension of the matrix that is summed over.
    """

    def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if gpu.needs_gradients(rows, weight, bias):
            return gpu.DifferentiableProduct.apply(rows, weight, inner, bias, forward)
        return forward(rows, weight, inner, bias)

    def forward(rows: torch.Tensor, weight: torch.Tensor, inner: int, bias: torch.Tensor | None) -> Any:
        columns = weight.shape[1 - inner]
        step = max(64, _ROOM // max(1, weight.shape[inner]) // 64 * 64)
        exact = rows.double()
        added = None if bias is None else bias.double()
        if columns <= step:
            return whole(exact, weight.double(), added).to(rows.dtype)
        out = rows.new_empty(rows.shape[0], columns)
        for start in range(0, columns, step):
            count = min(step, columns - start)
            part = None if added is None else added.narrow(-1, start, count)
            out[:, start : start + count] = whole(
                exact, weight.narrow(1 - inner, start, count).double(), part
            )
        return out

    return product
