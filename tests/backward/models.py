"""Tiny models with a loss, and faults of the backward pass that can be planted in any of their modules."""

from __future__ import annotations

import copy
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import forkpoint as fp

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3], [8, 4, 6, 2, 6, 4]])
INPUTS = {"input_ids": IDS, "labels": IDS}


class Tiny(nn.Module):
    """Three layers that write in place, cut their values and put them together again.

    Args:
        way: `plain`; `reentrant` or `saved`, with its layers checkpointed; `cut`, where no gradient gets into the second.
    """

    def __init__(self, way: str = "plain") -> None:
        super().__init__()
        self.way = way
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([Layer() for _ in range(3)])
        self.head = nn.Linear(8, 10)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.embed(input_ids)
        for index, layer in enumerate(self.layers):
            if self.way in ("reentrant", "saved"):
                x = checkpoint(layer, x, use_reentrant=self.way == "reentrant")
            else:
                x = layer(x.detach() if self.way == "cut" and index == 1 else x)
        logits = self.head(x)
        return {
            "loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"),
            "logits": logits,
        }


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.inner(x).tanh().chunk(2, -1)
        both = torch.cat([left * right, left + right], -1)
        both += x
        both[..., :2] = both[..., :2] * 0.5
        return both.transpose(0, 1).contiguous().transpose(0, 1)


class Sound(torch.autograd.Function):
    """Returns what it is given, and hands back the gradient as it comes."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * Sound.factor


class Wrong(Sound):
    """Hands back a gradient that is one percent too large."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 1.01


def tiny(way: str = "plain") -> Tiny:
    """The same weights each time."""
    torch.manual_seed(0)
    return Tiny(way)


def planted(model: nn.Module, path: str, kind: type[torch.autograd.Function]) -> Any:
    """A copy of a model with what goes into one of its modules put through a function of autograd first."""
    other = copy.deepcopy(model)
    module = other.get_submodule(path)
    forward = type(module).forward
    module.forward = MethodType(
        lambda self, x, *args, **kwargs: forward(self, kind.apply(x), *args, **kwargs), module
    )
    return other


class Rounded(Sound):
    """Rounds to bfloat16 and back, which float64 does not do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().float()


class Product(torch.autograd.Function):
    """A product of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, gradients[0].flatten(0, -2).t() @ x.flatten(0, -2)


def with_product(kind: type[torch.autograd.Function]) -> nn.Module:
    model = tiny()
    model.head.forward = lambda input: kind.apply(input, model.head.weight) + model.head.bias  # noqa: A006
    return model


def compared(a: Any, b: Any, **options: Any) -> fp.Result:
    runs = (one if isinstance(one, fp.Run) else fp.Run(one, INPUTS) for one in (a, b))
    return fp.compare(*runs, backward=True, **options)


def statuses(result: fp.Result) -> dict[str, str]:
    assert result.backward is not None
    return {one.name: one.status for one in result.backward.parameters}
