"""Sparse attention, steps of beams, arguments that are no tensors, and integers that a product makes narrow."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import models
from .case import BITS, SAME, UNCHECKED, Pair, Side, case
from .exact import gap, picked
from .expect import FUNCTION, IDENTICAL, SOUND, UNDETERMINED, semantic
from .modules import Tagger, seeded
from .pairs import padded, twice
from .tokens import VOCABULARY, first_rows, whole, words

# ---------------------------------------------------------------------- 49: full and block-sparse attention


class Blocks(nn.Module):
    """Attention, each token's over its own block of so many columns."""

    def __init__(self, size: int, width: int = 32, *, masked: bool = False) -> None:
        super().__init__()
        self.qkv, self.size, self.masked = nn.Linear(width, 3 * width), size, masked

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        rows, columns, width = hidden.shape
        if self.masked:
            block = torch.arange(columns) // self.size
            q, k, v = self.qkv(hidden).chunk(3, -1)
            scores = (q @ k.mT / width**0.5).masked_fill(block[:, None] != block, -1e9)
            return hidden + scores.softmax(-1) @ v
        parts = self.qkv(hidden).view(rows, -1, self.size, 3 * width)
        q, k, v = parts.chunk(3, -1)
        made = (q @ k.mT / width**0.5).softmax(-1) @ v
        return hidden + made.view(rows, columns, width)


def _full(pair: Pair) -> None:
    """With a block as long as the row both are the same function."""
    for side in (pair.a, pair.b):
        side.model = copy.deepcopy(side.model)
        side.model.mixers[0].size = 12
    assert gap(picked(pair.a), picked(pair.b)) < 1e-5


for _form, _masked in (("masked", True), ("in-blocks", False)):

    @case(
        f"49-block-sparse-{_form}",
        f"Full attention against block-sparse attention of one model's weights, {_form}",
        FUNCTION,
        floor=1e-2,
        check=_full,
        origin="mixers.0",
        note="no statistics over a batch, and no token that the mask of either run forbids",
    )
    def _(masked: bool = _masked) -> Pair:
        return twice(
            seeded(Tagger, Blocks(12, masked=masked)), seeded(Tagger, Blocks(4, masked=masked)), length=12
        )


@case(
    "49-block-sparse-full", "Blocks as long as the row, computed in blocks or by a mask", *SOUND, truth=SAME
)
def _() -> Pair:
    return twice(seeded(Tagger, Blocks(12, masked=True)), seeded(Tagger, Blocks(12)), length=12)


@case("49-block-sparse-batch", "Block-sparse attention, a row alone and among mates", *SOUND, truth=SAME)
def _() -> Pair:
    model = seeded(Tagger, Blocks(4))
    ids = torch.tensor([words(12, seed=n) for n in range(5)])
    return Pair(Side(model, {"input_ids": ids[:1]}, whole()), Side(model, {"input_ids": ids}, first_rows(1)))


# ---------------------------------------------------------------------- 49: steps of beams


