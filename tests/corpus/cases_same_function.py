"""Two models, or two ways to call one: what is another function is no pooling, no position and no mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import models
from .case import Pair, Side, case
from .expect import FUNCTION, LEAK_UNMASKED, MASK, POOLING, POSITIONS, SOUND, Expect, semantic
from .modules import CausalAttention, SentenceEncoder, UnmaskedAttention, seeded
from .pairs import padded, twice
from .tokens import positions, row, whole, words

Call = Callable[[Any, dict[str, Any]], Any]


class Encoder(nn.Module):
    """Token and position embeddings, then attention; numbers in `forward` make it another function.

    Args:
        column: the one that is returned, as the vector of each row; None for all of them.
        factor: what places are multiplied by before they are looked up.
    """

    def __init__(self, column: int | None = None, factor: int = 1, attention: Any = CausalAttention) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(96, 32), nn.Embedding(64, 32)
        self.attention = attention()
        self.column, self.factor = column, factor

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        if position_ids is None:
            position_ids = (torch.arange(input_ids.shape[1]) * self.factor)[None]
        hidden = self.word(input_ids) + self.place(position_ids)
        hidden = self.attention(hidden, attention_mask)
        return hidden if self.column is None else hidden[:, self.column]


class Sines(nn.Module):
    """Token embeddings and sines of the place."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.word, self.factor = nn.Embedding(96, 32), factor

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        place = torch.arange(input_ids.shape[1], dtype=torch.float64) * self.factor
        angles = place[:, None] * 10.0 ** (-torch.arange(16) / 16)
        return self.word(input_ids) + torch.cat([angles.sin(), angles.cos()], -1).to(self.word.weight.dtype)


class Windowed(CausalAttention):
    """Causal attention to the last few tokens alone."""

    window = 3

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        far = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-self.window)
        return super().masked(scores, mask).masked_fill(far, torch.finfo(scores.dtype).min)


class Wide(Windowed):
    window = 99


