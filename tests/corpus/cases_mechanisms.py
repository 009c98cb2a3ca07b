"""Mechanisms by experiment: two functions that have the form of a known cause, and known causes in unknown forms."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import decoders, mixers, modules
from .case import Pair, Side, case
from .expect import (
    FUNCTION,
    LEAK_UNMASKED,
    POSITIONS,
    SOUND,
)
from .modules import Tagger, seeded
from .pairs import batched, cached, padded, twice
from .tokens import VOCABULARY, at, pad, row, words


class Variant(nn.Module):
    """A mixer of which run b's model has another number in one place.

    Attributes:
        other: whether it is run b's.
    """

    def __init__(self, other: bool = False) -> None:
        super().__init__()
        self.other = other


def _models(make: type[Variant]) -> tuple[Any, Any]:
    """Both variants, with the same weights."""
    return tuple(seeded(Tagger, make(other), modules.Feedforward()) for other in (False, True))  # type: ignore[return-value]


# ---------------------------------------------------------------------- two functions: norms, softmax, scales


class NormEps(Variant):
    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], eps=1e-2 if self.other else 1e-5)


class SoftmaxDim(Variant):
    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + hidden.softmax(1 if self.other else -1)


class Spread(Variant):
    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        centred = hidden - hidden.mean(-1, keepdim=True)
        return centred / hidden.std(-1, keepdim=True, unbiased=not self.other)


class TokenScale(Variant):
    """int8 with a scale for each token; run b's has another number of steps."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        scale = hidden.abs().amax(-1, keepdim=True) / (120 if self.other else 127)
        return (hidden / scale).round().clamp(-128, 127) * scale


class Rotary(Variant):
    """Rotary positions by column, their table made in forward; run b's has another base."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        half = hidden.shape[-1] // 2
        base = 500000.0 if self.other else 10000.0
        angles = torch.arange(hidden.shape[1])[:, None] * base ** (-torch.arange(half) / half)
        first, second = hidden[..., :half], hidden[..., half:]
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
        )


@case(
    "43-norm-eps-padded",
    "LayerNorm with another epsilon, alone or padded",
    FUNCTION,
    origin="layer_norm",
    floor=1e-3,
)
def _() -> Pair:
    a, b = _models(NormEps)
    return padded(a, model_b=b)


@case("43-norm-eps-mates", "The same, alone or among mates", FUNCTION, origin="layer_norm", floor=1e-3)
def _() -> Pair:
    a, b = _models(NormEps)
    pair = batched(a)
    pair.b.model = b
    return pair


@case("43-norm-padded-sound", "The same epsilon, alone or padded", *SOUND)
def _() -> Pair:
    return padded(_models(NormEps)[0])


@case(
    "43-softmax-dim", "Softmax over the features, or over the tokens", FUNCTION, origin="softmax", floor=1e-3
)
def _() -> Pair:
    return twice(*_models(SoftmaxDim))


@case("43-softmax-dim-padded", "The same, run b padded", FUNCTION, origin="softmax", floor=1e-3)
def _() -> Pair:
    a, b = _models(SoftmaxDim)
    return padded(a, model_b=b)


@case(
    "43-std-unbiased",
    "A standard deviation, unbiased or not, run b padded",
    FUNCTION,
    origin="std",
    floor=1e-3,
)
def _() -> Pair:
    a, b = _models(Spread)
    return padded(a, model_b=b)


@case(
    "43-scale-per-token-steps",
    "A scale for each token, of 127 or 120 steps, alone or in a batch",
    FUNCTION,
    origin=("div", "amax", "round"),
    floor=1e-4,
)
def _() -> Pair:
    a, b = _models(TokenScale)
    pair = batched(a)
    pair.b.model = b
    return pair


@case(
    "43-rope-base-padded",
    "A rotary base of 10,000 or 500,000, made in forward, run b padded",
    FUNCTION,
    floor=1e-3,
)
def _() -> Pair:
    a, b = _models(Rotary)
    return padded(a, model_b=b)


@case("43-rope-base", "The same on the same inputs", FUNCTION, floor=1e-3)
def _() -> Pair:
    return twice(*_models(Rotary))


@case("43-rope-padded-sound", "The same base, alone or padded on the right", *SOUND)
def _() -> Pair:
    return padded(_models(Rotary)[0])


@case(
    "43-lstm-packed-or-not",
    "A bidirectional LSTM over the columns, or over packed rows, both padded",
    FUNCTION,
    origin="mixers.0.cell",
    floor=1e-3,
)
def _() -> Pair:
    ids, mask = pad([words(9), words(6, 1)])
    given = {"input_ids": ids, "attention_mask": mask}
    a, b = (seeded(Tagger, mixers.Recurrence(nn.LSTM, both=True, packed=packed)) for packed in (False, True))
    return Pair(Side(a, given, at(mask)), Side(b, given, at(mask)))


# ---------------------------------------------------------------------- several calls, packed rows, a port


class ScaledDecoder(decoders.CachedDecoder):
    factor = 1.0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, past: int) -> Tensor:
        return super().attend(query * self.factor, key, value, past)


@case(
    "43-steps-scale",
    "Prefill and steps, or one forward of a model with another scale",
    FUNCTION,
    origin="mul",
    floor=1e-3,
)
def _() -> Pair:
    a, b = seeded(ScaledDecoder), seeded(ScaledDecoder)
    b.factor = 1.5
    return cached(a, model_b=b)


@case("43-steps-scale-sound", "The same scale", *SOUND)
def _() -> Pair:
    return cached(seeded(ScaledDecoder))


class Scaled(Variant):
    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden * (1.5 if self.other else 1.0)


def packed(a: Any, b: Any, **more: Any) -> Pair:
    rows = [words(5), words(7, 1)]
    ids, mask = pad(rows)
    place = torch.cat([torch.arange(len(tokens)) for tokens in rows])[None]
    return Pair(
        Side(a, {"input_ids": ids, "attention_mask": mask}, at(mask)),
        Side(
            b,
            {"input_ids": row(chain(*rows)), **more},
            at(torch.ones(1, 12)),
            layout=lambda fp: fp.Layout.packed(place),
        ),
    )


@case(
    "43-packed-scale",
    "A batch, or packed rows of a model with another scale",
    FUNCTION,
    origin="mul",
    floor=1e-2,
)
def _() -> Pair:
    return packed(*_models(Scaled))


@case("43-packed-sound", "The same scale", *SOUND)
def _() -> Pair:
    model = _models(Scaled)[0]
    return packed(model, model)


class Looked(nn.Module):
    """Adds a learned position, looked up by the ids given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, modules.WIDTH), nn.Embedding(64, modules.WIDTH)
        self.head = nn.Linear(modules.WIDTH, VOCABULARY)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])[None]
        return self.head(self.embed(input_ids) + self.place(position_ids))


