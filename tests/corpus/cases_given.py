"""What goes in beside a call's own tokens: a cache that somebody made before, an encoder's tokens with every step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import decoders, models
from .case import UNCHECKED, Pair, Side, case
from .exact import gap, picked
from .expect import CACHE, IDENTICAL, MASK, SOUND, TOKENS, UNDETERMINED
from .modules import seeded
from .tokens import VOCABULARY, row, words

BEFORE = 6
"""Tokens in the cache."""


def _given(model: Any, *, edited: bool = False) -> Pair:
    """One full forward, or the last tokens alone with a cache of those before."""
    ids = row(words(9))
    with torch.no_grad():
        cache = model(input_ids=ids[:, :BEFORE]).past_key_values
    if edited:
        keys = cache[0] if isinstance(cache, tuple) else cache.layers[0].keys
        keys[:, :, 2] += 1
    rest = {"input_ids": ids[:, BEFORE:], "past_key_values": cache}
    layout = None
    if isinstance(cache, tuple):  # how long it is can't be asked of it
        place = torch.arange(BEFORE, 9)[None]
        layout = lambda fp: fp.Layout([fp.Coordinates(torch.zeros_like(place), place)])  # noqa: E731
    return Pair(
        Side(model, {"input_ids": ids}, lambda outputs: outputs[0].logits[:, BEFORE:]),
        Side(model, rest, lambda outputs: outputs[0].logits, layout=layout),
    )


@case("m-given-cache", "A decoder in float64, one full forward or the last tokens with a given cache", *SOUND)
def _() -> Pair:
    return _given(seeded(decoders.CachedDecoder).double())


@case(
    "m-given-cache-edited",
    "The same, one key of the cache moved",
    CACHE,
    MASK,
    floor=1e-3,
    origin="attention",
)
def _() -> Pair:
    return _given(seeded(decoders.CachedDecoder).double(), edited=True)


def _as_rounding_makes(pair: Pair) -> None:
    assert gap(picked(pair.a), picked(pair.b)) < 1e-5


@case(
    "m-given-cache-rounded",
    "Llama in float32: what was given is rounded, and nobody saw how",
    IDENTICAL,
    UNDETERMINED,
    truth=UNCHECKED,
    check=_as_rounding_makes,
    note="in float64 a gap of the size of float32's rounding is left, which no experiment can tell from a real one",
)
def _() -> Pair:
    return _given(models.llama("eager"))


@case(
    "m-given-cache-rounded-inside",
    "Llama in float64, which computes some in float32",
    IDENTICAL,
    UNDETERMINED,
    truth=UNCHECKED,
    check=_as_rounding_makes,
)
def _() -> Pair:
    return _given(models.llama("sdpa").double())


@case(
    "m-given-cache-rounded-edited",
    "The same, one key of the cache moved",
    CACHE,
    floor=1e-3,
    origin="self_attn",
)
def _() -> Pair:
    return _given(models.llama("eager"), edited=True)


class Translator(nn.Module):
    """A decoder that looks at all that its encoder read, which goes in again with every step, and keeps nothing."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        read, written = torch.tanh(self.words(input_ids)), self.words(decoder_input_ids)
        seen = (self.query(written) @ self.key(read).mT).softmax(-1) @ read
        return self.head(torch.tanh(seen + written))


def _translated(*, other: bool = False) -> Pair:
    """All of the decoder's tokens at once, or one a call, each with the text that the encoder reads."""
    model = seeded(Translator)
    text, written = torch.tensor([words(7), words(7, 1)]), torch.tensor([words(3, 2), words(3, 3)])
    calls = [{"input_ids": text, "decoder_input_ids": written[:, n : n + 1]} for n in range(3)]
    if other:
        calls[1]["input_ids"] = torch.tensor([words(7, 4), words(7, 1)])
    return Pair(
        Side(model, {"input_ids": text, "decoder_input_ids": written}, lambda outputs: outputs[0]),
        Side(model, calls, lambda outputs: torch.cat(outputs, 1)),
    )


@case("m-encoder-again", "What an encoder reads goes in with every step of its decoder", *SOUND)
def _() -> Pair:
    return _translated()


@case("m-encoder-other", "The same, another text with one of the steps", TOKENS, floor=1e-3)
def _() -> Pair:
    return _translated(other=True)
