"""Mechanisms by experiment: two functions that have the form of a known cause, and known causes in unknown forms."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import decoders, mixers, models, modules
from .case import Pair, Side, case
from .expect import (
    FUNCTION,
    LEAK_UNMASKED,
    MASK,
    PACKING,
    POOLING,
    POSITIONS,
    SCALE,
    SOUND,
    STATISTICS,
    semantic,
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
    origin="lstm",
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


def _packed(a: Any, b: Any, **more: Any) -> Pair:
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
    return _packed(*_models(Scaled))


@case("43-packed-sound", "The same scale", *SOUND)
def _() -> Pair:
    model = _models(Scaled)[0]
    return _packed(model, model)


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
    return _packed(model, model, position_ids=off)


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


# ---------------------------------------------------------------------- pooling, and what is not pooling


class Pooled(nn.Module):
    """A masked mean of what a mixer makes: right in itself."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.embed, self.mixer = nn.Embedding(VOCABULARY, modules.WIDTH), mixer
        self.head = nn.Linear(modules.WIDTH, modules.WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.mixer(self.embed(input_ids), attention_mask)
        weights = attention_mask[..., None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


class Shift(nn.Module):
    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + hidden.roll(1, 1)


@case(
    "43-pool-after-shift",
    "A masked mean of tokens that each had their neighbour added, padding among them",
    LEAK_UNMASKED,
    origin=("add", "roll"),
    floor=1e-3,
)
def _() -> Pair:
    return padded(seeded(Pooled, Shift()), "left", mates=1, vector=True)


@case("43-pool-after-fourier", "The same after a Fourier transform", LEAK_UNMASKED, origin="fft", floor=1e-3)
def _() -> Pair:
    return padded(seeded(Pooled, mixers.Fourier()), mates=1, vector=True)


@case("43-pool-sound", "The same without mixing", *SOUND)
def _() -> Pair:
    return padded(seeded(Pooled, modules.Feedforward()), mates=1, vector=True)


class FirstColumn(nn.Module):
    """BERT's hidden state in column 0, where a row's first token is unless it is padded on the left."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = models.bert("sdpa")

    def forward(self, **given: Tensor) -> Tensor:
        return self.encoder(**given).last_hidden_state[:, 0]


@case(
    "43-pool-column-left",
    "BERT padded on the left, positions right: its pooled output takes column 0",
    POOLING,
    origin="getitem",
    floor=1e-2,
)
def _() -> Pair:
    return padded(FirstColumn(), "left", vector=True, position_ids=True)


# ---------------------------------------------------------------------- couplings


def _quantised() -> Any:
    import warnings

    model = seeded(Tagger, modules.Feedforward())
    with torch.no_grad():
        model.embed.weight[4] *= 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@case(
    "43-quantize-dynamic",
    "quantize_dynamic, a row alone or beside one with a large value",
    SCALE,
    truth="unchecked",
    origin=("linear", "mixers.0"),
)
def _() -> Pair:
    return batched(_quantised(), rows=[[*words(8, 1), 4]])


@case(
    "43-softmax-over-rows",
    "Hidden states normalised by a softmax over the rows",
    STATISTICS,
    origin="softmax",
    floor=1e-3,
)
def _() -> Pair:
    class OverRows(nn.Module):
        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            return hidden + hidden.softmax(0)

    return batched(seeded(Tagger, OverRows()), mates=3)


class Centred(nn.Module):
    """Takes the mean of a row's columns away; `masked` leaves padding out of it."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if not self.masked or mask is None:
            return hidden - hidden.mean(1, keepdim=True)
        weights = mask[..., None].to(hidden.dtype)
        return hidden - (hidden * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)


@case(
    "43-mean-ignores-mask",
    "The mean over all columns taken away in a module that is given a mask",
    semantic("batch_statistics", by_design=False),
    origin=("mean", "sub"),
    floor=1e-3,
)
def _() -> Pair:
    return padded(seeded(Tagger, Centred(False)))


@case("43-mean-masked-sound", "The mean over a row's tokens taken away", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, Centred(True)))


# ---------------------------------------------------------------------- masks and packing


class TorchAttention(nn.Module):
    """nn.MultiheadAttention with a key padding mask, where True stands for padding; `inverted` for a token."""

    def __init__(self, inverted: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(modules.WIDTH, 4, batch_first=True)
        self.inverted = inverted

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        padding = None if mask is None or bool(mask.all()) else (mask != 0) == self.inverted
        return (
            hidden + self.attention(hidden, hidden, hidden, key_padding_mask=padding, need_weights=False)[0]
        )


@case("43-mha-mask-inverted", "nn.MultiheadAttention, its key padding mask inverted", MASK, floor=1e-3)
def _() -> Pair:
    return padded(seeded(Tagger, TorchAttention(True)))


@case("43-mha-mask-right", "nn.MultiheadAttention, its key padding mask right", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, TorchAttention(False)))


@case(
    "43-packed-mean",
    "The mean over all columns of a packed row added to its tokens",
    PACKING,
    origin=("mean", "add", "mixers.0"),
    floor=1e-3,
)
def _() -> Pair:
    class Added(nn.Module):
        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None:
                return hidden + hidden.mean(1, keepdim=True)
            weights = mask[..., None].to(hidden.dtype)
            return hidden + (hidden * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)

    model = seeded(Tagger, Added())
    return _packed(model, model)


# ---------------------------------------------------------------------- positions that may be shifted


def _says_shifted(pair: Pair) -> None:
    """The verdict says that positions are shifted, and by how much."""
    import forkpoint as fp

    found = fp.compare(fp.Run(pair.a.model, pair.a.inputs), fp.Run(pair.b.model, pair.b.inputs)).verdict
    shown = [probe for probe in found.evidence if probe.name == "positions"]
    assert [(probe.outcome, probe.figure) for probe in shown] == [("shifted", 6.0)]
    assert "positions are shifted by 6, which changes nothing" in found.summary


@case(
    "43-llama-left-shifted",
    "Llama padded on the left by six without position ids: rotary positions are relative",
    *SOUND,
    check=_says_shifted,
)
def _() -> Pair:
    return padded(models.llama("sdpa"), "left", extra=6)
