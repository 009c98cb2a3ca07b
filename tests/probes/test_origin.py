"""The patch probe: where something other than rounding enters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor, nn

import forkpoint as fp
from forkpoint import Layout, Run
from forkpoint.capture.sites import Site
from forkpoint.capture.trace import Op
from forkpoint.probes.origin import Origin, origin
from forkpoint.probes.precision import precision
from forkpoint.probes.trials import Trials


def asked(model: Model, a: Any, b: Any, other: Model | None = None) -> Origin | None:
    both = session(*pair(model, a, b, other))
    return origin(both, precision(both))


class Two(Model):
    """Two places at which something may enter; the first may cancel."""

    cancels = False
    by = 0.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        columns = torch.arange(hidden.shape[1])[:, None] * 0.5
        hidden = hidden + columns
        if self.cancels:
            hidden = hidden - columns
        return (hidden * (1 + self.by)).sin()


def test_what_cancels_is_not_the_origin():
    model = Two()
    model.cancels = True
    other = twin(model)
    other.by = 0.25
    found = asked(model, batch(ids()), batch(ids(), left=2), other)
    assert found is not None
    assert (found.root.a.op.name, found.seen.a.op.name) == ("(model)/mul", "(model)/mul")
    assert found.closes > 0.99
    assert found.result.outcome == "closes"
    assert found.result.text.startswith("with run A's value put in place at (model)/mul (test_origin.py:")


@pytest.mark.parametrize("left", [0, 2])
def test_values_meet_as_they_do_where_nothing_is_kept_from_one_to_the_next(left, monkeypatch):
    model = Two()
    other = twin(model)
    other.by = 0.25
    told: list[Any] = []
    for _ in range(2):
        both = session(*pair(model, batch(ids()), batch(ids(), left=left), other))
        found = origin(both, precision(both))
        assert found is not None
        told.append(
            [
                (m.event_a, m.event_b, m.gap.max_abs, m.gap.differing, m.pairs.a.tolist(), m.pairs.b.tolist())
                for m in (found.meetings[event] for event in sorted(found.meetings))
            ]
        )
        monkeypatch.setattr("forkpoint.match.align.MAX_WORKED_OUT", 0)
        monkeypatch.setattr("forkpoint.probes.meetings.MAX_WORKED_OUT", 0)
    assert told[0] == told[1]
    assert len(told[0]) > 4


def test_an_integer_that_does_not_cancel_is_the_root_and_shows_in_a_float():
    found = asked(Two(), batch(ids()), batch(ids(), left=2))
    assert found is not None
    assert found.root.a.op.name == "(model)/arange"
    assert found.seen.a.value.dtype.is_floating_point
    assert f"it shows first in {found.seen.a.op.name}" in found.result.text


def test_the_last_of_several_rounding_ops_is_not_taken_for_it():
    class Late(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            for _ in range(3):
                hidden = hidden * 1.1
            return hidden + F.pad(hidden, (0, 0, 1, -1))

    found = asked(Late(), batch(ids()), batch(ids(), left=1))
    assert found is not None
    assert found.seen.a.op.function in ("add", "pad")


def test_runs_that_do_not_differ_have_no_origin():
    assert asked(Two(), batch(ids()), batch(ids())) is None


class Looked(Model):
    """Attention whose mask is looked up by columns, after some steps of integers."""

    def mix(self, hidden: Tensor, attention_mask: Tensor, **inputs: Any) -> Tensor:
        keys = torch.arange(hidden.shape[1]) + 0
        seen = attention_mask[torch.arange(hidden.shape[0])[:, None], keys[None]].bool()
        causal = keys[None, :] <= torch.arange(hidden.shape[1])[:, None]
        mask = torch.where(causal & seen[:, None], 0.0, -1e9)
        for _ in range(2):
            scores = hidden @ hidden.mT + mask
            hidden = hidden + scores.softmax(-1) @ hidden
        return hidden


def test_a_number_of_columns_that_would_be_wrong_in_run_b_is_not_needed():
    """The mask shows padding in run B: put right behind that, run A's columns do no harm, but are no cause."""
    wrong = batch(ids(1, 6), left=4)
    wrong["attention_mask"][0, 2] = 1
    layouts = [Layout.from_mask(batch(ids(1, 6), left=left)["attention_mask"]) for left in (0, 4)]
    model = Looked()
    both = session(Run(model, batch(ids(1, 6)), layout=layouts[0]), Run(model, wrong, layout=layouts[1]))
    found = origin(both, precision(both))
    assert found is not None
    integers = [one.root.a.op.function for one in (found, *found.others) if not one.seen.absent]
    assert not {"arange", "add", "getitem"} & set(integers)
    assert found.result.figure == 1


