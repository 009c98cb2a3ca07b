"""Micro-batches: calls that hold other samples each are told from calls that go on with the same rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.plain import Model, batch, ids
from torch import Tensor

import forkpoint as fp
from forkpoint import Layout, LayoutError, Run
from forkpoint.runs.batches import paired

ROWS = ids(4, 5)
WHOLE = batch(ROWS)
HALVES = [batch(ROWS[:2]), batch(ROWS[2:])]


class Counted(Model):
    """Returns what it was handed as a cache, and one of its own."""

    def forward(self, input_ids: Tensor, past_key_values: Any = None, **inputs: Any) -> dict[str, Any]:
        found = super().forward(input_ids, **inputs)
        handed = torch.tensor(past_key_values is not None)
        return {**found, "handed": handed, "past_key_values": (torch.zeros(1),)}


def asked(a: Any, b: Any) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
    _, _, pairing, notes = paired(Run(Model(), a), Run(Model(), b))
    return list(pairing.pairs), notes


@pytest.mark.parametrize("right", [0, 3])
def test_halves_of_a_batch_are_its_rows(right: int) -> None:
    halves = [batch(ROWS[:2], right=right), batch(ROWS[2:])]
    pairs, notes = asked(WHOLE, halves)
    assert pairs == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert notes == (
        "the calls of run B hold other samples each: each of their rows is one of the other run's",
    )


def test_micro_batches_of_other_sizes_and_in_another_order() -> None:
    ones = [batch(row[None]) for row in ROWS.flip(0)]
    assert asked(HALVES, ones)[0] == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert asked([batch(ROWS[:3]), batch(ROWS[3:])], WHOLE)[0] == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_steps_go_on_with_their_rows() -> None:
    steps = [batch(ROWS[:, :3]), batch(ROWS[:, 3:4]), batch(ROWS[:, 4:])]
    a, b, pairing, notes = paired(Run(Model(), WHOLE), Run(Model(), steps))
    assert [len(run.layout.samples) for run in (a, b)] == [4, 4]
    assert pairing.pairs == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert not notes


def test_steps_whose_rows_are_rows_of_the_other_run_as_well_go_on() -> None:
    tokens = torch.tensor([[1, 2]])
    both = batch(torch.tensor([[1, 2], [1, 1], [2, 2]]))
    steps = [batch(tokens[:, :1]), batch(tokens[:, 1:])]
    assert asked(both, steps) == ([(0, 0)], ())


def test_a_layout_by_hand_is_kept() -> None:
    tokens = torch.cat([row[None] for row in ROWS[:2]], 1)
    layout = Layout.steps([torch.ones(1, 5), torch.ones(1, 5)])
    run = Run(Model(), [batch(tokens[:, :5]), batch(tokens[:, 5:])], layout=layout)
    _, b, _, notes = paired(Run(Model(), WHOLE), run)
    assert b is run
    assert not notes


def test_other_rows_are_named_as_such() -> None:
    other = [batch(ROWS[:2]), batch((ROWS[2:] + 1) % 20)]
    pairs, notes = asked(batch(ROWS[:2]), other)
    assert pairs == [(0, 0), (1, 1)]
    assert not notes  # they begin as the other run's rows do
    strange = [batch((ROWS[:2] + 1) % 20), batch(ROWS[2:])]
    with pytest.raises(
        LayoutError, match="calls are read as going on with the same rows; if they hold other samples"
    ):
        asked(WHOLE, strange)
    with_a_mate = [batch(torch.cat([ROWS[:1], (ROWS[1:2] + 1) % 20])), batch(ROWS[2:])]
    notes = asked(WHOLE, with_a_mate)[1]
    assert len(notes) == 1
    assert notes[0].startswith("the calls of run B are read as going on with the same rows; if they hold")


def test_a_cache_is_handed_on_to_the_same_samples_alone() -> None:
    model = Counted()
    result = fp.compare(Run(model, WHOLE), Run(model, HALVES))
    assert result.verdict.kind in ("identical", "rounding")
    steps = Run(model, [batch(ROWS[:, :3]), batch(ROWS[:, 3:])])
    assert [bool(output["handed"]) for output in steps.execute()] == [False, True]
    mask = torch.ones(2, 5)
    other = Layout([Layout.from_mask(mask).calls[0], {"input_ids": _second(mask)}])
    apart = Run(model, HALVES, layout=other)
    assert [bool(output["handed"]) for output in apart.execute()] == [False, False]


def _second(mask: Tensor) -> Any:
    entry = Layout.from_mask(mask).calls[0]["main"]
    return fp.Coordinates(entry.sample + 2, entry.position)


def test_the_same_last_call_after_calls_on_other_rows_is_paired_with_itself() -> None:
    other = batch((ROWS[:1] + 1) % 20)
    pairs, notes = asked(batch(ROWS[:1]), [other, batch(ROWS[:1])])
    assert pairs == [(0, 1)]
    assert notes == ("calls hold other samples each: the last call of both runs holds the same",)
    assert (1, 1) in asked([batch(ROWS[1:2]), batch(ROWS[:1])], [other, batch(ROWS[:1])])[0]


def test_a_step_that_happens_to_be_the_other_run_s_row_goes_on() -> None:
    steps = [batch(ROWS[:1, :2]), batch(ROWS[:1, 2:])]
    pairs, notes = asked(batch(ROWS[:1]), steps)
    assert (pairs, notes) == ([(0, 0)], ())


class Cached:
    """A cache of so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def get_seq_length(self) -> int:
        return self.length


