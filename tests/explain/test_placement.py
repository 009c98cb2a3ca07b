"""Where results lie: in the place where their tokens went in, in both runs, or in one alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

import forkpoint as fp
from forkpoint.explain import placement
from forkpoint.explain.placement import Displaced
from forkpoint.explain.results import compare_results

Move = Callable[[Tensor, Tensor], Any]


class Moves(Model):
    """Returns what a function makes of its logits and its mask."""

    def __init__(self, move: Move) -> None:
        super().__init__()
        self.move = move

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.move(super().forward(input_ids)["logits"], attention_mask)


def rows(*lengths: int) -> dict[str, Tensor]:
    """Rows of so many tokens, padded on the right."""
    columns = torch.arange(max(lengths))
    mask = (columns < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids(len(lengths), max(lengths)) * mask, "attention_mask": mask}


def moved(move: Move, a: Any, b: Any) -> tuple[Displaced, ...]:
    return compare_results(session(*pair(Moves(move), a, b))).displaced


ALONE, TOGETHER = rows(3), rows(3, 5)
ALONE["input_ids"] = TOGETHER["input_ids"][:1, :3]


def longest(mask: Tensor) -> Tensor:
    return mask.sum(1).argsort(descending=True)


def test_a_batch_that_comes_back_sorted():
    (found,) = moved(lambda x, m: x[longest(m)], ALONE, TOGETHER)
    assert (found.name, found.count, found.of) == ("output", 3, 3)
    assert found.text == (
        "token 0 of sample 0 lies at [0, 0] of run A, its own place, "
        "and at [1, 0] of run B, where token 0 of sample 1 went in"
    )


def test_a_vector_for_each_row_that_comes_back_sorted():
    (found,) = moved(lambda x, m: {"x": (x * m[..., None]).sum(1)[longest(m)]}, ALONE, TOGETHER)
    assert found.text == (
        "sample 0 lies at row 0 of run A, its own place, and at row 1 of run B, where sample 1 went in"
    )


def test_a_token_in_the_place_of_padding():
    (found,) = moved(lambda x, _: x.flip(1), ALONE, TOGETHER)
    assert found.text.endswith("and at [0, 4] of run B, where padding went in")


@pytest.mark.parametrize(
    "move",
    [
        lambda x, m: x,
        lambda x, m: x.transpose(0, 1),
        lambda x, m: x.flatten(0, 1),
        lambda x, m: x[m.bool()],
        lambda x, m: x.transpose(0, 1)[m.T.bool()],
        lambda x, m: x[longest(m)][longest(m).argsort()],
        lambda x, m: x[torch.arange(len(x)), m.sum(1) - 1],
        lambda x, m: (x * m[..., None]).sum(1)[None],
        lambda x, m: x[:, -1:],
        lambda x, m: x.sum(),
        lambda x, m: x.repeat_interleave(2, 0),
        lambda x, m: x.softmax(-1).transpose(1, 2),
    ],
)
def test_forms_that_say_their_own_place(move: Move):
    assert moved(move, ALONE, TOGETHER) == ()


def test_what_is_turned_around_in_both_runs_of_one_layout_is_in_one_place():
    for move in (lambda x, _: x.flip(1), lambda x, _: x.flip(0), lambda x, m: x[longest(m)]):
        assert moved(move, TOGETHER, dict(TOGETHER)) == ()


def test_rows_that_go_in_elsewhere_are_looked_for_there():
    other = {name: value.flip(0) for name, value in TOGETHER.items()}
    assert moved(lambda x, _: x, TOGETHER, other) == ()
    assert moved(lambda x, m: x[longest(m)], TOGETHER, other)


def test_each_step_has_its_own_places():
    tokens = ids(2, 4)
    steps = [batch(tokens[:, :3]), batch(tokens[:, 3:])]
    whole = batch(tokens)
    model = Moves(lambda x, _: x)
    assert compare_results(session(fp.Run(model, whole), fp.Run(model, steps))).displaced == ()


class Sorted(Model):
    """Sorts its rows by keys that are the same, but that rounding may tell apart."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.keys = torch.tensor([[1.0, 2.0**-24, 2.0**-24], [1.0, 2.0**-23, 0.0]])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        a, b, c = self.keys.unbind(1)
        key = (a + b) + c if self.first else a + (b + c)
        return super().forward(input_ids)["logits"][key.argsort(descending=True, stable=True)]


def test_rounding_may_decide_an_order():
    verdict = fp.compare(*pair(Sorted(first=True), batch(ids()), batch(ids()), Sorted(first=False))).verdict
    assert {e.name: e.outcome for e in verdict.evidence}["order"] == "rounding"
    assert verdict.kind.value == "rounding"


def test_the_verdict():
    result = fp.compare(*pair(Moves(lambda x, m: x[longest(m)]), ALONE, TOGETHER))
    verdict = result.verdict
    assert (verdict.kind.value, verdict.mechanism, verdict.by_design) == ("semantic", "result_order", None)
    assert verdict.evidence[-1].name == "order"
    assert not result.identical
    plain = fp.compare(*pair(Moves(lambda x, m: x[longest(m)]), ALONE, TOGETHER), probes=False)
    assert plain.verdict.kind.value == "undetermined"


def test_where_results_lie_is_worked_out_once_for_those_of_one_form(monkeypatch):
    both = session(*pair(Moves(lambda x, m: x[longest(m)]), ALONE, TOGETHER))
    first = compare_results(both).displaced
    assert first
    monkeypatch.setattr(placement, "_displaced", None)
    assert compare_results(both).displaced == first
