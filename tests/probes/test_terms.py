"""The terms probe: losses that are divided by other counts, and whatever else may make one number differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.probes.divisors import are_others
from forkpoint.probes.precision import precision
from forkpoint.probes.terms import loss_terms
from forkpoint.result import ProbeResult


class Trains(Model):
    """Returns its logits and a loss that a function makes of them."""

    def __init__(self, loss: Callable[..., Tensor], by: float = 0.0) -> None:
        super().__init__()
        self.loss, self.by = loss, by

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> dict[str, Tensor]:
        logits = super().forward(input_ids)["logits"] + self.by * attention_mask.float().mean()
        return {"logits": logits, "loss": self.loss(logits, input_ids, attention_mask, **more)}


def terms(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")


def by_columns(logits: Tensor, tokens: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
    return scale * (terms(logits, tokens) * mask).mean()


def by_mask(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    return (terms(logits, tokens) * mask).sum() / mask.sum()


def in_one_op(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    labels = tokens.masked_fill(mask == 0, -100)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / mask.numel()


def asked(a: Model, b: Model, **more: Any) -> ProbeResult | None:
    both = session(*pair(a, batch(ids()), {**batch(ids(), right=3), **more}, b))
    return loss_terms(both, precision(both))


@pytest.mark.parametrize("loss", [by_columns, in_one_op])
def test_padding_that_counts(loss: Callable[..., Tensor]):
    model = Trains(loss)
    found = asked(model, model)
    assert found is not None
    assert (found.outcome, found.figure) == ("agree", 8)
    assert found.text.startswith(
        "the terms that enter loss are the same at all 8 places that both runs have, but it is "
    )


def test_two_models_that_divide_by_other_counts():
    assert asked(Trains(by_mask), Trains(by_columns)) is not None


def test_a_mean_that_padding_enters_is_no_matter_of_divisors():
    model = Trains(lambda logits, tokens, _: F.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
    assert asked(model, model) is None


def test_two_models_of_one_function_inside_of_an_op():
    assert asked(Trains(in_one_op), Trains(in_one_op)) is not None


def test_a_factor_is_no_count():
    assert asked(Trains(by_mask), Trains(lambda *given: 0.7 * by_mask(*given))) is None
    assert asked(Trains(in_one_op), Trains(lambda *given: 0.7 * in_one_op(*given))) is None


def test_an_argument_of_one_run_alone_may_be_any_function():
    model = Trains(lambda logits, tokens, mask, scale=1.0: scale * in_one_op(logits, tokens, mask))
    assert asked(model, model, scale=0.7) is None


def sum_in_op(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, tokens, mask: terms(logits, tokens).sum() / mask.sum(),
        lambda logits, tokens, mask: sum_in_op(logits, tokens) / mask.sum(),
        lambda logits, tokens, mask: (
            by_mask(logits, tokens, mask) + (logits.logsumexp(-1) * (1 - mask)).sum()
        ),
        lambda logits, tokens, mask: by_mask(logits, tokens, mask) + logits.logsumexp(-1).mean(),
    ],
)
def test_what_padding_adds_is_no_divisor(loss: Callable[..., Tensor]):
    model = Trains(loss)
    assert asked(model, model) is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, tokens, mask: sum_in_op(logits, tokens.masked_fill(mask == 0, -100)) / mask.numel(),
        lambda logits, tokens, mask: by_mask(logits, tokens, mask) + (logits.logsumexp(-1) * mask).mean(),
    ],
)
def test_terms_inside_of_an_op_that_other_counts_divide(loss: Callable[..., Tensor]):
    model = Trains(loss)
    assert asked(model, model) is not None


def test_other_weights_are_no_divisor():
    def of_rows(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        some = mask.clone()
        some[0, :2] = 0
        return ((terms(logits, tokens) * some).sum(1) / some.sum(1)).mean()

    assert asked(Trains(by_mask), Trains(of_rows)) is None


@pytest.mark.parametrize("over", ["mean", "sum", ""])
def test_divisors_are_the_same_taken_together(over: str):
    assert not are_others([6.0], {"mean": [3.0, 3.0], "sum": [6.0, 6.0], "": [6.0]}[over], over)
    assert are_others([6.0], {"mean": [2.0, 4.0], "sum": [3.0, 3.0], "": [5.0]}[over], over)


def test_a_sum_is_divided_by_nothing():
    model = Trains(lambda logits, tokens, _: terms(logits, tokens).sum())
    assert asked(model, model) is None


def test_other_terms_are_another_matter():
    assert asked(Trains(by_columns), Trains(by_columns, by=0.1)) is None
    shifted = Trains(lambda logits, tokens, mask: by_columns(logits.roll(1, 0), tokens, mask))
    assert asked(Trains(by_columns), shifted) is None


def test_nothing_differs():
    model = Trains(by_mask)
    assert asked(model, model) is None


def test_a_number_of_sums_is_no_loss():
    model = Trains(in_one_op)
    both = session(
        *pair(
            model, batch(ids()), batch(ids(), right=3), call=lambda m, given: {"number": m(**given)["loss"]}
        )
    )
    assert loss_terms(both, precision(both)) is None
    assert torch.is_grad_enabled()