class Step(nn.Module):
    """The logits of the next token, one row a beam: of the form of pooled vectors."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.model, self.temperature = models.llama("sdpa"), temperature

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return (logits[:, -1] / self.temperature).log_softmax(-1)


def _beams(a: nn.Module, b: nn.Module, *, prompts: int = 1) -> Pair:
    prompt = words(5)
    rows = [[*prompt, 11 + beam] for beam in range(3)]
    others = [[*words(5, seed=1), 21 + beam] for beam in range(3 * (prompts - 1))]
    given = [
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids), 6).long()}
        for ids in (rows, rows + others)
    ]
    return Pair(Side(a, given[0], whole()), Side(b, given[1], first_rows(3)))


def _temperature_alone(pair: Pair) -> None:
    one, other = picked(pair.a), picked(pair.b)
    assert gap(one, (other * 0.5).log_softmax(-1)) < 1e-4


@case(
    "49-beam-step-temperature",
    "The logits of a step of three beams, with another temperature",
    FUNCTION,
    floor=1e-2,
    check=_temperature_alone,
    origin="div",
    note="[beams, vocabulary] looks like pooled vectors",
)
def _() -> Pair:
    return _beams(Step(), Step(0.5))


@case(
    "49-beam-step-batch",
    "The logits of a step of three beams, alone and beside another prompt's",
    *SOUND,
    truth=SAME,
)
def _() -> Pair:
    model = Step()
    return _beams(model, model, prompts=2)


# ---------------------------------------------------------------------- 49: arguments that are no tensors


class Called(nn.Module):
    """One function of the hidden states, called with an argument."""

    def __init__(self, function: Callable[[Tensor, Any], Tensor], argument: Any) -> None:
        super().__init__()
        self.function, self.argument = (function,), argument

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + self.function[0](hidden, self.argument)


def _attend(x: Tensor, **how: Any) -> Tensor:
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], **how)[:, 0]


ARGUMENTS: dict[str, tuple[Callable[[Tensor, Any], Tensor], Any, Any, Any, str, str]] = {
    "scale": (lambda x, v: _attend(x, scale=v), 0.2, 0.3, 0.2, "scale", "scaled_dot_product_attention"),
    "is-causal": (lambda x, v: _attend(x, is_causal=v), True, False, True, "is_causal", "scaled_dot_product_attention"),
    "eps": (lambda x, v: F.layer_norm(x, (32,), eps=v), 1e-5, 1e-2, 0.00001, "eps", "layer_norm"),
    "approximate": (lambda x, v: F.gelu(3 * x, approximate=v), "none", "tanh", "none", "approximate", "gelu"),
    "dim": (lambda x, v: x.softmax(dim=v), -1, 1, 2, "dim", "softmax"),
    "clamp": (lambda x, v: x.clamp(-1, v), 0.5, 0.25, 0.5, "max", "clamp"),
    "factor": (lambda x, v: x * v, 0.5, 0.25, 0.5, "other", "mul"),
    "order": (lambda x, v: x.norm(v, -1, keepdim=True), 2, 3, 2.0, "p", "norm"),
}  # fmt: skip
"""Function, its argument in runs A and B, another spelling of A's, and the names of the argument and of the op."""


def _called(function: Callable[[Tensor, Any], Tensor], a: Any, b: Any) -> Pair:
    return twice(*(seeded(Tagger, Called(function, argument), spread=1.0) for argument in (a, b)))


for _name, (_function, _a, _b, _spelt, _, _op) in ARGUMENTS.items():

    @case(
        f"49-argument-{_name}",
        f"An op called with another {_name}",
        FUNCTION,
        floor=1e-6,
        origin=f"mixers.0/{_op}",
    )
    def _(function: Any = _function, a: Any = _a, b: Any = _b) -> Pair:
        return _called(function, a, b)

    @case(
        f"49-argument-{_name}-spelt",
        f"An op called with the same {_name}, spelt otherwise",
        IDENTICAL,
        truth=BITS,
    )
    def _(function: Any = _function, a: Any = _a, b: Any = _spelt) -> Pair:
        return _called(function, a, b)


@case(
    "49-argument-padded",
    "Attention of another scale in a model that is padded as well",
    FUNCTION,
    floor=1e-6,
    origin="scaled_dot_product_attention",
)
def _() -> Pair:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            seen = None if mask is None else mask[:, None, None].bool()
            return hidden + _attend(hidden, attn_mask=seen, scale=self.scale)

    one, other = (seeded(Tagger, Scaled(scale), spread=1.0) for scale in (0.2, 0.3))
    return padded(one, model_b=other)


@case(
    "49-configuration",
    "A Llama with another epsilon in its configuration",
    FUNCTION,
    floor=1e-6,
    origin="input_layernorm",
)
def _() -> Pair:
    return twice(models.llama("sdpa"), models.llama("sdpa", rms_norm_eps=1e-2))


# ---------------------------------------------------------------------- 49: integers that a product makes narrow


