"""NaN and infinities: what makes them, an overflow or exact arithmetic, and masks of -inf that are meant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import models
from .case import BITS, NAN, SAME, UNCHECKED, Pair, case
from .exact import gap, picked
from .expect import IDENTICAL, LOW_PRECISION, NOT_A_NUMBER, SOUND
from .modules import CausalAttention, Tagger, causal, seeded
from .pairs import padded, twice


def _finite_in_float64(pair: Pair) -> None:
    """In float64 neither run has NaN, and they agree but for the weights' rounding."""
    assert gap(picked(pair.a, exact=True), picked(pair.b, exact=True)) < 1e-2


def _not_finite_in_float64(pair: Pair) -> None:
    assert not bool(picked(pair.b, exact=True).isfinite().all())


class _Step(nn.Module):
    """A mixer of one function of the hidden states."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.function(hidden)


def _tagger(function: Any, **how: Any) -> Any:
    return seeded(Tagger, _Step(function), spread=1.0, **how)


# ---------------------------------------------------------------------- a row that is masked everywhere


class _Where(CausalAttention):
    """Masks by `where`, with a number for what is left out."""

    def __init__(self, out: float) -> None:
        super().__init__()
        self.left_out = out

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        seen = causal(scores) if mask is None else causal(scores) & (mask[:, None, None, :] == 1)
        return torch.where(seen, scores, self.left_out)


def _where(out: float) -> Any:
    return seeded(Tagger, _Where(out), _Where(out))


@case(
    "45-row-masked-everywhere",
    "Attention masked by `where(…, -inf)`, padded on the left: NaN of a softmax over nothing",
    NOT_A_NUMBER,
    truth=NAN,
    check=_not_finite_in_float64,
)
def _() -> Pair:
    return padded(_where(float("-inf")), "left")


@case("45-row-masked-by-a-number", "The same with the least finite number in place of -inf", *SOUND)
def _() -> Pair:
    return padded(_where(torch.finfo(torch.float32).min), "left")


class _Added(CausalAttention):
    """Adds two masks of the least number to the scores: where both are, it is beyond the dtype."""

    together = False

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        least = torch.finfo(scores.dtype).min
        later = (~causal(scores)).to(scores.dtype) * least
        padding = 0.0 if mask is None else (mask[:, None, None, :] == 0).to(scores.dtype) * least
        both = later + padding
        return scores + (both.clamp(min=least) if self.together else both)


class _AddedOnce(_Added):
    together = True


class _AddedEverywhere(_Added):
    """Leaves out padding queries as well, with a third mask."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        scores = super().masked(scores, mask)
        if mask is None:
            return scores
        return scores + (mask[:, None, :, None] == 0).to(scores.dtype) * torch.finfo(scores.dtype).min


@case(
    "45-masks-added",
    "Masks of the least number added up: -inf in every place of a padding row, and NaN of its softmax",
    NOT_A_NUMBER,
    truth=NAN,
)
def _() -> Pair:
    return padded(seeded(Tagger, _AddedEverywhere(), _AddedEverywhere()), "left")


@case("45-masks-added-and-clamped", "Masks of the least number added up, and clamped to it", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, _AddedOnce(), _AddedOnce()), "left")


class _Cleaned(_Where):
    """A softmax over nothing, with NaN put to 0 behind it."""

    def normalised(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1).nan_to_num(0.0)


@case("45-nan-cleaned", "NaN of padding rows, put to 0 before it reaches anything", *SOUND)
def _() -> Pair:
    return padded(seeded(Tagger, _Cleaned(float("-inf")), _Cleaned(float("-inf"))), "left")


