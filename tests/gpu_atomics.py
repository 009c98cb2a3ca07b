"""Operations whose kernels add in no fixed order on a GPU, each with a twin that does the same in a fixed one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 1 << 17


class Calls(nn.Module):
    """A model that calls one function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.function(**inputs)


def given(device: str, places: int = 8) -> dict[str, Tensor]:
    """Many values of several sizes, and the few places into which they are summed."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, generator=generator) * 1e3
    index = torch.randint(0, places, (ROWS,), generator=generator)
    return {"x": x.to(device), "index": index.to(device)}


def _zeros(x: Tensor, places: int = 8) -> Tensor:
    return torch.zeros(places, device=x.device)


def in_order(x: Tensor, index: Tensor) -> Tensor:
    """The sums by place, each made of its own values in their order."""
    return torch.stack([torch.where(index == place, x, 0.0).sum() for place in range(8)])


ATOMIC: dict[str, Callable[..., Tensor]] = {
    "index_add": lambda x, index: _zeros(x).index_add(0, index, x),
    "scatter_add": lambda x, index: _zeros(x).scatter_add(0, index, x),
    "scatter_reduce": lambda x, index: _zeros(x).scatter_reduce(0, index, x, "sum"),
    "index_reduce": lambda x, index: _zeros(x).index_reduce(0, index, x, "mean"),
    "bincount": lambda x, index: torch.bincount(index, x, 8),
    "mean of groups": lambda x, index: _zeros(x).index_add(0, index, x) / torch.bincount(index, minlength=8),
}
"""Sums of many values into few places."""

FIXED: dict[str, Callable[..., Tensor]] = {
    "one sum a place": in_order,
    "one-hot product": lambda x, index: F.one_hot(index, 8).to(x.dtype).T @ x,
    "index_put of sorted": lambda x, index: _zeros(x).index_put((index,), x, accumulate=True),
    "index_add without collisions": lambda x, index: _zeros(x, ROWS).index_add(
        0, torch.arange(ROWS, device=x.device).flip(0), x
    ),
    "scatter without collisions": lambda x, index: _zeros(x, ROWS).scatter_add(
        0, torch.arange(ROWS, device=x.device), x
    ),
    "largest of each": lambda x, index: _zeros(x).scatter_reduce(0, index, x, "amax"),
    "integers": lambda x, index: _zeros(x).long().index_add(0, index, x.long()).to(x.dtype),
    "lookup": lambda x, index: F.embedding(index, x[:64].view(8, 8)),
}
"""The same kinds of calls, whose order is fixed or does not matter."""

EITHER: dict[str, Callable[..., Tensor]] = {
    "cumsum": lambda x, index: x.cumsum(0),
    "histc": lambda x, index: torch.histc(x, 64),
    "embedding_bag": lambda x, index: F.embedding_bag(index[None], x[:64].view(8, 8), mode="sum"),
    "sort": lambda x, index: x[index.argsort(stable=False)],
}
"""Whether these repeat themselves is measured, and the verdict has to agree with it."""


def varies(function: Callable[..., Tensor], inputs: dict[str, Tensor], times: int = 30) -> bool:
    """Whether a function, called again with the same inputs, gives other bits."""
    first = function(**inputs)
    return any(not torch.equal(first, function(**inputs)) for _ in range(times))
