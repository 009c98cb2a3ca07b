"""What a model returns besides tensors of tokens: numbers, arrays, texts, and what can't be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import models
from .case import UNCHECKED, Pair, Side, case
from .exact import outputs
from .expect import IDENTICAL, LEAK_EITHER, ROUNDING, SOUND, UNDETERMINED, semantic
from .modules import Tagger, seeded
from .pairs import padded, twice
from .tokens import floats, pad, row, whole, words

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


# ---------------------------------------------------------------------- 41: where a result lies

RESULT_ORDER = semantic("result_order", by_design=None)


class Moves(nn.Module):
    """Looks up its tokens, works on each alone, and returns what a function makes of that."""

    def __init__(self, move: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.embed = seeded(nn.Embedding, 96, 6)
        self.move = move

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.move(self.embed(input_ids).tanh(), attention_mask)


def _places(pair: Pair) -> None:
    """Read where it went in, what both runs have is not the same."""
    a, b = (outputs(side, exact=True)[0] for side in (pair.a, pair.b))
    mask = pair.b.calls[0]["attention_mask"]
    if a.dim() == 3:
        b = b[: len(a)][mask[: len(a)].bool()[:, : b.shape[1]]].reshape(a.shape)
    assert float((a - b[: len(a)]).abs().max()) > 1e-3


def _longest(mask: Tensor) -> Tensor:
    return mask.sum(1).argsort(descending=True)


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]


def _pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _windows(hidden: Tensor, _: Tensor) -> Tensor:
    """Windows of a shifted grid that nobody shifts back."""
    return hidden.roll(-(hidden.shape[1] // 4), 1)


MOVED: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "sorted": ("The rows sorted by their length", lambda h, m: h[_longest(m)]),
    "sorted-pooled": (
        "A vector for each row, the longest row first",
        lambda h, m: _pooled(h, m)[_longest(m)],
    ),
    "sorted-last": (
        "The last token of each row, the longest row first",
        lambda h, m: _last(h, m)[_longest(m)],
    ),
    "flip": ("The columns backwards, padding first", lambda h, _: h.flip(1)),
    "flip-rows": ("The rows backwards", lambda h, _: h.flip(0)),
    "roll": ("Columns shifted by one, the last one first", lambda h, _: h.roll(1, 1)),
    "window": ("Windows of a shifted grid that nobody shifts back", _windows),
    "transposed": (
        "Rows and columns exchanged, and then taken for rows and columns",
        lambda h, _: h.transpose(0, 1).reshape(h.shape),
    ),
}
"""Results that are not in the place where their tokens went in, in run b alone."""


def _moved(move: Callable[[Tensor, Tensor], Tensor]) -> Pair:
    return padded(Moves(move), mates=2)


for _name, (_title, _move) in MOVED.items():
    case(
        f"41-place-{_name}",
        f"{_title}, for a row alone and for a padded batch",
        RESULT_ORDER,
        truth=UNCHECKED,
        check=_places,
    )(lambda move=_move: _moved(move))


def _pack(values: Tensor, mask: Tensor) -> Tensor:
    return nn.utils.rnn.pack_padded_sequence(values, mask.sum(1), batch_first=True, enforce_sorted=False).data


def _unpacked(packed: Tensor, mask: Tensor) -> Tensor:
    """The real tokens row by row, as a packed sequence has them by columns."""
    return packed[_pack(torch.arange(mask.numel()).reshape(mask.shape), mask).argsort()]


Reading = Callable[[Tensor, Tensor], Tensor]

IN_PLACE: dict[str, tuple[str, Reading, Reading]] = {
    "sorted-back": (
        "Sorted by length and back",
        lambda h, m: h[_longest(m)][_longest(m).argsort()],
        lambda out, m: out[0][m[0].bool()],
    ),
    "flat": (
        "All tokens in one dimension",
        lambda h, _: h.flatten(0, 1),
        lambda out, m: out.unflatten(0, m.shape)[0][m[0].bool()],
    ),
    "flat-tokens": (
        "The real tokens alone, row by row",
        lambda h, m: h[m.bool()],
        lambda out, m: out[: int(m[0].sum())],
    ),
    "time-major": (
        "Columns before rows",
        lambda h, _: h.transpose(0, 1).contiguous(),
        lambda out, m: out[:, 0][m[0].bool()],
    ),
    "last": ("The last token of each row", _last, lambda out, _: out[0]),
    "packed": (
        "The real tokens as a packed sequence has them",
        _pack,
        lambda out, m: _unpacked(out, m)[: int(m[0].sum())],
    ),
    "channels": (
        "Features before columns",
        lambda h, _: h.transpose(1, 2),
        lambda out, m: out[0].T[m[0].bool()],
    ),
    "layers": (
        "A vector for each row in the second dimension",
        lambda h, m: _pooled(h, m)[None],
        lambda out, _: out[0, 0],
    ),
}
"""Results in other forms, each in the place that its form says; and how row 0's real tokens are read there."""


