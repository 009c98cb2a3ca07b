"""What looks like a known cause and is another thing, beside what is that cause, and what is sound."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .case import SAME, UNCHECKED, Inputs, Pair, Side, case
from .exact import gap, picked
from .expect import FUNCTION, LEAK_EITHER, PARAMETERS, POOLING, POSITIONS, SOUND, inputs, one_of, semantic
from .modules import seeded
from .pairs import padded, twice
from .tokens import VOCABULARY, at, first_rows, pad, row, words

WIDTH = 64
QUANTISED = inputs("quantization")

# ---------------------------------------------------------------------- quantised weights, of these and of others


class Wide(nn.Module):
    """Token ids → embeddings → logits by a matrix of whole blocks of four bits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embed(input_ids))


def _in_torch(model: Wide) -> tuple[Any, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and the quantisation that people have
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        return quantised, quantised.head.weight().dequantize()


def _in_eight_bits(model: Wide) -> tuple[Any, Tensor]:
    import bitsandbytes as bnb

    quantised: Any = copy.deepcopy(model)
    quantised.head = bnb.nn.Linear8bitLt(WIDTH, VOCABULARY, bias=False, has_fp16_weights=False)
    quantised.head.load_state_dict(model.head.state_dict())
    quantised.head.to("cpu")
    return quantised, quantised.head.weight.data * quantised.head.weight.SCB[:, None] / 127


def _in_four_bits(model: Wide, kind: str) -> tuple[Any, Tensor]:
    import bitsandbytes as bnb

    quantised: Any = copy.deepcopy(model)
    quantised.head = bnb.nn.Linear4bit(WIDTH, VOCABULARY, bias=False, quant_type=kind)
    quantised.head.load_state_dict(model.head.state_dict())
    quantised.head.to("cpu")
    weight = quantised.head.weight
    return quantised, bnb.functional.dequantize_4bit(weight.data, weight.quant_state)


def _register_quantised(name: str, quantise: Callable[[Wide], tuple[Any, Tensor]], step: float) -> None:
    def of(model: Wide, *, own: bool) -> tuple[Any, Tensor]:
        other = copy.deepcopy(model)
        if not own:
            with torch.no_grad():
                other.head.weight.copy_(other.head.weight.flip(0))
        return quantise(other)

    def within_a_step(pair: Pair, own: bool) -> None:
        model: Any = pair.a.model
        apart = (of(model, own=own)[1] - model.head.weight).abs().max()
        assert bool(apart <= step * model.head.weight.abs().max()) is own

    for own in (True, False):
        which = "its own" if own else "other"
        case(
            f"54-quantised-{name}-{which.split(maxsplit=1)[0]}",
            f"A model, or one with {which} weights quantised ({name})",
            QUANTISED if own else PARAMETERS,
            truth=UNCHECKED,
            check=partial(within_a_step, own=own),
        )(lambda own=own: twice(model := seeded(Wide), of(model, own=own)[0]))


_register_quantised("torch", _in_torch, 0.01)
_register_quantised("int8", _in_eight_bits, 0.01)
_register_quantised("nf4", partial(_in_four_bits, kind="nf4"), 0.17)
_register_quantised("fp4", partial(_in_four_bits, kind="fp4"), 0.18)


# ---------------------------------------------------------------------- weights that are added, or weigh


class Pooled(nn.Module):
    """What a function makes of hidden states and their mask, one vector a row."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 8)
        self.how = how

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(
            self.how(self.embed(input_ids), attention_mask[..., None].to(self.head.weight.dtype))
        )


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask).sum(1) / mask.sum(1)


def _masked(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask == 0, -torch.inf).softmax(1)


def _of_rows(how: Callable[[Tensor, Tensor], Tensor]) -> Pair:
    return padded(seeded(Pooled, how), vector=True)


case(
    "54-softmax-added",
    "A softmax over tokens and padding added to each token, and a right mean of them",
    LEAK_EITHER,
    floor=1e-4,
    origin="softmax",
)(lambda: _of_rows(lambda hidden, mask: _mean(hidden + hidden.softmax(1), mask)))
case(
    "54-softmax-weighs",
    "Tokens summed by a softmax over tokens and padding",
    POOLING,
    floor=1e-4,
    origin="softmax",
)(lambda: _of_rows(lambda hidden, mask: (hidden * hidden.sum(-1, keepdim=True).softmax(1)).sum(1)))
case("54-softmax-masked", "The same softmax added, over tokens alone", *SOUND, truth=SAME)(
    lambda: _of_rows(lambda hidden, mask: _mean(hidden + _masked(hidden, mask), mask))
)


# ---------------------------------------------------------------------- numbers made of a mask that is another


class Stepped(nn.Module):
    """Adds a wave of each token's number, which is counted from the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        place = (mask.cumsum(-1) - 1).clamp(min=0) * 3
        hidden = self.embed(input_ids)
        return self.head(hidden + (place[..., None] * 0.2).to(hidden.dtype).sin())


def _toggled(model: Any, given: Inputs) -> Any:
    return model(given["input_ids"], 1 - given["attention_mask"])


@case(
    "54-mask-toggled",
    "Numbers made of the mask, which one call hands over upside down",
    FUNCTION,
    floor=1e-3,
    note="the mask is what differs; what is counted from it is no position of anything",
)
def _() -> Pair:
    found = padded(seeded(Stepped))
    found.b.inputs = dict(found.b.inputs)  # type: ignore[arg-type]
    found.a.inputs, found.a.pick = found.b.inputs, found.b.pick
    found.b.call = _toggled
    return found


case("54-mask-lacking", "The same numbers without a mask, padded on the left", POSITIONS, floor=1e-3)(
    lambda: padded(seeded(Stepped), "left", mask=False)
)
case("54-mask-given", "The same numbers with the mask, padded on the left", *SOUND)(
    lambda: padded(seeded(Stepped), "left")
)


# ---------------------------------------------------------------------- one token again and again


class Summed(nn.Module):
    """Adds to each token the sum of the ids up to it, those of padding among them or not."""

    def __init__(self, *, masks: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.masks = masks

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        ids = input_ids * attention_mask if self.masks else input_ids
        hidden = self.embed(input_ids)
        return self.head(hidden + (ids.cumsum(1)[..., None] * 0.01).to(hidden.dtype))


def _one_id(*, masks: bool) -> Pair:
    """One id, alone and behind padding of another."""
    model, ids = seeded(Summed, masks=masks), row([9] * 6)
    behind, mask = torch.cat([torch.full((1, 3), 7), ids], 1), row([0] * 3 + [1] * 6)
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, at(torch.ones_like(ids))),
        Side(model, {"input_ids": behind, "attention_mask": mask}, at(mask)),
    )


