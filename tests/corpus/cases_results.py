"""What a model returns besides tensors of tokens: numbers, arrays, texts, and what can't be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .case import UNCHECKED, Pair, Side, case
from .exact import outputs
from .expect import IDENTICAL, ROUNDING, SOUND, UNDETERMINED, semantic
from .modules import Tagger, seeded
from .pairs import padded
from .tokens import floats, whole

Given = dict[str, Tensor]


class Reports(nn.Module):
    """A sound tagger that returns something more, made of its hidden states and its inputs.

    Args:
        more: from the hidden states [rows, columns, width] and the inputs, what is returned as `more`.
    """

    def __init__(self, more: Callable[[Tensor, Given], Any]) -> None:
        super().__init__()
        self.tagger = seeded(Tagger)
        self.more = more

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        hidden = self.tagger(**given)
        return {"logits": hidden, "more": self.more(hidden, given)}


def same_but(pair: Pair) -> None:
    """The tensor at shared tokens has not one other bit: what else is returned decides."""
    a, b = (side.pick(outputs(side)) for side in (pair.a, pair.b))
    assert torch.equal(a, b)


def more_differs(pair: Pair) -> None:
    same_but(pair)
    a, b = (outputs(side, exact=True)[0]["more"] for side in (pair.a, pair.b))
    assert not _agree(a, b), f"both return {a}"


def more_agrees(pair: Pair) -> None:
    same_but(pair)
    a, b = (outputs(side, exact=True)[0]["more"] for side in (pair.a, pair.b))
    assert _agree(a, b), f"{a} and {b}"


def _agree(a: Any, b: Any) -> bool:
    """Whether what a row alone gets is what the first row of a batch gets."""
    if isinstance(a, list) and isinstance(a[0], str):
        return a[0] == b[0]
    a, b = (torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in (a, b))
    return torch.allclose(a, b[: len(a)], rtol=1e-11, atol=0)


def _masked_mean(hidden: Tensor, given: Given) -> Tensor:
    weights = given["attention_mask"][..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _words(hidden: Tensor, given: Given, *, padding: bool) -> list[str]:
    """What each row would say."""
    ids, mask = hidden.argmax(-1), given["attention_mask"].bool()
    return [
        " ".join(map(str, (row if padding else row[real]).tolist()))
        for row, real in zip(ids, mask, strict=True)
    ]


# ---------------------------------------------------------------------- 41: numbers, arrays and texts


@case(
    "41-number-of-padding",
    "A number of Python that is the largest state of all columns, padding too",
    semantic(),
    truth=UNCHECKED,
    check=more_differs,
)
def _() -> Pair:
    return padded(Reports(lambda hidden, _: hidden.abs().sum().item()))


@case("41-number-sound", "A number of Python that leaves out padding", *SOUND, check=more_agrees)
def _() -> Pair:
    return padded(Reports(lambda hidden, given: float(_masked_mean(hidden, given).sum())))


@case(
    "41-array-of-padding",
    "An array of NumPy, [rows, width], that averages over padding",
    semantic(),
    truth=UNCHECKED,
    check=more_differs,
)
def _() -> Pair:
    return padded(Reports(lambda hidden, _: hidden.mean(1).numpy()), mates=2)


@case("41-array-sound", "An array of NumPy, [rows, width], by the mask", *SOUND, check=more_agrees)
def _() -> Pair:
    return padded(Reports(lambda hidden, given: _masked_mean(hidden, given).numpy()), mates=2)


@case("41-list-sound", "A list with a number for each row, by the mask", *SOUND, check=more_agrees)
def _() -> Pair:
    return padded(Reports(lambda hidden, given: _masked_mean(hidden, given).sum(1).tolist()), mates=2)


@case(
    "41-text-of-padding",
    "A text for each row, in which the padding says something, too",
    semantic(),
    truth=UNCHECKED,
    check=more_differs,
)
def _() -> Pair:
    return padded(Reports(lambda hidden, given: _words(hidden, given, padding=True)), mates=2)


@case("41-text-sound", "A text for each row, of its real tokens", *SOUND, check=more_agrees)
def _() -> Pair:
    return padded(Reports(lambda hidden, given: _words(hidden, given, padding=False)), mates=2)


# ---------------------------------------------------------------------- 41: what can't be compared


@case(
    "41-not-compared",
    "A table as long as the columns are, whose tokens nobody knows",
    UNDETERMINED,
    truth=UNCHECKED,
    check=same_but,
    note="whatever was returned and not compared stands in the way of `identical`",
)
def _() -> Pair:
    return padded(Reports(lambda hidden, _: torch.ones(hidden.shape[1] + 1, hidden.shape[1])))


@case("41-table-sound", "A table of one size, whatever the columns", IDENTICAL)
def _() -> Pair:
    return padded(Reports(lambda *_: torch.arange(6.0)))


@case(
    "41-object-listed",
    "An object without a value is listed, and decides nothing",
    IDENTICAL,
    check=same_but,
)
def _() -> Pair:
    return padded(Reports(lambda *_: object()))


# ---------------------------------------------------------------------- 41: integers


class Decides(nn.Module):
    """Adds three numbers and says which sums are above a bar, as an argmax does; with 1 ULP of float32 between them."""

    def __init__(self, *, first: bool, bar: float = 0.0) -> None:
        super().__init__()
        self.first, self.bar = first, bar

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b, c = x.unbind(-1)
        total = (a + b) + c if self.first else a + (b + c)
        return {"total": total, "above": (total > self.bar).long() * 1000}


def _decided(pair: Pair) -> None:
    for exact in (False, True):
        a, b = (outputs(side, exact=exact)[0]["above"] for side in (pair.a, pair.b))
        assert torch.equal(a, b) == exact


def _decided_otherwise(pair: Pair) -> None:
    a, b = (outputs(side, exact=True)[0]["above"] for side in (pair.a, pair.b))
    assert not torch.equal(a, b)


@case(
    "41-integers-rounding",
    "Sums in two orders, and integers that tell which are above a bar between two roundings",
    ROUNDING,
    truth=UNCHECKED,
    check=_decided,
    note="1,000 apart, and no gap of 1,000: they are the same in float64",
)
def _() -> Pair:
    x = floats(1, 64, 3)
    left, right = ((x[..., 0] + x[..., 1]) + x[..., 2]), (x[..., 0] + (x[..., 1] + x[..., 2]))
    low = torch.minimum(left, right)
    between = (left != right) & ((x.double().sum(-1) - low).abs() > 1e-9)
    bar = float(low[between][0])
    return Pair(
        Side(Decides(first=True, bar=bar), {"x": x}, whole()),
        Side(Decides(first=False, bar=bar), {"x": x.clone()}, whole()),
    )


@case(
    "41-integers-semantic",
    "Integers that tell which values are above a bar, with another bar",
    semantic(None, by_design=None),
    truth=UNCHECKED,
    check=_decided_otherwise,
)
def _() -> Pair:
    x = {"x": floats(1, 8, 3)}
    return Pair(Side(Decides(first=True), x, whole()), Side(Decides(first=True, bar=0.5), dict(x), whole()))
