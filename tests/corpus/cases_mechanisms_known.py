"""Mechanisms by experiment: known causes in unknown forms, each beside what is sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import mixers, models, modules
from .case import Pair, case
from .cases_mechanisms import packed
from .expect import FUNCTION, LEAK_UNMASKED, MASK, PACKING, POOLING, SCALE, SOUND, semantic
from .modules import Tagger, seeded
from .pairs import batched, padded
from .tokens import VOCABULARY, words

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
    FUNCTION,
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
    return packed(model, model)


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
