"""Couplings by experiment: what has the form of a rotary table, of statistics or of a scale, and what is one; masks that a module has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import modules
from .case import Pair, case
from .expect import (
    FUNCTION,
    LEAK,
    LEAK_UNMASKED,
    POSITIONS,
    ROPE,
    SOUND,
    STATISTICS,
    semantic,
)
from .modules import Tagger, seeded
from .pairs import batched, padded
from .tokens import VOCABULARY


class Mixer(nn.Module):
    """A mixer that is one function of the hidden states, and is given the mask that it has no use for."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.function(hidden)


def mixing(function: Callable[[Tensor], Tensor]) -> Any:
    return seeded(Tagger, Mixer(function))


def verdict(pair: Pair) -> Any:
    """What forkpoint says of a pair."""
    import forkpoint as fp

    return fp.compare(fp.Run(pair.a.model, pair.a.inputs), fp.Run(pair.b.model, pair.b.inputs)).verdict


# ---------------------------------------------------------------------- tables by length that are no rotary ones


def _sine(hidden: Tensor) -> Tensor:
    """An encoding that is added, its positions divided by the length."""
    columns = hidden.shape[1]
    angles = torch.arange(columns)[:, None] / columns * torch.arange(1, 17)
    return hidden + torch.cat([angles.sin(), angles.cos()], -1)


def _taper(hidden: Tensor) -> Tensor:
    """A window over the row, of a cosine and a sine."""
    places = 2 * math.pi * torch.arange(hidden.shape[1]) / hidden.shape[1]
    return hidden * (0.6 - 0.5 * places.cos() + 0.1 * places.sin())[:, None]


def _learnt(hidden: Tensor) -> Tensor:
    """A table of eight rows, stretched to the length of the row."""
    table = torch.randn(8, hidden.shape[-1], generator=torch.Generator().manual_seed(1))
    stretched = F.interpolate(table.T[None], size=hidden.shape[1], mode="linear")[0].T
    return hidden + 0.5 * stretched.sin() + 0.2 * stretched.cos()


def _turned_alone(hidden: Tensor) -> Tensor:
    """Turned by angles whose base depends on the length, but no queries meet keys."""
    half = hidden.shape[-1] // 2
    base = 10000.0 * max(1.0, hidden.shape[1] / 8)
    angles = torch.arange(hidden.shape[1])[:, None] * base ** (-torch.arange(half) / half)
    first, second = hidden[..., :half], hidden[..., half:]
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
    )


case(
    "47-rope-sine", "Sines of positions divided by the length, added", FUNCTION, floor=1e-2, origin="mixers.0"
)(lambda: padded(mixing(_sine)))
case("47-rope-window", "A window over the row", FUNCTION, floor=1e-2, origin="mixers.0")(
    lambda: padded(mixing(_taper))
)
case(
    "47-rope-learnt",
    "A learnt table, stretched to the length of the row",
    FUNCTION,
    POSITIONS,
    floor=1e-2,
    origin="interpolate",
)(lambda: padded(mixing(_learnt)))
case("47-rope-turned-alone", "A rotation by length of what no queries meet", FUNCTION, floor=1e-4)(
    lambda: padded(mixing(_turned_alone))
)


class Turning(modules.CausalAttention):
    """Attention with rotary positions; a row beyond ten columns has another base.

    Args:
        kind: "dynamic": it grows with the length; "switch": there are two; "complex": dynamic, by complex numbers;
            "fixed": there is one.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def base(self, columns: int) -> float:
        if self.kind == "fixed" or columns <= 10:
            return 10000.0
        return 50000.0 if self.kind == "switch" else 10000.0 * (2 * columns / 10 - 1) ** 1.3

    def turn(self, heads: Tensor) -> Tensor:
        columns, width = heads.shape[-2:]
        inverse = self.base(columns) ** (-torch.arange(width // 2, dtype=heads.dtype) * 2 / width)
        angles = torch.arange(columns)[:, None] * inverse
        if self.kind == "complex":
            pairs = torch.view_as_complex(heads.reshape(*heads.shape[:-1], -1, 2).contiguous())
            return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        angles = torch.cat([angles, angles], -1)
        first, second = heads.chunk(2, -1)
        return heads * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def split(self, hidden: Tensor) -> Tensor:
        return super().split(hidden)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (self.split(made(hidden)) for made in (self.query, self.key, self.value))
        scores = self.masked(self.turn(query) @ self.turn(key).transpose(-1, -2) / 3, mask)
        return hidden + self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def _tells_of_table(pair: Pair) -> None:
    """The evidence says what was shown of the table."""
    coupling = next(probe for probe in verdict(pair).evidence if probe.name == "coupling")
    assert "turns content without making it longer" in coupling.text
    assert "at the same positions" in coupling.text


for _kind in ("dynamic", "switch", "complex"):
    case(
        f"47-rope-{_kind}",
        f"Rotary attention whose base goes by the length of the row: {_kind}",
        ROPE,
        floor=1e-4,
        check=_tells_of_table,
        origin="mixers.0",
    )(lambda kind=_kind: padded(seeded(Tagger, Turning(kind))))
case("47-rope-fixed-sound", "The same with one base", *SOUND)(
    lambda: padded(seeded(Tagger, Turning("fixed")))
)
case("47-rope-short-sound", "The same with two bases, both rows short", *SOUND)(
    lambda: padded(seeded(Tagger, Turning("switch")), length=6)
)


# ---------------------------------------------------------------------- statistics, and what is taken over others besides


class AtRoot(nn.Module):
    """Embeddings, a function of them in the model's own forward, logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY)
        self.function = function

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.function(self.embed(input_ids)))


