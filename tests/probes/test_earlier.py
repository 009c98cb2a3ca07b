"""Calls on other rows, made before: they change a later one where the model keeps something, and else do not."""

from __future__ import annotations

import pytest
import torch
from tests.corpus.decoders import Running
from tests.joined import session
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.probes.earlier import changed_by_earlier_calls
from forkpoint.runs.batches import paired

ONE, OTHER = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 10, 11]])


def found(model: nn.Module, a: list[Tensor], b: list[Tensor]):
    runs = [fp.Run(model, [{"input_ids": ids} for ids in calls]) for calls in (a, b)]
    one, other, _, _ = paired(*runs)
    return changed_by_earlier_calls(session(one, other))


@pytest.fixture
def model() -> Running:
    torch.manual_seed(0)
    return Running()


def test_what_an_earlier_call_left_is_shown_in_either_run(model: Running) -> None:
    shown = found(model, [ONE], [OTHER, ONE])
    assert shown is not None
    assert (shown.name, shown.outcome) == ("earlier", "change")
    assert shown.figure > 1e-3
    assert "the last call of run B" in shown.text
    assert "the last call of run A" in found(model, [OTHER, ONE], [ONE]).text


def test_a_model_that_keeps_nothing_is_not_said_to(model: Running) -> None:
    model.momentum = 0.0
    assert found(model, [ONE], [OTHER, ONE]) is None


def test_what_differs_without_them_as_well_is_not_laid_to_them(model: Running) -> None:
    """Both runs' models differ by more than the earlier call moves."""
    torch.manual_seed(1)
    runs = fp.Run(Running(), {"input_ids": ONE}), fp.Run(model, [{"input_ids": OTHER}, {"input_ids": ONE}])
    one, other, _, _ = paired(*runs)
    assert changed_by_earlier_calls(session(one, other)) is None


def test_steps_of_one_row_are_not_asked(model: Running) -> None:
    assert found(model, [ONE], [ONE[:, :2], ONE[:, 2:]]) is None


def test_the_verdict_says_so(model: Running) -> None:
    result = fp.compare(
        fp.Run(model, {"input_ids": ONE}), fp.Run(model, [{"input_ids": OTHER}, {"input_ids": ONE}])
    )
    assert (result.verdict.kind, result.verdict.mechanism) == (fp.VerdictKind.SEMANTIC, "module_state")
    assert "left in the model" in str(result)
