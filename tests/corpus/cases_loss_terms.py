"""Losses: other divisors of the same terms, or other terms over the same divisor; and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from . import models
from .case import UNCHECKED, Pair, Side, case
from .cases_results import NORMALISATION, Trains, losses_agree, losses_differ
from .expect import FUNCTION, LEAK_EITHER, SOUND
from .pairs import padded
from .tokens import at, pad, words

Reduction = Callable[[Tensor, Tensor, Tensor], Tensor]


def _terms(logits: Tensor, ids: Tensor) -> Tensor:
    return cross_entropy(logits.transpose(1, 2), ids, reduction="none")


def _in_one_op(logits: Tensor, ids: Tensor, how: str, **more: Tensor) -> Tensor:
    return cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction=how, **more)


def _ignored(ids: Tensor, mask: Tensor) -> Tensor:
    return ids.masked_fill(mask == 0, -100)


def _mean(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return (_terms(logits, ids) * mask).sum() / mask.sum()


def _spread(logits: Tensor) -> Tensor:
    return -logits.log_softmax(-1).mean(-1)


def _weights(logits: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, logits.shape[-1], dtype=logits.dtype)


def _batch(model: Trains) -> Pair:
    """Two rows padded to the longer one, against the same padded further."""
    rows = [words(9), words(6, seed=3)]
    sides: list[Side] = []
    for width in (9, 13):
        ids, mask = pad(rows, to=width)
        sides.append(Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)))
    return Pair(*sides)


# ---------------------------------------------------------------------- 48: what is added, and what it is divided by

ADDED: dict[str, tuple[str, Reduction, Reduction]] = {
    "sum": (
        "The sum of all columns' terms over the number of real tokens",
        lambda logits, ids, mask: _terms(logits, ids).sum() / mask.sum(),
        _mean,
    ),
    "sum-in-op": (
        "The same sum in one op",
        lambda logits, ids, mask: _in_one_op(logits, ids, "sum") / mask.sum(),
        lambda logits, ids, mask: _in_one_op(logits, _ignored(ids, mask), "sum") / mask.sum(),
    ),
    "penalty": (
        "A mean over real tokens, and a penalty on what padding would predict",
        lambda logits, ids, mask: (
            _mean(logits, ids, mask) + ((1 - mask) * _terms(logits, ids)).sum() / mask.sum()
        ),
        _mean,
    ),
    "smoothing": (
        "Label smoothing that sums over padding, over the number of real tokens",
        lambda logits, ids, mask: _mean(logits, ids, mask) + 0.1 * _spread(logits).sum() / mask.sum(),
        lambda logits, ids, mask: (
            _mean(logits, ids, mask) + 0.1 * (_spread(logits) * mask).sum() / mask.sum()
        ),
    ),
}
"""Losses to which padding adds something, and the same without; what they divide by is the same."""

DIVIDED: dict[str, tuple[str, Reduction, Reduction]] = {
    "columns-in-op": (
        "A sum in one op that leaves out padding, over all columns",
        lambda logits, ids, mask: _in_one_op(logits, _ignored(ids, mask), "sum") / mask.numel(),
        ADDED["sum-in-op"][2],
    ),
    "weights": (
        "A mean in one op with a weight for each word, padding counted",
        lambda logits, ids, _: _in_one_op(logits, ids, "mean", weight=_weights(logits)),
        lambda logits, ids, mask: _in_one_op(logits, _ignored(ids, mask), "mean", weight=_weights(logits)),
    ),
    "focal": (
        "A focal loss, averaged over all columns",
        lambda logits, ids, mask: (_terms(logits, ids) * (1 - (-_terms(logits, ids)).exp()) * mask).mean(),
        lambda logits, ids, mask: (
            (_terms(logits, ids) * (1 - (-_terms(logits, ids)).exp()) * mask).sum() / mask.sum()
        ),
    ),
}
"""Losses that are divided by other counts, and the same by the mask."""
BOTH = ("weights",)
"""Those of them whose sum padding's own terms enter, too."""