def _read(move: Reading, read: Reading) -> Pair:
    pair = padded(Moves(move), mates=2)
    for side in (pair.a, pair.b):
        mask = side.calls[0]["attention_mask"]
        side.pick = lambda returned, mask=mask: read(returned[0], mask)
    return pair


for _name, (_title, _move, _how) in IN_PLACE.items():
    case(f"41-in-place-{_name}", f"{_title}, for a row alone and for a padded batch", *SOUND)(
        lambda move=_move, how=_how: _read(move, how)
    )


@case("41-in-place-flip-twice", "The columns backwards, in both runs of one layout", IDENTICAL)
def _() -> Pair:
    return twice(Moves(lambda hidden, _: hidden.flip(1)), mask=True)


@case("41-in-place-sorted-twice", "A batch sorted by length, in both runs of one layout", IDENTICAL)
def _() -> Pair:
    pair = padded(Moves(lambda hidden, mask: hidden[_longest(mask)]), mates=2)
    return Pair(pair.b, Side(pair.b.model, dict(pair.b.calls[0]), pair.b.pick))


# ---------------------------------------------------------------------- 41: losses

NORMALISATION = semantic("loss_normalisation", by_design=None)
Reduction = Callable[[Tensor, Tensor, Tensor], Tensor]


class Trains(nn.Module):
    """A language model whose logits depend on their own token alone, and its loss.

    Args:
        loss: from logits [rows, columns, vocabulary], token ids and mask, shifted against each other by one.
    """

    def __init__(self, loss: Reduction) -> None:
        super().__init__()
        self.embed = seeded(nn.Embedding, 96, 8)
        self.head = seeded(nn.Linear, 8, 96)
        self.loss = loss

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        logits = 3 * self.head(self.embed(input_ids))
        return {
            "logits": logits,
            "loss": self.loss(logits[:, :-1], input_ids[:, 1:], attention_mask[:, 1:]),
        }


