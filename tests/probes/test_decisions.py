"""The decisions probe: rounding that decides is told from decisions that something else moves."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor, nn

import forkpoint as fp
import forkpoint.probes.decisions as module
from forkpoint.explain.results import compare_results
from forkpoint.explain.session import Session
from forkpoint.probes.content import content
from forkpoint.probes.deciding import Forcing, Noting, decided_apart, may_decide
from forkpoint.probes.decisions import coupling_at, decisions
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import precision
from forkpoint.support.memory import Memory


class Tied(Model):
    """Takes one of two ways by the sign of what is nothing in exact arithmetic."""

    reverse = False
    by = 0.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        parts = [hidden * float(i + 1) * 0.1 for i in range(12)]
        total, again = torch.zeros_like(hidden), torch.zeros_like(hidden)
        for part in reversed(parts) if self.reverse else parts:
            total = total + part
        for part in parts[::2] + parts[1::2]:
            again = again + part
        return torch.where(total - again > 0, hidden + 1 + self.by, hidden * 0.5 - 1)


class Outliers(Model):
    """Sets columns aside in which any row of the call has a large value, and rounds the others to steps."""

    threshold = 6.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        flat = hidden.flatten(0, 1)
        if self.threshold:
            flat = flat + F.embedding(inputs["token_type_ids"].flatten(), self.large)
        scale = flat.abs().amax(-1, keepdim=True) / 127
        steps = torch.round(flat / scale) * scale
        if self.threshold:
            aside = (flat.abs() >= self.threshold).any(0)
            steps = torch.where(aside, flat, steps)
        return steps.view_as(hidden)

    def __init__(self) -> None:
        super().__init__()
        large = torch.zeros(2, self.embed.embedding_dim)
        large[1, 3] = 40.0
        self.register_buffer("large", large)


class Rounded(Model):
    """All that goes on has been rounded to whole steps."""

    by = 0.0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return torch.round(hidden * (8 + self.by)) / 8

    def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        return {"logits": self.head(self.mix(self.embed(input_ids)))}


def run(model: Model, columns: int, right: int = 0, **more: Any) -> fp.Run:
    given = batch(ids(2, columns), right=right)
    types = F.pad(torch.zeros(2, columns, dtype=torch.long), (0, right), value=1)
    return fp.Run(model, {**given, "token_type_ids": types, **more})


def tied() -> Session:
    model = Tied()
    other = twin(model)
    other.reverse = True
    return session(*pair(model, batch(ids(4, 9)), batch(ids(4, 9)), other))


def test_what_rounding_decides_vanishes_with_the_same_decisions():
    both = tied()
    native = compare_results(both)
    assert native.max_abs > 0.1  # some token takes the other way
    assert not precision(both).falls_from(native)  # and in float64 as well
    held, _ = decisions(both)
    assert held is not None
    assert held.vanishes
    assert held.gap < 1e-12
    assert "each by the rounding of what it was taken on" in held.result.text
    said = re.search(
        r"at \(model\)/(\w+) \(test_decisions.py:\d+\) (\d+) of 36 lie within rounding", held.result.text
    )
    assert said is not None
    apart = float(held.result.text.rpartition("by at most ")[2])
    assert 0 < apart < 1e-5, "what float32 rounds away"
    assert "otherwise" not in held.result.text


def test_another_function_behind_a_decision_remains():
    model = Tied()
    other = twin(model)
    other.reverse, other.by = True, 1e-9
    held, _ = decisions(session(*pair(model, batch(ids(4, 9)), batch(ids(4, 9)), other)))
    assert held is not None
    assert not held.vanishes
    assert held.gap == pytest.approx(1e-9, rel=1)


def test_another_function_before_a_decision_remains_though_nothing_else_goes_on():
    model = Rounded()
    other = twin(model)
    other.by = 1e-9
    both = session(*pair(model, batch(ids()), batch(ids()), other))
    held, _ = decisions(both)
    assert held is not None
    assert held.gap == 0  # the same steps in both runs
    assert not held.vanishes  # of values that differ


def test_a_decision_that_padding_moves_remains_and_is_the_origin():
    model = Outliers()
    both = session(run(model, 4), run(model, 4, right=3))
    held, _ = decisions(both)
    assert held is not None
    assert not held.vanishes
    assert held.result.outcome == "remains"
    assert (
        "taken on the same values in both runs, none still does" in held.result.text
    )  # but what is made of them
    assert content(both, held, compare_results(both)).leaks
    found = origin(both, held)
    assert found is not None
    assert found.root.a.op.function in ("any", "where")
    assert found.closes == pytest.approx(1, abs=1e-6)
    coupled = coupling_at(both, found)
    assert coupled is not None
    assert (coupled.name, coupled.outcome) == ("coupling", "coupled")
    assert coupled.figure is not None
    assert coupled.figure > 1e-4


class Above(Model):
    """A step for whatever lies above the mean of all columns, padding included; or above the largest of the call."""

    largest = False

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        if self.largest:
            return hidden + hidden.flatten(0, 1).argmax(0) * 0.01
        return hidden + (hidden > hidden.mean(1, keepdim=True)) * 0.5


@pytest.mark.parametrize("largest", [False, True])
def test_a_decision_that_padding_moves_is_told_from_one_within_rounding(largest: bool):
    model = Above()
    model.largest = largest
    held, _ = decisions(session(*pair(model, batch(ids()), batch(ids(), right=3))))
    assert held is not None
    assert not held.vanishes
    assert "within rounding of" not in held.result.text
    if not largest:
        said = re.search(
            r"; at \(model\)/gt \(test_decisions.py:\d+\) (\d+) of 8 are taken on other values, (\S+) apart in float64, too",
            held.result.text,
        )
        assert said is not None
        assert float(said.group(2)) > 0.1


def test_a_decision_by_another_rule_comes_out_otherwise_on_the_same_values():
    class Stepped(Model):
        above = 0.0

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + (hidden > self.above) * 0.5

    model = Stepped()
    other = twin(model)
    other.above = 0.2
    held, _ = decisions(session(*pair(model, batch(ids()), batch(ids()), other)))
    assert held is not None
    said = re.search(
        r"; at \(model\)/gt \(test_decisions.py:\d+\) (\d+) of 8 come out otherwise on the same values$",
        held.result.text,
    )
    assert said is not None
    assert f"in both runs, {said.group(1)} still do" in held.result.text


def test_without_outliers_padding_moves_nothing():
    model = Outliers()
    model.threshold = 0.0
    both = session(run(model, 4), run(model, 4, right=3))
    held, _ = decisions(both)
    assert held is not None
    assert held.vanishes
    assert not content(both, held, compare_results(both)).leaks


def test_a_model_that_decides_nothing_is_not_asked_further():
    model = Model()
    assert decisions(session(*pair(model, batch(ids()), batch(ids(), right=2)))) == (None, None)


class Longer(Model):
    """Decides more often in float64, so that not all that it decides there was noted."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        for _ in range(5 if hidden.dtype == torch.float64 else 2):
            hidden = torch.where(hidden > 0, hidden, hidden * 0.5)
        return hidden