def _positions(a: Any, b: Any) -> list[list[list[int]]]:
    """Those of both runs' first calls."""
    runs = paired(Run(Model(), a), Run(Model(), b))[:2]
    return [run.layout.calls[0]["main"].position.tolist() for run in runs]


def test_what_goes_in_with_a_cache_goes_on_where_the_other_run_has_the_same_tokens() -> None:
    rest = {**batch(ROWS[:1, 3:]), "past_key_values": Cached(3)}
    assert _positions(batch(ROWS[:1]), rest) == [[[0, 1, 2, 3, 4]], [[3, 4]]]
    assert _positions(rest, batch(ROWS[:1])) == [[[3, 4]], [[0, 1, 2, 3, 4]]]
    pairs, notes = asked(batch(ROWS[:1]), rest)
    assert (pairs, notes) == ([(0, 0)], ())
    more = {**batch(ROWS[:1, 2:]), "past_key_values": Cached(2)}
    assert _positions(more, rest) == [[[2, 3, 4]], [[3, 4]]]


def test_what_goes_in_with_a_cache_of_other_tokens_begins_at_0() -> None:
    rest = {**batch(ROWS[:1, 3:]), "past_key_values": Cached(3)}
    assert _positions(rest, {**rest, "past_key_values": Cached(7)}) == [[[0, 1]], [[0, 1]]]
    assert _positions(batch(ROWS[:1, 3:]), rest) == [[[0, 1]], [[0, 1]]]
    assert _positions(batch(ROWS[1:2]), {**rest, "past_key_values": None}) == [[[0, 1, 2, 3, 4]], [[0, 1]]]
    layout = Layout.from_mask(torch.ones(1, 2))
    run = paired(Run(Model(), batch(ROWS[:1])), Run(Model(), rest, layout=layout))[1]
    assert run.layout is layout


def test_an_encoders_tokens_that_go_in_again_are_the_same() -> None:
    def call(encoded: Tensor, *columns: int) -> dict[str, Tensor]:
        return {"input_ids": encoded, "decoder_input_ids": ROWS[:1, list(columns)]}

    whole, steps = call(ROWS[1:2], 0, 1, 2), [call(ROWS[1:2], n) for n in range(3)]
    assert asked(whole, steps) == ([(0, 0)], ())
    steps[1] = call(ROWS[2:3], 1)
    assert any(note.startswith("the calls of run B are read as going on") for note in asked(whole, steps)[1])