class Fused(CausalAttention):
    """The same by one kernel."""

    window = 99

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (self.split(part(hidden)) for part in (self.query, self.key, self.value))
        seen = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool)
        seen = (seen.tril() & ~seen.tril(-self.window))[None, None]
        if mask is not None:
            seen = seen & (mask[:, None, None, :] != 0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return hidden + self.out(mixed.transpose(1, 2).flatten(2))


class FusedWindow(Fused):
    window = 3


def _encoder(**how: Any) -> Encoder:
    return seeded(Encoder, **how)


def _placeless(column: int) -> Encoder:
    """One whose places all look alike, so that padding on the left shifts nothing."""
    model = _encoder(column=column)
    nn.init.zeros_(model.place.weight)
    return model


# ---------------------------------------------------------------------- 48: two models


@case(
    "48-columns-two-models",
    "The first column in one model, the third in the other",
    FUNCTION,
    origin="getitem",
    floor=1e-2,
)
def _() -> Pair:
    return twice(_encoder(column=0), _encoder(column=2), mask=True)


@case(
    "48-columns-of-padding",
    "The first column in a model and in its copy, where it is padding",
    POOLING,
    origin="getitem",
    floor=1e-2,
)
def _() -> Pair:
    return padded(_placeless(0), "left", vector=True, model_b=_placeless(0))


@case("48-columns-sound", "The first column in a model and in its copy, padded on the right", *SOUND)
def _() -> Pair:
    return padded(_encoder(column=0), vector=True, model_b=_encoder(column=0))


@case(
    "48-columns-rounded",
    "The first column in a model and in its copy in bfloat16, where it is padding",
    POOLING,
    origin="getitem",
    floor=1e-1,
    note="weights that are only rounded make no other function: both runs are given the same",
)
def _() -> Pair:
    return padded(_placeless(0), "left", vector=True, model_b=models.cast(_placeless(0), torch.bfloat16))


@case(
    "48-pooling-two-models",
    "The first token as the vector of a row, or the mean of its tokens",
    FUNCTION,
    floor=1e-2,
)
def _() -> Pair:
    first, mean = (seeded(SentenceEncoder, _tuples(), how) for how in ("first", "masked_mean"))
    return padded(first, vector=True, model_b=mean)


def _tuples() -> nn.Module:
    class First(Encoder):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return (super().forward(*args, **kwargs),)

    return First()


@case(
    "48-positions-factor",
    "Every second row of the table of positions in the other model",
    FUNCTION,
    origin=("embedding", "mul"),
    floor=1e-2,
)
def _() -> Pair:
    return twice(_encoder(), _encoder(factor=2), mask=True)


@case(
    "48-positions-factor-padded",
    "The same, padded on the right in one run",
    FUNCTION,
    origin=("embedding", "mul"),
    floor=1e-2,
)
def _() -> Pair:
    return padded(_encoder(), model_b=_encoder(factor=2))


@case(
    "48-positions-copies",
    "Places by column in a model and in its copy, padded on the left",
    POSITIONS,
    origin=("embedding", "arange", "mul"),
    floor=1e-2,
)
def _() -> Pair:
    return padded(_encoder(), "left", model_b=_encoder())


@case("48-positions-sound", "The same with position ids made from the mask", *SOUND)
def _() -> Pair:
    return padded(_encoder(), "left", model_b=_encoder(), position_ids=True)


@case("48-sines-factor", "Sines of places, twice as dense in one model", FUNCTION, floor=1e-2)
def _() -> Pair:
    return twice(seeded(Sines), seeded(Sines, 2.0))


@case("48-sines-sound", "Sines of places in a model and in its copy", *SOUND)
def _() -> Pair:
    return padded(seeded(Sines), model_b=seeded(Sines))


@case("48-window", "A window of three tokens in one model's attention", FUNCTION, floor=1e-2)
def _() -> Pair:
    return twice(_encoder(attention=Wide), _encoder(attention=Windowed), mask=True)


@case("48-window-fused", "The same in one kernel, padded on the right in one run", FUNCTION, floor=1e-2)
def _() -> Pair:
    return padded(_encoder(attention=Fused), model_b=_encoder(attention=FusedWindow))


@case(
    "48-mask-copies",
    "A model and its copy, whose attention ignores the mask, padded on the right",
    MASK,
    floor=1e-2,
)
def _() -> Pair:
    return padded(_encoder(attention=UnmaskedAttention), model_b=_encoder(attention=UnmaskedAttention))


@case("48-window-sound", "A window in a model and in its copy, padded on the right", *SOUND)
def _() -> Pair:
    return padded(_encoder(attention=FusedWindow), model_b=_encoder(attention=FusedWindow))


# ---------------------------------------------------------------------- 48: callables


def _hand(model: Any, given: dict[str, Any], **more: Any) -> Any:
    return model(**{**given, **more})


def _around(model: nn.Module, **more: Any) -> Call:
    """A function that calls a model which it alone knows."""
    return lambda _, given: model(**{**given, **more})


def _called(a: Call, b: Call, model: nn.Module | None = None) -> Pair:
    """The same inputs, called in two ways."""
    shared = nn.Identity() if model is None else model
    given = {"input_ids": row(words(9)), "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    return Pair(Side(shared, given, whole(), call=a), Side(shared, dict(given), whole(), call=b))


SHIFTED = torch.arange(9)[None] + 3
HIDDEN = torch.tensor([[1, 1, 1, 1, 0, 1, 1, 1, 1]])


@case("48-call-hands-positions", "One model, to which one call hands other positions", POSITIONS, floor=1e-2)
def _() -> Pair:
    return _called(_hand, partial(_hand, position_ids=SHIFTED), _encoder())


@case("48-call-hands-mask", "One model, to which one call hands a mask that hides a token", MASK, floor=1e-2)
def _() -> Pair:
    return _called(_hand, partial(_hand, attention_mask=HIDDEN), _encoder())


@case("48-call-sound", "One model, to which both calls hand the same positions", *SOUND)
def _() -> Pair:
    model = _encoder()
    return _called(_hand, partial(_hand, position_ids=torch.arange(9)[None]), model)


@case(
    "48-call-sets-column",
    "One model, of which one call sets another column",
    FUNCTION,
    origin="getitem",
    floor=1e-2,
)
def _() -> Pair:
    def third(model: Any, given: dict[str, Any]) -> Any:
        model.column, before = 2, model.column
        try:
            return model(**given)
        finally:
            model.column = before

    return _called(_hand, third, _encoder(column=0))


@case(
    "48-closures-positions",
    "Two functions around a model and its copy, of which one hands on other positions",
    POSITIONS,
    floor=1e-2,
)
def _() -> Pair:
    model = _encoder()
    return _called(_around(model), _around(copy.deepcopy(model), position_ids=SHIFTED))


@case(
    "48-closures-mask",
    "Two functions around a model and its copy, of which one hands on another mask",
    MASK,
    floor=1e-2,
)
def _() -> Pair:
    model = _encoder()
    return _called(_around(model), _around(copy.deepcopy(model), attention_mask=HIDDEN))


@case(
    "48-closures-factor",
    "Two functions around two models, of which one looks up every second place",
    FUNCTION,
    floor=1e-2,
)
def _() -> Pair:
    return _called(_around(_encoder()), _around(_encoder(factor=2)))


@case(
    "48-closures-columns",
    "Two functions around two models that return other columns",
    FUNCTION,
    origin="getitem",
    floor=1e-2,
)
def _() -> Pair:
    return _called(_around(_encoder(column=0)), _around(_encoder(column=2)))


@case("48-closures-sound", "Two functions around a model and its copy", *SOUND)
def _() -> Pair:
    model = _encoder()
    return _called(_around(model), _around(copy.deepcopy(model)))


@case(
    "48-bound-methods",
    "The methods of two objects around a model and its copy, of which one hands on other positions",
    POSITIONS,
    floor=1e-2,
)
def _() -> Pair:
    class Client:
        def __init__(self, model: nn.Module, **more: Any) -> None:
            self.model, self.more = model, more

        def ask(self, _: Any, given: dict[str, Any]) -> Any:
            return self.model(**{**given, **self.more})

    model = _encoder()
    return _called(Client(model).ask, Client(copy.deepcopy(model), position_ids=SHIFTED).ask)


def _left(make: Callable[[], nn.Module], **more: Any) -> Pair:
    """Functions around a model and its copy, padded on the left in run B."""
    pair = padded(nn.Identity(), "left")
    pair.a.call, pair.b.call = _around(make()), _around(make())
    for name, value in more.items():
        pair.b.change(**{name: value(pair.b.calls[0]["attention_mask"])})
    return pair


@case(
    "48-closures-left", "Two functions around a model and its copy, padded on the left", POSITIONS, floor=1e-2
)
def _() -> Pair:
    return _left(_encoder)


@case("48-closures-left-sound", "The same with position ids made from the mask", *SOUND)
def _() -> Pair:
    return _left(_encoder, position_ids=positions)


# ---------------------------------------------------------------------- 48: what is a pooling


class Over(nn.Module):
    """What is made of embeddings, of weights over the columns of a row, and of the mask.

    Args:
        make: from embeddings [rows, columns, width], weights and mask [rows, columns, 1].
        masked: whether padding has no weight.
    """

    def __init__(self, make: Callable[[Tensor, Tensor, Tensor], Tensor], *, masked: bool = False) -> None:
        super().__init__()
        self.word, self.make, self.masked = nn.Embedding(96, 32), make, masked

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden, mask = self.word(input_ids), attention_mask[..., None]
        scores = hidden.sum(-1, keepdim=True)
        if self.masked:
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        return self.make(hidden, scores.softmax(1), mask.to(hidden.dtype))


COUPLED = semantic("batch_statistics", "padding_leak", by_design=False)
Make = Callable[[Tensor, Tensor, Tensor], Tensor]
MADE: dict[str, tuple[str, Make, bool, Expect]] = {
    "returned": ("The weights of a softmax over all columns", lambda _, weights, __: weights, False, COUPLED),
    "gate": (
        "Each token times its weight by a softmax over all columns",
        lambda hidden, weights, _: hidden * weights,
        False,
        COUPLED,
    ),
    "of-mask": (
        "The weight that real tokens have together by a softmax over all columns",
        lambda _, weights, mask: (weights * mask).sum(1),
        True,
        COUPLED,
    ),
    "back": (
        "A mean by weights over all columns, added to each token",
        lambda hidden, weights, _: hidden + (hidden * weights).sum(1, keepdim=True),
        False,
        COUPLED,
    ),
    "summed": (
        "A mean of the tokens by weights over all columns",
        lambda hidden, weights, _: (hidden * weights).sum(1),
        True,
        POOLING,
    ),
    "product": (
        "The same as a product of matrices",
        lambda hidden, weights, _: (weights.mT @ hidden)[:, 0],
        True,
        POOLING,
    ),
}

for _name, (_title, _make, _vector, _expected) in MADE.items():
    case(f"48-weights-{_name}", _title, _expected, floor=1e-3)(
        lambda make=_make, vector=_vector: padded(seeded(Over, make), vector=vector)
    )
    case(f"48-weights-{_name}-sound", f"{_title}, but for padding", *SOUND)(
        lambda make=_make, vector=_vector: padded(seeded(Over, make, masked=True), vector=vector)
    )


@case(
    "48-first-added",
    "The first column added to each, which is padding in one run",
    LEAK_UNMASKED,
    origin="getitem",
)
def _() -> Pair:
    return padded(seeded(Over, lambda hidden, *_: hidden + hidden[:, :1]), "left")


@case("48-first-added-sound", "The first column added to each, padded on the right", *SOUND)
def _() -> Pair:
    return padded(seeded(Over, lambda hidden, *_: hidden + hidden[:, :1]))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(1) / mask.sum(1)


@case(
    "48-padding-counted",
    "The number of columns of padding, added to a mean by the mask",
    semantic(None, by_design=None),
    origin="sum",
    note="it is a whole number of the layout, but no token's position, and nothing is pooled by it",
)
def _() -> Pair:
    return padded(seeded(Over, lambda hidden, _, mask: _mean(hidden, mask) + (1 - mask).sum(1)), vector=True)


@case("48-padding-counted-sound", "The number of real tokens, added to a mean by the mask", *SOUND)
def _() -> Pair:
    return padded(seeded(Over, lambda hidden, _, mask: _mean(hidden, mask) + mask.sum(1)), vector=True)
