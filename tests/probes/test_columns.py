"""Inputs that name columns: the same tokens in another layout are the same input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.explain.session import Session
from forkpoint.probes.columns import name_the_same_tokens
from forkpoint.probes.inputs import inputs


class Kept(Model):
    """Returns the logits of some columns."""

    def forward(self, input_ids: Tensor, kept: Tensor, **inputs: Any) -> dict[str, Any]:
        logits = super().forward(input_ids, **inputs)["logits"]
        rows = torch.arange(len(logits)).reshape(-1, *[1] * (kept.dim() - 1))
        return {"logits": logits[rows, kept]}


def columns(a: Any, b: Any) -> Session:
    """Rows of four tokens alone, and behind two columns of padding."""
    given = batch(ids()), batch(ids(), left=2)
    return session(
        *pair(Kept(), *({**one, "kept": torch.tensor(k)} for one, k in zip(given, (a, b), strict=True)))
    )


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([3, 1], [5, 3], True),
        ([-1, -3], [-1, -3], True),
        ([3, -1], [-1, 5], True),
        ([[0, 3], [1, 2]], [[2, 5], [3, 4]], True),
        ([3, 1], [3, 1], False),
        ([3, 1], [5, 4], False),
        ([3, 1], [5, 0], False),
        ([[0, 3], [1, 2]], [[5, 2], [3, 4]], False),
    ],
    ids=["shifted", "from the end", "either way", "several", "other tokens", "one other", "padding", "order"],
)
def test_columns_are_the_same_where_their_tokens_are(a, b, same):
    both = columns(a, b)
    assert name_the_same_tokens(both, "kept") is same
    if a != b:
        assert inputs(both).differs is not same


def test_all_rows_may_have_the_same_columns():
    both = columns([0, 1], [2, 3])
    assert name_the_same_tokens(both, "kept")
    both.a.run.calls[0]["kept"], both.b.run.calls[0]["kept"] = (
        torch.tensor([1, 2, 3]),
        torch.tensor([3, 4, 5]),
    )
    assert name_the_same_tokens(both, "kept")


@pytest.mark.parametrize(
    "value", [torch.ones(2), torch.tensor([True, False]), torch.tensor(1), torch.tensor([9, 9]), None]
)
def test_what_is_no_column_names_no_token(value):
    both = columns([3, 1], [5, 3])
    both.a.run.calls[0]["kept"] = both.b.run.calls[0]["kept"] = value
    assert not name_the_same_tokens(both, "kept")