OVER_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda h: h + h.softmax(0),
    "largest": lambda h: h - h.amax(0),
    "gate": lambda h: h * h.mean(0).sigmoid(),
    "length": lambda h: F.normalize(h, dim=0),
    "middle": lambda h: h - h.median(0).values,
}


def _says_rows(pair: Pair) -> None:
    found = verdict(pair)
    assert "rows" in found.summary
    assert "padding" not in f"{found.summary} {found.advice}"


for _name, _function in OVER_ROWS.items():
    case(f"47-rows-{_name}", f"Over the rows of the batch: {_name}", FUNCTION, floor=1e-3, check=_says_rows)(
        lambda function=_function: batched(mixing(function), mates=4)
    )

case(
    "47-rows-mean",
    "The mean of the rows taken away",
    STATISTICS,
    floor=1e-3,
    check=_says_rows,
    origin=("mean", "sub"),
)(lambda: batched(mixing(lambda h: h - h.mean(0)), mates=4))


case(
    "47-rows-mean-added",
    "The mean of the rows added: nothing is normalised",
    semantic("batch_statistics", by_design=None),
    floor=1e-3,
    check=_says_rows,
)(lambda: batched(mixing(lambda h: h + h.mean(0)), mates=4))


def _standardised(hidden: Tensor) -> Tensor:
    centred = hidden - hidden.mean(0)
    return centred / (centred.pow(2).mean(0) + 1e-5).sqrt()


case("47-rows-standardised", "A batch norm by hand", STATISTICS, floor=1e-3, check=_says_rows)(
    lambda: batched(mixing(_standardised), mates=4)
)
case("47-rows-each-sound", "A softmax of each token by itself", *SOUND)(
    lambda: batched(mixing(lambda h: h + h.softmax(-1)), mates=4)
)
case(
    "47-columns-length",
    "Columns divided by their length as a vector, in the model's own forward, no mask",
    LEAK,
    floor=1e-3,
    origin="normalize",
)(lambda: padded(seeded(AtRoot, lambda h: F.normalize(h, dim=1)), mask=False))
case(
    "47-columns-largest",
    "The largest of a row's columns taken away",
    LEAK,
    semantic("pooling", by_design=False),
    floor=1e-3,
)(lambda: padded(seeded(AtRoot, lambda h: h - h.amax(1, keepdim=True)), mask=False))
case(
    "47-columns-norm",
    "An instance norm over a row's columns, in the model's own forward, no mask",
    STATISTICS,
    floor=1e-3,
    origin="instance_norm",
)(lambda: padded(seeded(AtRoot, lambda h: F.instance_norm(h.mT).mT), mask=False))
case("47-columns-each-sound", "Each token divided by its own length", *SOUND)(
    lambda: padded(seeded(AtRoot, lambda h: F.normalize(h, dim=-1)), mask=False)
)


# ---------------------------------------------------------------------- masks that a module is given, and that it is not


class Convolving(nn.Module):
    """Adds its neighbours to each token; with a mask it leaves padding out, if `heeds` is set."""

    def __init__(self, heeds: bool = False) -> None:
        super().__init__()
        self.heeds = heeds
        self.mix = nn.Conv1d(32, 32, 3, padding=1)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.heeds and mask is not None:
            hidden = hidden * mask[..., None].to(hidden.dtype)
        return hidden + self.mix(hidden.mT).mT


class Layer(nn.Module):
    """A module around it; hands the mask on if `hands` is set."""

    def __init__(self, inner: nn.Module, hands: bool) -> None:
        super().__init__()
        self.inner, self.hands = inner, hands

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(hidden, mask) if self.hands else self.inner(hidden)


class Keeping(nn.Module):
    """A model that hands its modules the mask, a causal one, or none."""

    def __init__(self, inner: nn.Module, hands: str) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY)
        self.inner, self.hands = inner, hands

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.embed(input_ids)
        if self.hands == "none":
            return self.head(self.inner(hidden))
        causal = torch.ones(hidden.shape[1], hidden.shape[1]).tril()
        return self.head(self.inner(hidden, attention_mask if self.hands == "mask" else causal))


def _given(hands: str, *, layer: bool | None = None, heeds: bool = False) -> Pair:
    inner: nn.Module = Convolving(heeds)
    return padded(seeded(Keeping, inner if layer is None else Layer(inner, layer), hands))


def _says(text: str) -> Callable[[Pair], None]:
    def check(pair: Pair) -> None:
        assert text in verdict(pair).summary

    return check


def _says_no_mask(pair: Pair) -> None:
    assert "given a mask" not in verdict(pair).summary


MIXES = {"floor": 1e-3, "origin": "mix/conv1d"}
case(
    "47-mask-kept",
    "A convolution in a module that the model hands no mask",
    LEAK,
    check=_says_no_mask,
    **MIXES,
)(lambda: _given("none"))
case("47-mask-kept-deep", "The same, one module deeper", LEAK, check=_says_no_mask, **MIXES)(
    lambda: _given("none", layer=False)
)
case(
    "47-mask-causal",
    "It is handed a causal mask, which tells nothing of padding",
    LEAK,
    check=_says_no_mask,
    **MIXES,
)(lambda: _given("causal"))
case(
    "47-mask-given",
    "A module that is given a mask and ignores it",
    LEAK_UNMASKED,
    check=_says("inner is given a mask"),
    **MIXES,
)(lambda: _given("mask"))
case(
    "47-mask-around",
    "A module around it is given a mask, and hands none on",
    LEAK_UNMASKED,
    check=_says("though inner, around it, is given a mask"),
    **MIXES,
)(lambda: _given("mask", layer=False))
case("47-mask-heeded-sound", "A module that is given a mask and leaves padding out", *SOUND)(
    lambda: _given("mask", layer=True, heeds=True)
)