def test_an_infinite_gap_has_no_shares():
    class Rooted(Model):
        least = 1.0

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + (hidden + self.least).sqrt()

    model = Rooted()
    other = twin(model)
    other.least = -0.1
    found = asked(model, batch(ids()), batch(ids()), other)
    assert found is not None
    assert math.isnan(found.closes)
    assert (found.result.outcome, found.result.figure) == ("closes", None)
    assert found.result.text.endswith("the NaN and infinities are the same in both runs")
    result = fp.compare(*pair(model, batch(ids()), batch(ids()), other))
    assert all(origin.closes is None for origin in result.origins)


def test_a_modules_output_is_named_without_a_line():
    op = Op("layers.0", "output", Site("?", 0, 0, "?"))
    assert op.place == "layers.0/output"


# --- Several origins ----------------------------------------------------------------------------------------


class Layers(Model):
    """Steps of one form, each with a factor of its own; with or without a way past them."""

    factors = (1.0, 1.0, 1.0)
    past = True

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([Step() for _ in range(3)])

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        for step, factor in zip(self.steps, self.factors, strict=True):
            made = step(hidden, factor)
            hidden = hidden + made if self.past else made
        return hidden


class Step(nn.Module):
    def forward(self, hidden: Tensor, factor: float) -> Tensor:
        return hidden.sin() * factor


def of_factors(*factors: float, past: bool = True, left: int = 0) -> Origin:
    model = Layers()
    other = twin(model)
    model.past = other.past = past
    other.factors = factors
    found = asked(model, batch(ids()), batch(ids(), left=left), other)
    assert found is not None
    return found


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("left", [0, 2])
@pytest.mark.parametrize("factors", [(1.2, 1.2, 1.2), (1.0, 0.8, 1.3), (0.7, 1.0, 1.0), (1.0, 1.0, 1.1)])
def test_every_origin_is_found_and_no_other(factors, past, left):
    found = of_factors(*factors, past=past, left=left)
    origins = (found, *found.others)
    wanted = [f"steps.{i}/mul" for i, factor in enumerate(factors) if factor != 1]
    assert [origin.root.a.op.name for origin in origins] == wanted
    assert sum(origin.closes for origin in origins) >= 1 - 1e-9
    assert (found.result.outcome, found.result.figure) == ("closes", 1)


def test_what_origins_in_several_layers_are_said_to_be():
    text = of_factors(1.2, 1.2, 1.2).result.text
    assert text.startswith("with run A's values put in place at steps.0/mul (test_origin.py:")
    assert ") and in 2 more layers, 100 % of the gap of " in text
    assert text.endswith(" closes, and each of them is needed")


def test_a_root_that_moves_the_result_is_no_origin_where_another_closes_the_gap():
    class Doubled(Model):
        """Run B makes of its own columns what run A makes of its tokens', and something else that it doesn't need."""

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            columns = torch.arange(hidden.shape[1])
            wave = (columns * 0.5).sin()[:, None]
            return (hidden - 0.1 * wave) * (2 + wave)

    found = asked(Doubled(), batch(ids()), batch(ids(), left=1))
    assert found is not None
    assert (found.root.a.op.function, found.others) == ("arange", ())


