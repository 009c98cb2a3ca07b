"""What float64 shows of a run that takes another path there, and of two forms of one function that round much."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import UNCHECKED, Pair, Side, case
from .expect import FUNCTION, IDENTICAL, LOW_PRECISION, ROUNDING, SOUND, semantic
from .pairs import padded
from .tokens import row, whole, words

Mix = Callable[[Tensor, nn.Embedding], Tensor]


class Mixing(nn.Module):
    """Embeddings, a linear layer, then whatever is given."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.first, self.last = nn.Embedding(96, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.mix = mix

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.last(self.mix(torch.tanh(self.first(self.embed(input_ids))), self.embed))


def _narrow(hidden: Tensor) -> bool:
    return hidden.dtype == torch.bfloat16


# ---------------------------------------------------------------------- another path in one dtype


def _shifted(hidden: Tensor, embed: nn.Embedding, *, by: int = 1) -> Tensor:
    return hidden + embed(torch.arange(hidden.shape[1]) + (by if _narrow(hidden) else 0))


def _negative(hidden: Tensor, _: nn.Embedding) -> Tensor:
    return -hidden if _narrow(hidden) else hidden


def _without_term(hidden: Tensor, _: nn.Embedding) -> Tensor:
    if _narrow(hidden) and hidden.shape[1] > 9:
        return hidden.sin()
    return hidden.sin() + 0.03 * hidden


def _fused(hidden: Tensor, _: nn.Embedding) -> Tensor:
    if _narrow(hidden):
        return F.layer_norm(hidden, (8,))
    return _standardised(hidden)


def _clamped(hidden: Tensor, _: nn.Embedding) -> Tensor:
    if _narrow(hidden):
        most = torch.finfo(hidden.dtype).max
        hidden = hidden.clamp(-most, most)
    return hidden * 2


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def _against_bfloat16(mix: Mix) -> Pair:
    model = Mixing(mix).eval()
    given = {"input_ids": row(words(9))}
    return Pair(Side(model, given, whole()), Side(copy.deepcopy(model).bfloat16(), given, whole()))


def _outputs(pair: Pair) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        one, other = (side.pick([side.model(**call) for call in side.calls]) for side in (pair.a, pair.b))
    return one.double(), other.double()


def _beyond_bfloat16(pair: Pair) -> None:
    """The gap is far from what the plain path costs in bfloat16."""
    a, b = _outputs(pair)
    plain = (
        Mixing(partial(_shifted, by=0)) if pair.a.model.mix is _shifted else Mixing(lambda hidden, _: hidden)
    )  # type: ignore[union-attr]
    ids = pair.a.calls[0]["input_ids"]
    with torch.no_grad():
        costs = (plain(ids) - copy.deepcopy(plain).bfloat16()(ids)).abs().max()
    assert float((a - b).abs().max()) > 20 * float(costs)


def _within_bfloat16(pair: Pair) -> None:
    a, b = _outputs(pair)
    assert float((a - b).abs().max()) < 8 * 2.0**-8 * float(a.abs().max())


case(
    "52-dtype-positions",
    "positions off by one in bfloat16",
    FUNCTION,
    truth=UNCHECKED,
    check=_beyond_bfloat16,
)(partial(_against_bfloat16, _shifted))
case("52-dtype-sign", "another sign in bfloat16", FUNCTION, truth=UNCHECKED, check=_beyond_bfloat16)(
    partial(_against_bfloat16, _negative)
)
case(
    "52-dtype-fused",
    "layer norm fused in bfloat16, spelt out else",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_within_bfloat16,
)(partial(_against_bfloat16, _fused))
case(
    "52-dtype-clamped",
    "values clamped to what bfloat16 holds",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_within_bfloat16,
)(partial(_against_bfloat16, _clamped))