class Angles(nn.Module):
    """Rotates embeddings by positions times speeds, both of a dtype, or the positions as they are."""

    def __init__(self, positions: torch.dtype) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16)
        self.register_buffer("speeds", torch.tensor([1.0, 0.5, 0.25, 0.125] * 2))
        self.positions = positions

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        columns = torch.arange(input_ids.shape[1])
        speeds = self.speeds.to(torch.bfloat16 if self.positions is torch.int64 else self.positions)
        angles = (columns.to(self.positions)[:, None] * speeds).float()
        angles = torch.cat([angles, angles], -1)
        turned = torch.cat([-x[..., 8:], x[..., :8]], -1)
        return self.out(x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype))


def _angles(length: int, a: torch.dtype, b: torch.dtype, *, mates: int = 0) -> Pair:
    pair = [models.cast(seeded(Angles, dtype), torch.bfloat16) for dtype in (a, b)]
    ids = torch.tensor([words(length, seed=n) for n in range(1 + mates)])
    return Pair(
        Side(pair[0], {"input_ids": ids[:1]}, whole()), Side(pair[1], {"input_ids": ids}, first_rows(1))
    )


def _collapse(pair: Pair) -> None:
    positions = torch.arange(300)
    assert len((positions * torch.ones(1, dtype=torch.bfloat16)).unique()) < 300
    a, b = picked(pair.a), picked(pair.b)
    assert gap(a, b) > 0.1


@case(
    "49-integers-times-bfloat16",
    "300 integer positions times speeds in bfloat16, in which they are fewer",
    semantic(None, by_design=None),
    truth=UNCHECKED,
    check=_collapse,
    note="nothing in the source says so: torch casts the integers to the other tensor's dtype",
)
def _() -> Pair:
    return _angles(300, torch.float32, torch.int64)


@case("49-integers-times-bfloat16-few", "200 of them, all of which bfloat16 has", *SOUND, truth=SAME)
def _() -> Pair:
    return _angles(200, torch.int64, torch.int64, mates=1)


@case(
    "49-integers-times-bfloat16-in-both",
    "300 of them in both runs, one with a batch mate",
    *SOUND,
    truth=SAME,
)
def _() -> Pair:
    return _angles(300, torch.int64, torch.int64, mates=1)


# ---------------------------------------------------------------------- 49: operators that decide inside


@torch.library.custom_op("corpus::two_ways", mutates_args=())
def two_ways(x: Tensor, other: Tensor) -> Tensor:
    """Goes one way where x is above the other, and another where it is not."""
    return torch.where(x > other, x + 1, x * 0.5 - 1)


@two_ways.register_fake
def _(x: Tensor, other: Tensor) -> Tensor:
    return torch.empty_like(x)


class Ways(nn.Module):
    """Sums parts in two orders, and has an operator compare them.

    Args:
        by: how far the sums are apart in exact arithmetic.
    """

    def __init__(self, by: float, backwards: bool = False) -> None:
        super().__init__()
        self.by, self.backwards = by, backwards

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        parts = [hidden * (0.1 * n) for n in range(1, 13)]
        total, again = torch.zeros_like(hidden), torch.zeros_like(hidden)
        for part in reversed(parts) if self.backwards else parts:
            total = total + part
        for part in parts[::2] + parts[1::2]:
            again = again + part
        return hidden + two_ways(total, again + self.by)


def _tied(pair: Pair) -> None:
    for exact in (False, True):
        assert gap(picked(pair.a, exact=exact), picked(pair.b, exact=exact)) > 1e-2
    for side in (pair.a, pair.b):
        side.model = copy.deepcopy(side.model)
        side.model.mixers[0].by = 0.01
    assert gap(picked(pair.a), picked(pair.b)) < 1e-4


@case(
    "49-operator-decides-inside",
    "An operator of a library that goes two ways by what is equal in exact arithmetic",
    UNDETERMINED,
    truth=UNCHECKED,
    check=_tied,
    note="the decision can't be seen or held; the evidence names the operator, by an experiment",
)
def _() -> Pair:
    return twice(*(seeded(Tagger, Ways(0.0, backwards), spread=1.0) for backwards in (False, True)))


@case("49-operator-decides-clearly", "The same where the two are apart", *SOUND, truth=SAME)
def _() -> Pair:
    return twice(*(seeded(Tagger, Ways(0.01, backwards), spread=1.0) for backwards in (False, True)))
