"""Models among whose values are some that can't be read: tensors that wrap others, and storages that were let go of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Wrapping(Tensor):
    """A tensor that has another one, and no memory of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[Wrapping], inner: Tensor) -> Wrapping:  # noqa: PYI034 - Self is not allowed where cls is declared
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device, strides=inner.stride()
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: x.inner if isinstance(x, cls) else x, (args, kwargs or {}))
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, func(*args, **kwargs))


class Between(nn.Module):
    """Two layers, and something done with what passes between them: `does(model, x)` gives the second one's input.

    Args:
        does: what is done with the first layer's output.
        by_length: how much what it gives is scaled by the length of the input, so that padding changes it.
    """

    def __init__(self, does: Callable[[Tensor], Tensor], *, by_length: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.rand(weight.shape, generator=generator) - 0.5)
        self.does, self.by_length = does, by_length

    def forward(self, x: Tensor) -> Tensor:
        y = self.does(self.first(x))
        if self.by_length:
            y = y * (1 + self.by_length * x.shape[1])
        return self.last(y)


def let_go(y: Tensor) -> Tensor:
    """A value whose memory is given back after its last use."""
    doubled = y * 2
    z = torch.relu(y) + doubled.mean(-1, keepdim=True)
    doubled.untyped_storage().resize_(0)
    return z


def made_smaller(y: Tensor) -> Tensor:
    """The same, of which a little is kept."""
    doubled = y * 2
    z = torch.relu(y) + doubled.mean(-1, keepdim=True)
    doubled.untyped_storage().resize_(8)
    return z


def shared(y: Tensor) -> Tensor:
    """Memory that several tensors are on, let go of through one of them; some of them would have to be copied."""
    base = y * 2
    odd = base.view(-1)[1:]
    across = base.transpose(-1, -2)
    z = torch.relu(y) + base.mean(-1, keepdim=True)
    _ = across * 2, odd * 2
    across.untyped_storage().resize_(16)
    return z


def wrapped(y: Tensor) -> Tensor:
    return torch.relu(Wrapping(y) * 2).inner * 1.0  # pyright: ignore[reportOperatorIssue]


def masked(y: Tensor) -> Tensor:
    from torch.masked import masked_tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        return (masked_tensor(y, y > 0) * 2.0).to_tensor(0.0)  # pyright: ignore[reportAttributeAccessIssue]


def fake(y: Tensor) -> Tensor:
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        _ = (mode.from_tensor(y) * 2)[:, 1:] + 1
    return torch.relu(y)


def distributed(y: Tensor) -> Tensor:
    """In a process group of one process, which has to be there."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate

    mesh = init_device_mesh("cpu", (1,))
    return torch.relu(DTensor.from_local(y, mesh, [Replicate()]) * 2).to_local() * 1.0  # pyright: ignore[reportAttributeAccessIssue]
