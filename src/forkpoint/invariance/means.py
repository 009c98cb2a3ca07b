"""Sums and means over the last dimension on a GPU, whose order follows the number of rows."""

from __future__ import annotations

from typing import Any

import torch

from forkpoint.invariance import plans
from forkpoint.invariance.dispatch import Kernel, Stock, conditional, overload
from forkpoint.invariance.plans import Sums


@conditional("mean.dim", "sum.dim_IntList")
def over_rows(name: str) -> Kernel | None:
    """The kernel for an op; None where there is no GPU, since a CPU sums each row by itself."""
    if not torch.cuda.is_available():
        return None
    stock = overload(name)

    def kernel(
        _: Stock, x: torch.Tensor, dim: Any, keepdim: bool = False, *, dtype: torch.dtype | None = None
    ) -> Any:
        return planned(name, stock, x, dim, keepdim, dtype)

    return kernel


def planned(
    name: str, stock: Stock, x: torch.Tensor, dim: Any, keepdim: bool, dtype: torch.dtype | None
) -> Any:
    """The sums of the rows of a tensor on a GPU; NotImplemented for anything else."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    if (
        x.device.type != "cuda"
        or not x.is_floating_point()
        or dims not in ((-1,), (x.dim() - 1,))
        or not x.numel()
    ):
        return NotImplemented
    rows = plans.aligned(x.reshape(-1, x.shape[-1]))

    def whole(given: torch.Tensor, _: torch.Tensor, __: torch.Tensor | None) -> torch.Tensor:
        return stock(given, [-1], True, dtype=dtype)

    sums = Sums((name, x.shape[-1], x.dtype, dtype, x.device), whole, cancelling)
    made = sums.plan(rows, rows, None)(rows, rows, None)
    return made.view(*x.shape[:-1], 1) if keepdim else made.view(x.shape[:-1])


def cancelling(rows: torch.Tensor, weight: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of values that come with their negatives; see `plans.cancelling`."""
    generator = torch.Generator(rows.device).manual_seed(seed)
    size, device = rows.shape[1], rows.device
    order = torch.randperm(size, generator=generator, device=device)
    given = torch.randn(rows.shape, generator=generator, device=device, dtype=torch.float32)
    given *= torch.exp2(torch.randint(-8, 9, rows.shape, generator=generator, device=device).float())
    given[:, order[: size // 2]] = -given[:, order[size // 2 : size // 2 * 2]]
    if size % 2:
        given[:, order[-1]] = 0
    return plans.aligned(given.to(rows.dtype)), weight