case(
    "54-one-id-summed",
    "Sums of ids, padding's among them; all tokens have one id",
    LEAK_EITHER,
    floor=1e-3,
    note="a sum of one id counts as positions do",
)(partial(_one_id, masks=False))
case("54-one-id-masked", "The same sums without padding's", *SOUND)(partial(_one_id, masks=True))


# ---------------------------------------------------------------------- columns that are asked for


class Asked(nn.Module):
    """The logits of one column of each row, which an input names; `leaks`: with something of padding."""

    def __init__(self, *, leaks: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 16), nn.Linear(16, VOCABULARY)
        self.leaks = leaks

    def forward(self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        if self.leaks:
            hidden = hidden + hidden.mean(1, keepdim=True)
        return self.head(hidden[torch.arange(len(hidden)), logits_to_keep])


def _asked(kept: list[int], *, leaks: bool = False) -> Pair:
    """Two rows alone and padded by three on the left; each gives logits at its own column."""
    model = seeded(Asked, leaks=leaks)
    rows = [words(6), words(6, seed=1)]
    behind, mask = pad(rows, "left", to=9)
    a = {"input_ids": torch.tensor(rows), "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    given = {"input_ids": behind, "attention_mask": mask, "logits_to_keep": torch.tensor(kept)}
    return Pair(
        Side(model, {**a, "logits_to_keep": torch.tensor([5, 4])}, first_rows(2)),
        Side(model, given, first_rows(2)),
    )


def _columns_hold_the_same(pair: Pair) -> None:
    """Without what leaks the logits asked for are the same: the columns name the same tokens."""
    for side in (pair.a, pair.b):
        side.model.leaks = False  # type: ignore[assignment]
    assert gap(picked(pair.a), picked(pair.b)) < 1e-5


case("54-asked-alike", "Logits of columns that name the same tokens, padded on the left", *SOUND)(
    partial(_asked, [8, 7])
)
case(
    "54-asked-alike-leak",
    "The same, and padding is in a mean that each token gets",
    semantic("batch_statistics", "padding_leak", by_design=one_of(None, False)),
    floor=1e-3,
    check=_columns_hold_the_same,
)(partial(_asked, [8, 7], leaks=True))
case("54-asked-otherwise", "Logits of the same columns, padded on the left: other tokens", FUNCTION)(
    partial(_asked, [5, 4])
)