@pytest.mark.parametrize("past", [False, True])
def test_tokens_that_one_run_alone_chooses(past):
    class Choosing(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            flat = hidden.flatten(0, 1)
            taken = flat[:, 0].topk(3).indices
            made = torch.zeros_like(flat).index_copy(0, taken, flat[taken] * 2).view_as(hidden)
            return hidden + made if past else made

    tokens = ids(3)
    found = asked(Choosing(), batch(tokens[:1]), batch(tokens))
    assert found is not None
    assert found.root.a.op.function == "topk"
    assert found.seen.absent
    behind = (
        "put in place right behind (model)/topk" if past else "the runs choose other tokens at (model)/topk"
    )
    assert behind in found.result.text
    assert found.closes == past
    assert asked(Choosing(), batch(tokens), batch(tokens)) is None


def test_a_place_that_other_tokens_take():
    class Limited(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            flat = hidden.flatten(0, 1)
            taken = ((flat[:, 0] > -2).cumsum(0) <= 5).nonzero().squeeze(-1)
            return hidden + torch.zeros_like(flat).index_copy(0, taken, flat[taken] * 2).view_as(hidden)

    tokens = ids(3)
    found = asked(Limited(), batch(tokens[2:]), batch(tokens))
    assert found is not None
    assert (found.root.a.op.function, found.seen.a.op.function) == ("cumsum", "le")
    assert found.closes == 1


class Placed(Model):
    """Positions of columns, and a window that is made of columns as well: of another run it hides other tokens."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        columns = hidden.shape[1]
        hidden = hidden + torch.arange(columns)[:, None] * 0.5
        query, key = torch.arange(columns)[:, None], torch.arange(columns)
        real = inputs["attention_mask"][:, None, :].bool()
        seen = (key <= query)[None] & (key > query - 3)[None] & real
        scores = (hidden @ hidden.mT).masked_fill(~seen, -1e9)
        return scores.softmax(-1) @ hidden


def test_what_closes_the_gap_by_itself_is_not_looked_beyond(monkeypatch):
    further: list[int] = []
    monkeypatch.setattr("forkpoint.probes.origin._Search._further", lambda *_: further.append(1))
    found = asked(Placed(), batch(ids(2, 6)), batch(ids(2, 6), left=3))
    assert found is not None
    assert found.root.a.op.function == "arange"
    assert (found.closes, found.others, further) == (1.0, (), [])


class Chain(Model):
    """One op after the other, each of which may be another in run B."""

    by = (0.0, 0.0, 0.0)

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        hidden = (hidden + self.by[0]).tanh()
        hidden = (hidden * (1 + self.by[1])).sin()
        return (hidden - self.by[2]).sigmoid()


def test_what_is_hidden_behind_it_is_needed_without_a_trial(monkeypatch):
    made: list[int] = []
    attempt = Trials._try
    monkeypatch.setattr(Trials, "_try", lambda self, given: made.append(1) or attempt(self, given))
    model = Chain()
    other = twin(model)
    other.by = (0.25, 0.25, 0.25)
    found = asked(model, batch(ids()), batch(ids()), other)
    assert found is not None
    assert [part.root.a.op.function for part in (found, *found.others)] == ["add", "mul", "sub"]
    assert "each of them is needed" in found.result.text
    assert len(made) == 3  # the first, the first two, and all


class Norm(nn.Module):
    """A norm by the largest value."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden / hidden.abs().amax(-1, keepdim=True)


class OtherNorm(nn.Module):
    """The same as another class computes it; `by` is what it adds."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, hidden: Tensor) -> Tensor:
        largest = torch.maximum(hidden.amax(-1, keepdim=True), -hidden.amin(-1, keepdim=True))
        return torch.mul(hidden, torch.reciprocal(largest + self.by))


class Normed(Model):
    """Two norms, one after the other; what the second returns is returned as it is by the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = Norm(), nn.Sequential(Norm())

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return self.after(self.before(hidden).sin() + hidden)


@pytest.mark.parametrize(
    ("before", "after", "modules"),
    [(0.1, 0.1, ["before", "after.0"]), (0.1, 0.0, ["before"]), (0.0, 0.1, ["after.0"])],
)
def test_what_other_classes_make_is_each_an_origin_whatever_lies_behind(before, after, modules):
    """Run A's value at the last of them closes the gap by itself, whatever went in."""
    model = Normed()
    other = twin(model)
    other.before, other.after[0] = OtherNorm(before), OtherNorm(after)
    found = asked(model, batch(ids()), batch(ids()), other)
    assert found is not None
    assert [each.root.a.op.module for each in (found, *found.others)] == modules
    assert found.result.outcome == "closes"


def test_an_origin_of_other_classes_has_the_ops_of_either_and_one_that_is_hidden_has_none():
    model = Normed()
    other = twin(model)
    other.before = OtherNorm(0.1)
    shown = fp.compare(*pair(model, batch(ids()), batch(ids()), other))
    assert shown.origin is not None
    runs = {line[0] for line in shown.origin.between}
    assert (shown.origin.module, runs) == ("before", {"a", "b"})
    assert all(": before/" in line for line in shown.origin.between)
    assert "can't see inside" not in shown.to_text()
    scripted = twin(model)
    scripted.before = torch.jit.script(OtherNorm(0.1))
    hidden = twin(model)
    hidden.before = torch.jit.script(Norm())
    shown = fp.compare(*pair(hidden, batch(ids()), batch(ids()), scripted))
    assert shown.origin is not None
    assert (shown.origin.module, shown.origin.between) == ("before", ())
    assert "can't see inside" in shown.to_text()