def _other_term(pair: Pair) -> None:
    """In float64, one run with the term and one without, the gap is there."""
    model = copy.deepcopy(pair.a.model).double()
    ids = pair.a.calls[0]["input_ids"]
    with torch.no_grad():
        hidden = torch.tanh(model.first(model.embed(ids)))
        gap = model.last(hidden.sin()) - model.last(hidden.sin() + 0.03 * hidden)
    assert float(gap.abs().max()) > 1e-3


@case(
    "52-dtype-length",
    "bfloat16 alone: longer rows leave out a term that is small",
    FUNCTION,
    truth=UNCHECKED,
    check=_other_term,
)
def _by_length() -> Pair:
    model = Mixing(_without_term).eval().bfloat16()
    ids = row(words(9))
    mask = torch.ones_like(ids)
    a = {"input_ids": ids, "attention_mask": mask}
    b = {name: F.pad(value, (0, 4)) for name, value in a.items()}
    return Pair(Side(model, a, whole()), Side(model, b, lambda outputs: outputs[0][:, :9]))


# ---------------------------------------------------------------------- two forms of one function that round much


def _far(hidden: Tensor, _: nn.Embedding, *, norm: Callable[[Tensor], Tensor]) -> Tensor:
    return norm(30 + hidden)


def _by_squares(x: Tensor, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x**2).mean(-1, keepdim=True) - mean**2 + eps).sqrt()


def _sines(hidden: Tensor, _: nn.Embedding, *, frequencies: Callable[[], Tensor]) -> Tensor:
    places = torch.arange(8000, 8000 + hidden.shape[1])[:, None] * frequencies()
    return hidden + torch.cat([places.sin(), places.cos()], -1)


def _powers() -> Tensor:
    return 1 / 10000 ** (torch.arange(0, 8, 2).to(torch.get_default_dtype()) / 8)


def _exponentials() -> Tensor:
    return torch.exp(torch.arange(0, 8, 2).to(torch.get_default_dtype()) * (-math.log(10000.0) / 8))


def _two(one: Mix, other: Mix) -> Pair:
    given = {"input_ids": row(words(9))}
    return Pair(Side(Mixing(one).eval(), given, whole()), Side(Mixing(other).eval(), given, whole()))


def _falls_with_the_unit(pair: Pair) -> None:
    """In float64 the gap is smaller by about as much as the unit in the last place is: 2**29."""
    a, b = _outputs(pair)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        exact = _outputs(
            Pair(*(Side(copy.deepcopy(s.model).double(), s.inputs, s.pick) for s in (pair.a, pair.b)))
        )
    finally:
        torch.set_default_dtype(before)
    assert float((exact[0] - exact[1]).abs().max()) < 2.0**-24 * float((a - b).abs().max())


_NORM = partial(_far, norm=partial(F.layer_norm, normalized_shape=(8,)))


def _forms(name: str, title: str, one: Mix, other: Mix, **more: Any) -> None:
    case(name, title, more.pop("expected", ROUNDING), truth=UNCHECKED, **more)(partial(_two, one, other))


_forms(
    "52-forms-norm", "layer norm of what is far from zero, fused and by its squares", _NORM,
    partial(_far, norm=_by_squares), check=_falls_with_the_unit,
)  # fmt: skip
_forms(
    "52-forms-sines", "sines of late places, their frequencies made in two ways",
    partial(_sines, frequencies=_powers), partial(_sines, frequencies=_exponentials), check=_falls_with_the_unit,
)  # fmt: skip


def _does_not_fall(pair: Pair) -> None:
    exact = _outputs(
        Pair(*(Side(copy.deepcopy(s.model).double(), s.inputs, s.pick) for s in (pair.a, pair.b)))
    )
    assert float((exact[0] - exact[1]).abs().max()) > 1e-9


_forms(
    "52-forms-eps", "the same, with another epsilon", _NORM, partial(_far, norm=partial(_by_squares, eps=1.1e-5)),
    expected=FUNCTION, check=_does_not_fall,
)  # fmt: skip


# ---------------------------------------------------------------------- token ids that are read without a lookup