def test_decisions_that_can_not_be_held_prove_nothing():
    model = Longer()
    held, told = decisions(session(*pair(model, batch(ids()), batch(ids()))))
    assert held is None
    assert told is not None
    assert told.outcome == "unheld"
    assert told.text.endswith("could not be held: in float64 the runs decide more often, or less often")


def test_decisions_that_are_too_large_prove_nothing(monkeypatch):
    monkeypatch.setattr(module, "MAX_NOTED", 100)
    held, told = decisions(tied())
    assert held is None
    assert told is not None
    assert "could not be held: they take more than" in told.text


def test_content_says_that_decisions_could_not_be_held():
    model = Outliers()
    both = session(run(model, 4), run(model, 4, right=3))
    held, _ = decisions(both)
    assert held is not None
    held = replace(held, vanishes=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_NOTED", 100)
        found = content(both, held, compare_results(both))
    assert not found.leaks
    assert (found.result.outcome, found.result.figure) == ("unheld", None)
    assert "could not be held: they take more than" in found.result.text


class Passing(nn.Module):
    """Rows go through one op in groups, in an order that the run says."""

    def forward(self, x: Tensor, order: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for group in order.tolist():
            rows = [group % 3, 2]  # the last row passes each time
            out[:, rows] = out[:, rows] + torch.round(x[:, rows] * (1 + group))
        return out


def test_the_kth_pass_of_a_token_is_given_the_values_of_its_kth_pass():
    x = torch.tensor([[0.4, 1.4, 2.4]])[..., None]
    layout = fp.Layout.from_mask(torch.ones(1, 3))
    runs = [
        fp.Run(Passing(), {"x": x, "order": torch.tensor(order)}, layout=layout) for order in ([0, 1], [1, 0])
    ]
    both = session(*runs)
    shelf = Memory().shelf()
    noting = Noting(both.a.trace, shelf, 1 << 20)
    both.a.again(watcher=noting)
    forcing = Forcing(both.b.trace, shelf, 1 << 20, others=tuple(noting.decisions), shared=both.shared)
    both.b.again(watcher=forcing)
    given = [decision.inputs[0].value.flatten().tolist() for decision in forcing.decisions]
    # in A row 0 passes with row 2, then row 1 with row 2; in B row 1 comes first, and row 2 with A's first value
    assert np.allclose(given, [[2.8, 2.4], [0.4, 4.8]])


class Counting(Model):
    """Counts its tokens in floating point, as experts are counted, and goes on with as many rows."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        flat = hidden.flatten(0, 1)
        count = torch.histc((flat[:, 0] > -9).float(), bins=1, min=0, max=2).to(torch.int32)
        return flat[: int(count[0])].view_as(hidden) + (hidden > 0)


def test_whole_numbers_are_not_decided_and_calls_of_other_lengths_not_mixed_up():
    tokens = ids(1, 6)
    model = Counting()
    whole = fp.Run(model, batch(tokens))
    parts = fp.Run(
        model,
        [batch(tokens[:, :5]), batch(tokens[:, 5:])],
        layout=fp.Layout.steps([torch.ones(1, 5), torch.ones(1, 1)]),
    )
    for both in (session(whole, parts), session(parts, whole)):
        held, _ = decisions(both)
        assert held is not None
        assert held.vanishes


def test_what_is_decided_apart_is_known_from_the_traces():
    assert decided_apart(tied().join)
    model = Model()
    assert not decided_apart(session(*pair(model, batch(ids()), batch(ids(), left=2))).join)


def test_values_are_kept_within_a_limit_of_memory():
    both = tied()
    expected, _ = decisions(both)
    both.memory = Memory(limit=1)
    held, _ = decisions(both)
    assert held is not None
    assert expected is not None
    assert held.result == expected.result
    assert both.memory.written > 0


class Positions(Model):
    """Makes whole numbers of whole numbers alone."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        at = torch.arange(hidden.shape[1]).unsqueeze(0) + 1
        return hidden * at.unsqueeze(-1)


@pytest.mark.parametrize("model", [Tied(), Rounded()])
def test_a_run_that_decides_may_decide(model: Model):
    assert may_decide(session(*pair(model, batch(ids()), batch(ids()))).a.trace)


def test_a_run_that_makes_no_whole_numbers_of_others_is_not_made_again(monkeypatch):
    both = session(*pair(Positions(), batch(ids()), batch(ids())))
    assert not may_decide(both.a.trace)
    monkeypatch.setattr(type(both.a), "again", None)
    assert decisions(both) == (None, None)