class _Suppressing(Tagger):
    """Rules out some tokens, as a processor of logits does."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        logits = super().forward(*args, **kwargs)
        logits[..., 3:6] = float("-inf")
        return logits


@case("45-tokens-suppressed", "Logits of -inf that are meant, in a padded row too", *SOUND)
def _() -> Pair:
    return padded(seeded(_Suppressing, CausalAttention()), "right")


# ---------------------------------------------------------------------- overflow of float16


class _Large(CausalAttention):
    """Scores that are divided after the product, or before it."""

    before = False

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (self.split(part(hidden)) for part in (self.query, self.key, self.value))
        size = 600.0
        if self.before:
            scores = (query * size / size) @ (key * size / size).transpose(-1, -2)
        else:
            scores = (query * size) @ (key * size).transpose(-1, -2) / size**2
        mixed = self.masked(scores, mask).softmax(-1) @ value
        return hidden + self.out(mixed.transpose(1, 2).flatten(2))


class _Small(_Large):
    before = True


def _half(mixer: Any) -> Pair:
    wide, narrow = (seeded(Tagger, mixer()) for _ in range(2))
    return twice(wide, models.cast(narrow, torch.float16))


@case(
    "45-attention-overflows",
    "A model in fp32, or in fp16 where the scores of attention overflow before they are divided",
    NOT_A_NUMBER,
    truth=NAN,
    origin=("matmul",),
    check=_finite_in_float64,
)
def _() -> Pair:
    return _half(_Large)


@case(
    "45-attention-divided-first",
    "The same with the queries and keys divided before the product",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_finite_in_float64,
)
def _() -> Pair:
    return _half(_Small)


def _apart_in_places(pair: Pair) -> None:
    a, b = (picked(side).isfinite() for side in (pair.a, pair.b))
    assert not bool(a.all())
    assert not bool(b.all())
    assert not torch.equal(a, b)
    _finite_in_float64(pair)


def _narrow(function: Any, factor: float) -> Any:
    return models.cast(_tagger(lambda hidden: function(hidden, factor)), torch.float16)


def _powers(hidden: Tensor, factor: float) -> Tensor:
    return (hidden * factor) ** 2 * (1 / factor**2)


@case(
    "45-both-overflow-apart",
    "Two models in fp16 that compute the same, and overflow at other elements",
    NOT_A_NUMBER,
    truth=UNCHECKED,
    check=_apart_in_places,
    origin=("pow",),
)
def _() -> Pair:
    return twice(_narrow(_powers, 128.0), _narrow(_powers, 256.0))


@case(
    "45-both-overflow-alike",
    "A residual stream in fp16 that overflows at the same elements in both runs",
    *SOUND,
    truth=UNCHECKED,
    note="no difference; that both are NaN is said all the same",
)
def _() -> Pair:
    model = models.cast(_tagger(lambda hidden: hidden * 60000 + hidden), torch.float16)
    return padded(model, "right")


# ---------------------------------------------------------------------- outside a function's domain


@case(
    "45-zero-by-zero",
    "A norm without an epsilon: 0 by 0 for a token whose features are all cut off",
    NOT_A_NUMBER,
    truth=NAN,
    origin=("mixers.0",),
    check=_not_finite_in_float64,
)
def _() -> Pair:
    sound = lambda hidden: _cut(hidden) / _cut(hidden).norm(dim=-1, keepdim=True).clamp(min=1e-6)  # noqa: E731
    faulty = lambda hidden: _cut(hidden) / _cut(hidden).norm(dim=-1, keepdim=True)  # noqa: E731
    return twice(_tagger(sound), _tagger(faulty))


def _cut(hidden: Tensor) -> Tensor:
    return torch.relu(hidden - 4.0)


@case(
    "45-log-of-zero",
    "The log of a probability that is 0, times 0",
    NOT_A_NUMBER,
    truth=NAN,
    check=_not_finite_in_float64,
)
def _() -> Pair:
    sound = lambda hidden: _cut(hidden) * _cut(hidden).clamp(min=1e-9).log()  # noqa: E731
    faulty = lambda hidden: _cut(hidden) * _cut(hidden).log()  # noqa: E731
    return twice(_tagger(sound), _tagger(faulty))


def _spread(hidden: Tensor, variance: Any) -> Tensor:
    """Deviation of numbers far from 0, by the mean of the squares less the square of the mean."""
    far = hidden * 1e-4 + 300
    return hidden + variance(far)


def _difference(far: Tensor) -> Tensor:
    return ((far * far).mean(-1, keepdim=True) - far.mean(-1, keepdim=True) ** 2).sqrt()


@case(
    "45-variance-below-zero",
    "A variance by the mean of the squares: rounding makes it negative, and its root NaN; float64 is finite",
    NOT_A_NUMBER,
    truth=NAN,
    check=_finite_in_float64,
)
def _() -> Pair:
    sound = lambda hidden: _spread(hidden, lambda far: far.std(-1, keepdim=True, correction=0))  # noqa: E731
    return twice(_tagger(sound), _tagger(lambda hidden: _spread(hidden, _difference)))


@case(
    "45-infinity-less-infinity",
    "A softmax by hand that does not take off the largest score: inf by inf",
    NOT_A_NUMBER,
    truth=NAN,
    check=_finite_in_float64,
)
def _() -> Pair:
    def plain(hidden: Tensor) -> Tensor:
        scores = hidden * 60
        return scores.exp() / scores.exp().sum(-1, keepdim=True)

    return twice(_tagger(lambda hidden: (hidden * 60).softmax(-1)), _tagger(plain))


@case(
    "45-softmax-by-hand",
    "The same with the largest score taken off",
    *SOUND,
    truth=SAME,
)
def _() -> Pair:
    def stable(hidden: Tensor) -> Tensor:
        scores = hidden * 60
        scores = (scores - scores.amax(-1, keepdim=True)).exp()
        return scores / scores.sum(-1, keepdim=True)

    return twice(_tagger(lambda hidden: (hidden * 60).softmax(-1)), _tagger(stable))


@case("45-all-nan", "A model that returns nothing but NaN, in both runs", IDENTICAL, truth=BITS)
def _() -> Pair:
    model = _tagger(lambda hidden: (-hidden.abs() - 1).sqrt())
    return twice(model)