class Reading(nn.Module):
    """Embeddings, attention that hides padding, and what is read of the ids besides.

    Args:
        read: from ids `[rows, columns]` and the mask, a factor or rows to add.
    """

    def __init__(self, read: Callable[[Tensor, Tensor, nn.Embedding], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.query, self.value = nn.Embedding(96, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.read = read

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        scores = (self.query(hidden) @ hidden.mT / 6).masked_fill(~attention_mask[:, None].bool(), -1e9)
        return scores.softmax(-1) @ self.value(hidden) + self.read(input_ids, attention_mask, self.embed)


def _sum_of_ids(ids: Tensor, _: Tensor, __: nn.Embedding) -> Tensor:
    return ids.sum(1)[:, None, None] / 100


def _sum_of_real_ids(ids: Tensor, mask: Tensor, _: nn.Embedding) -> Tensor:
    return (ids * mask).sum(1)[:, None, None] / 100


def _places_by_pad(ids: Tensor, _: Tensor, embed: nn.Embedding) -> Tensor:
    real = ids.ne(0)
    return embed(real.cumsum(1) * real)


def _bigrams(ids: Tensor, _: Tensor, embed: nn.Embedding) -> Tensor:
    return embed((ids * 7 + ids.flatten().roll(1).view_as(ids)) % 96)


def _own_bigrams(ids: Tensor, _: Tensor, embed: nn.Embedding) -> Tensor:
    return embed((ids * 7 + F.pad(ids, (1, -1))) % 96)


def _separators(ids: Tensor, _: Tensor, embed: nn.Embedding) -> Tensor:
    return embed((ids % 2 == 0).flatten().cumsum(0).view_as(ids))


def _padded(read: Any) -> Pair:
    return padded(Reading(read).eval(), extra=6)


def _mates(read: Any) -> Pair:
    model = Reading(read).eval()
    ids = torch.stack([torch.tensor(words(9, seed=seed)) for seed in (1, 0)])
    mask = torch.ones_like(ids)
    a = {"input_ids": ids[1:], "attention_mask": mask[1:]}
    return Pair(
        Side(model, a, whole()),
        Side(model, {"input_ids": ids, "attention_mask": mask}, lambda outputs: outputs[0][1:]),
    )


def _moved_by_ids(pair: Pair, *, moves: bool) -> None:
    """Other ids where run a has none, and nothing else, move what both runs have in float64, or do not."""
    model, given = copy.deepcopy(pair.b.model).double(), pair.b.calls[0]
    ids, mask = given["input_ids"], given["attention_mask"]
    rows = len(ids)
    other = torch.where(mask > 0, ids, 2) if rows == 1 else torch.cat([ids[:1].flip(1) % 90 + 3, ids[1:]])
    with torch.no_grad():
        gap = (pair.b.pick([model(ids, mask)]) - pair.b.pick([model(other, mask)])).abs().max()
    assert (float(gap) > 1e-6) == moves


for _name, _title, _pair, _read, _moves in (
    ("pads", "a factor of all ids, padding among them", _padded, _sum_of_ids, True),
    ("pads-masked", "the same of real tokens alone", _padded, _sum_of_real_ids, False),
    ("rows", "bigrams over the whole batch", _mates, _bigrams, True),
    ("rows-own", "bigrams of each row", _mates, _own_bigrams, False),
    (
        "rows-separators",
        "how many separators (even ids) came before, in the whole batch",
        _mates,
        _separators,
        True,
    ),
):
    case(
        f"52-ids-{_name}", _title, *((semantic("padding_leak", None),) if _moves else SOUND),
        *((IDENTICAL,) if _name == "pads" else ()),  # these runs are the same in exact arithmetic
        truth=UNCHECKED,
        check=partial(_moved_by_ids, moves=_moves),
    )(partial(_pair, _read))  # fmt: skip

case("52-ids-places", "positions from which ids are pads", *SOUND)(partial(_padded, _places_by_pad))