for _kind, _losses, _expected in (("added", ADDED, LEAK_EITHER), ("divided", DIVIDED, NORMALISATION)):
    for _name, (_title, _wrong, _right) in _losses.items():
        for _form, _make in (("", padded), ("-batch", _batch)):
            case(
                f"48-loss-{_kind}-{_name}{_form}", _title, LEAK_EITHER if _name in BOTH else _expected, truth=UNCHECKED, check=losses_differ,
            )(lambda make=_make, loss=_wrong: make(Trains(loss)))  # fmt: skip
        case(f"48-loss-{_kind}-{_name}-sound", f"{_title}: by the mask", *SOUND, check=losses_agree)(
            lambda loss=_right: _batch(Trains(loss))
        )


@case(
    "48-loss-of-rows",
    "Two models, one batch: the mean over tokens, or the mean of the means of rows",
    FUNCTION,
    truth=UNCHECKED,
    check=losses_differ,
    note="the same terms enter both, with other weights: no divisor makes one of the other",
)
def _() -> Pair:
    def of_rows(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return ((_terms(logits, ids) * mask).sum(1) / mask.sum(1)).mean()

    given = _batch(Trains(_mean)).b
    return Pair(given, Side(Trains(of_rows), dict(given.calls[0]), given.pick))


# ---------------------------------------------------------------------- 48: micro-batches as they are given


def _parts(loss: Reduction, lengths: tuple[int, ...], *edges: int, cut: bool = False) -> Pair:
    """A batch in one call, against the rows between edges in a call each; `cut` to the longest of them."""
    ids, mask = pad([words(n, seed=n + i) for i, n in enumerate(lengths)])
    calls: list[dict[str, Tensor]] = []
    for start, end in pairwise((0, *edges, len(lengths))):
        width = int(mask[start:end].sum(1).max()) if cut else ids.shape[1]
        calls.append({"input_ids": ids[start:end, :width], "attention_mask": mask[start:end, :width]})
    real = [call["attention_mask"].bool() for call in calls]
    model = Trains(loss)

    def pick(returned: list[Any]) -> Tensor:
        return torch.cat([output["logits"][some] for output, some in zip(returned, real, strict=True)])

    whole = Side(model, {"input_ids": ids, "attention_mask": mask}, lambda out: out[0]["logits"][mask.bool()])
    return Pair(whole, Side(model, calls, pick))


def _mean_in_op(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return _in_one_op(logits, _ignored(ids, mask), "mean")


for _name, _title, _loss in (
    ("terms", "The mean loss of a batch, against those of its micro-batches", _mean),
    ("in-op", "The same where one op makes it", _mean_in_op),
):
    for _form, _edges, _cut in (
        ("halves", (2,), False),
        ("cut", (2,), True),
        ("ones", (1, 2, 3), True),
        ("uneven", (3,), False),
    ):
        case(
            f"48-micro-{_name}-{_form}", _title, NORMALISATION, truth=UNCHECKED, check=losses_differ,
        )(lambda loss=_loss, edges=_edges, cut=_cut: _parts(loss, (4, 5, 11, 12), *edges, cut=cut))  # fmt: skip
    case(f"48-micro-{_name}-sound", f"{_title}, of as many tokens", *SOUND, check=losses_agree)(
        lambda loss=_loss: _parts(loss, (4, 9, 4, 9), 2, cut=True)
    )


def _llama_losses_differ(pair: Pair) -> None:
    with torch.no_grad():
        whole, *halves = (
            float(pair.a.model(**call, use_cache=False).loss) for call in (*pair.a.calls, *pair.b.calls)
        )
    assert abs(sum(halves) / len(halves) - whole) > 1e-3 * whole


@case(
    "48-micro-llama",
    "A Llama's loss of a batch, and of its halves, each with a cache of its own",
    NORMALISATION,
    truth=UNCHECKED,
    check=_llama_losses_differ,
    source="transformers#34191",
    note="whatever cache the first call returns is of other samples than the second call's",
)
def _() -> Pair:
    pair = _parts(_mean, (4, 5, 9, 8), 2)
    model = models.llama("sdpa")
    for side in (pair.a, pair.b):
        side.model = model
        for call in side.calls:
            call["labels"] = _ignored(call["input_ids"], call["attention_mask"])  # type: ignore[index]
    return pair