def _per_token(logits: Tensor, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")


def _by_mask(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return (_per_token(logits, ids) * mask).sum() / mask.sum()


def _by_columns(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return (_per_token(logits, ids) * mask).mean()


def _ignoring(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids.masked_fill(mask == 0, -100).flatten())


def _smoothed(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Label smoothing that averages over padding, too, as in a trainer."""
    spread = -logits.log_softmax(-1).mean(-1)
    return 0.9 * _by_mask(logits, ids, mask) + 0.1 * (spread * mask).mean()


def _smoothed_by_mask(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    spread = -logits.log_softmax(-1).mean(-1)
    return 0.9 * _by_mask(logits, ids, mask) + 0.1 * (spread * mask).sum() / mask.sum()


def _losses(pair: Pair) -> tuple[float, float]:
    """The mean loss of each run's calls, in float64; every logit that both have is the same."""
    same_but(pair)
    a, b = ([float(output["loss"]) for output in outputs(side, exact=True)] for side in (pair.a, pair.b))
    return sum(a) / len(a), sum(b) / len(b)


def losses_differ(pair: Pair) -> None:
    a, b = _losses(pair)
    assert abs(a - b) > 1e-3 * a, f"{a} in both"


def losses_agree(pair: Pair) -> None:
    a, b = _losses(pair)
    assert abs(a - b) < 1e-12 * a, f"{a} and {b}"


LOSSES: dict[str, tuple[str, Reduction, Reduction]] = {
    "mean": ("The mean of a row's terms", _by_columns, _by_mask),
    "cross-entropy": (
        "A cross-entropy of one row",
        lambda logits, ids, _: nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()),
        _ignoring,
    ),
    "smoothing": ("A loss with label smoothing", _smoothed, _smoothed_by_mask),
    "number": (
        "The mean of a row's terms as a number of Python",
        lambda *given: _by_columns(*given).item(),
        lambda *given: _by_mask(*given).item(),
    ),
}
"""Losses that count padding, and the same by the mask."""

for _name, (_title, _wrong, _right) in LOSSES.items():
    case(
        f"41-loss-{_name}", f"{_title}, padding counted",
        LEAK_EITHER if _name == "cross-entropy" else NORMALISATION,  # padding's own terms enter that one's sum
        truth=UNCHECKED, check=losses_differ,
    )(lambda loss=_wrong: padded(Trains(loss)))  # fmt: skip
    case(
        f"41-loss-{_name}-sound", f"{_title}, padding left out", *SOUND,
        check=losses_agree,
    )(lambda loss=_right: padded(Trains(loss)))  # fmt: skip


def _micro_batches(lengths: tuple[int, ...]) -> Pair:
    """Four rows in one call, against two calls of two rows each."""
    ids, mask = pad([words(n, seed=n + i) for i, n in enumerate(lengths)])
    whole_batch = {"input_ids": ids, "attention_mask": mask}
    halves = [
        {name: value[part] for name, value in whole_batch.items()} for part in (slice(0, 2), slice(2, 4))
    ]

    def layout(fp: Any) -> Any:
        entry = fp.Layout.from_mask(mask).calls[0]["main"]
        parts = (slice(0, 2), slice(2, 4))
        return fp.Layout([fp.Coordinates(entry.sample[part], entry.position[part]) for part in parts])

    model = Trains(_by_mask)
    real = mask.bool()
    return Pair(
        Side(model, whole_batch, lambda out: out[0]["logits"][real]),
        Side(model, halves, lambda out: torch.cat([o["logits"] for o in out])[real], layout=layout),
    )


@case(
    "41-loss-micro-batches",
    "The mean loss of a batch, against the mean of the losses of its halves, which have other numbers of tokens",
    NORMALISATION,
    truth=UNCHECKED,
    check=losses_differ,
    source="transformers#34191",
)
def _() -> Pair:
    return _micro_batches((4, 5, 11, 12))


@case(
    "41-loss-micro-batches-sound",
    "The mean loss of a batch, against the mean of the losses of its halves, which have as many tokens",
    *SOUND,
    check=losses_agree,
)
def _() -> Pair:
    return _micro_batches((4, 9, 4, 9))


@case(
    "41-loss-two-counts",
    "Two models, one padded batch: one divides by the real tokens, the other by all columns",
    NORMALISATION,
    truth=UNCHECKED,
    check=losses_differ,
)
def _() -> Pair:
    given = padded(Trains(_by_mask), mates=1).b
    other = Side(Trains(_by_columns), dict(given.calls[0]), given.pick)
    return Pair(given, other)


@case(
    "41-loss-scaled",
    "Two models, one batch: the loss of one is multiplied by 0.7",
    semantic(None, by_design=None),
    truth=UNCHECKED,
    check=losses_differ,
    note="the same terms enter both losses, but what differs is no count",
)
def _() -> Pair:
    given = padded(Trains(_by_mask), mates=1).b
    other = Side(Trains(lambda *terms: 0.7 * _by_mask(*terms)), dict(given.calls[0]), given.pick)
    return Pair(given, other)


@case(
    "41-encoder-as-long-as-decoder",
    "BART whose encoder has as many columns as its decoder, in the run without padding alone",
    *SOUND,
    note="the encoder's states, which are returned too, are not the decoder's tokens",
)
def _() -> Pair:
    given = padded(models.bart("eager"), more={"decoder_input_ids": row(words(9, seed=5))})
    for side in (given.a, given.b):
        side.pick = lambda returned: returned[0]["logits"]
    return given
