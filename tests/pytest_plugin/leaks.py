"""Ten models, each with a leak, and where it is: the tests with which a project of somebody else would find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tests.architectures import ARCHITECTURES
from torch import Tensor, nn


class Leaking(nn.Module):
    """A part of a model, to whose output something is added that depends on more than it should.

    Attributes:
        inner: the part as it was.
        leak: makes what is added of what goes in, `[rows, columns, features]`.
    """

    def __init__(self, inner: nn.Module, leak: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.leak = inner, leak

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.inner(hidden, *args, **kwargs)
        return out + 0.2 * self.leak(hidden)


class Uncounted(nn.Module):
    """A table of learned positions that counts columns, whatever positions it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, position_ids: Tensor) -> Tensor:
        return self.inner(torch.arange(position_ids.shape[-1]).expand_as(position_ids))


class Restarted(nn.Module):
    """A rotary table that counts the columns of the call, whatever positions it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor, position_ids: Tensor, **kwargs: Any) -> Any:
        return self.inner(hidden, torch.arange(position_ids.shape[-1]).expand_as(position_ids), **kwargs)


class Unmasked(nn.Module):
    """An attention that is causal, and sees padding."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        if attention_mask is not None:
            length = attention_mask.shape[-1]
            later = torch.ones(attention_mask.shape[-2], length, dtype=torch.bool).triu(
                1 + length - attention_mask.shape[-2]
            )
            attention_mask = torch.zeros_like(attention_mask, dtype=torch.float32).masked_fill(later, -1e9)
        return self.inner(*args, attention_mask=attention_mask, **kwargs)


class Quantized(nn.Module):
    """Activations in steps of the largest of all rows, as int8 with one scale a tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        scale = hidden.abs().amax() / 127
        return self.inner((hidden / scale).round() * scale)


@dataclass(frozen=True)
class Leak:
    """Where a leak is planted, and with which assertion a test finds it.

    Attributes:
        name: what it is.
        architecture: the model's.
        path: the module that is replaced.
        plant: makes of it one that leaks.
        assertion: of `fp.testing`, without `assert_`.
        options: of the assertion.
    """

    name: str
    architecture: str
    path: str
    plant: Callable[[nn.Module], nn.Module]
    assertion: str
    options: dict[str, Any]

    def model(self, *, sound: bool = False) -> nn.Module:
        model = ARCHITECTURES[self.architecture].build()
        if not sound:
            parent, _, name = self.path.rpartition(".")
            owner = model.get_submodule(parent)
            setattr(owner, name, self.plant(getattr(owner, name)))
        return model


def _adding(leak: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], nn.Module]:
    return lambda inner: Leaking(inner, leak)


LEAKS = (
    Leak("mean over columns", "llama", "model.layers.1.mlp", _adding(lambda x: x.mean(1, keepdim=True)), "padding_invariant", {}),
    Leak("sum over columns", "bert", "encoder.layer.0.intermediate.dense", _adding(lambda x: x.sum((1, 2), keepdim=True)), "padding_invariant", {"sides": ["right"]}),
    Leak("no mask", "opt", "model.decoder.layers.0.self_attn", Unmasked, "padding_invariant", {"sides": ["left"]}),
    Leak("no positions", "gpt2", "transformer.wpe", Uncounted, "padding_invariant", {"sides": ["left"]}),
    Leak("mean over rows", "mistral", "model.layers.0.mlp", _adding(lambda x: x.mean(0, keepdim=True)), "batch_invariant", {}),
    Leak("the row before", "qwen3", "model.layers.1.mlp", _adding(lambda x: x.roll(1, 0)), "batch_invariant", {}),
    Leak("one scale for all", "phi3", "model.layers.1.mlp", Quantized, "batch_invariant", {}),
    Leak("sum over all", "t5", "encoder.block.0.layer.1.DenseReluDense", _adding(lambda x: x.sum((0, 1), keepdim=True)), "batch_invariant", {}),
    Leak("columns of the call", "gpt_neox", "gpt_neox.layers.0.mlp", _adding(lambda x: x.mean(1, keepdim=True)), "cache_consistent", {}),
    Leak("positions of the call", "gemma2", "model.rotary_emb", Restarted, "cache_consistent", {}),
)  # fmt: skip