@case(
    "43-packed-positions-off",
    "A batch, or packed rows whose positions are two too high",
    POSITIONS,
    origin="place/embedding",
    floor=1e-2,
)
def _() -> Pair:
    model = seeded(Looked)
    off = torch.cat([torch.arange(5), torch.arange(7)])[None] + 2
    return packed(model, model, position_ids=off)


class Ported(Looked):
    """The same weights under other names, and its positions by a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("columns", torch.arange(64)[None], persistent=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        places = self.columns[:, : input_ids.shape[1]]
        return self.head((self.embed(input_ids) + self.place(places)) * 1.5)


@case("43-port-scale", "A port written otherwise, which scales its embeddings", FUNCTION, floor=1e-2)
def _() -> Pair:
    return twice(seeded(Looked), seeded(Ported))


# ---------------------------------------------------------------------- forms without a length that differs


class Prefixed(nn.Module):
    """Virtual tokens in front, `count` of them, under rotary positions by column."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.embed, self.virtual = nn.Embedding(VOCABULARY, 16), nn.Parameter(torch.zeros(3, 16))
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        front = self.virtual[: self.count].expand(input_ids.shape[0], -1, -1)
        hidden = torch.cat([front, self.embed(input_ids)], 1)
        angles = torch.arange(hidden.shape[1])[:, None] * 0.3
        turned = hidden * angles.cos() + hidden.roll(1, -1) * angles.sin()
        return self.head(turned[:, self.count :])


@case(
    "43-virtual-tokens", "No virtual tokens in front, or three", FUNCTION, origin=("mul", "cat"), floor=1e-3
)
def _() -> Pair:
    return twice(seeded(Prefixed, 0), seeded(Prefixed, 3))


class Guided(nn.Module):
    """A model run twice, with the tokens and without, and the two results combined."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.inner, self.weight = Tagger(modules.Feedforward()), weight

    def forward(self, input_ids: Tensor) -> Tensor:
        given, empty = self.inner(input_ids), self.inner(torch.zeros_like(input_ids))
        fading = torch.arange(input_ids.shape[1])[:, None].cos()
        return empty + (given - empty) * self.weight * fading


@case("43-guidance", "A model run twice for guidance, of weight 1 or 1.5", FUNCTION, origin="mul", floor=1e-3)
def _() -> Pair:
    return twice(seeded(Guided, 1.0), seeded(Guided, 1.5))


class SinePlaces(nn.Module):
    """Positions by the mask, relative to the last, as angles: sound. A convolution that sees padding: not."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        assert mask is not None
        place = mask.cumsum(1).to(hidden.dtype)
        place = place / (place[:, -1:] + 1e-6) * 6.28
        kernel = torch.full((hidden.shape[-1], 1, 3), 0.3, dtype=hidden.dtype)
        mixed = F.conv1d(hidden.transpose(1, 2), kernel, padding=1, groups=hidden.shape[-1]).transpose(1, 2)
        return hidden + mixed + place.sin()[..., None]


@case(
    "43-sine-places-leak",
    "Sine positions by the mask beside padding that leaks",
    LEAK_UNMASKED,
    origin="conv1d",
    floor=1e-3,
)
def _() -> Pair:
    return padded(seeded(Tagger, SinePlaces()))
