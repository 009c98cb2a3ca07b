"""Three hundred random programs; and that what they are made of can be told from what it should not be."""

from __future__ import annotations

import random
import warnings
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from forkpoint.capture.recorder import Recorder
from forkpoint.runs.run import Run

from .blocks import BLOCKS
from .check import check
from .program import COMPILED, drawn


@pytest.mark.parametrize("part", range(6))
def test_programs(part: int):
    @seed(part)
    @settings(
        max_examples=50, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def tracing_shows_nowhere(draw: random.Random) -> None:
        program = drawn(draw, f"hypothesis {part}")
        wrong = check(program).wrong
        assert not wrong, f"{program.text}\n{program}\n" + "\n".join(wrong)

    tracing_shows_nowhere()


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_block(block: str):
    program = drawn(random.Random(block), block, only=block)
    assert check(program).wrong == []


def test_every_block_multiplies_by_its_gain():
    """Else it could hold no difference."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    for name, block in BLOCKS.items():
        if name in COMPILED:
            continue
        made = []
        for gain in (1.0, 1.5):
            model = drawn(random.Random(0), name, only=name).model()
            torch.manual_seed(0)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made.append((block(model, x, y, gain), model.running.clone(), list(model.history)))
        (a, *state), (b, *other) = made
        assert a.shape == b.shape == x.shape, name
        assert a.dtype == torch.float32, name
        assert not torch.equal(a, b) or str(state) != str(other), name


def a_program() -> Any:
    return next(
        program
        for n in range(100)
        if (program := drawn(random.Random(n), str(n), only="products")).gain != 1.0
    )


def test_a_changed_bit_would_be_found():
    execute = Run._invoke

    def off_by_one(run: Run, inputs: dict[str, Any]) -> Any:
        return execute(run, {**inputs, "x": inputs["x"] * (1 + 2**-20)})

    with patch.object(Run, "_invoke", off_by_one):
        assert any("output is not as without forkpoint" in line for line in check(a_program()).wrong)


def test_state_that_is_left_changed_would_be_found():
    program = drawn(random.Random("buffers"), "buffers", only="buffers")
    with patch("forkpoint.runs.run.kept_state", lambda *_, **__: torch.no_grad()):
        assert any("the model was left changed" in line for line in check(program).wrong)


def test_a_number_that_is_drawn_would_be_found():
    begin_call = Recorder.begin_call

    def drawing(self: Recorder, *given: Any) -> None:
        torch.rand(1)
        begin_call(self, *given)

    with patch.object(Recorder, "begin_call", drawing):
        assert any("another random state" in line for line in check(a_program()).wrong)


def test_another_answer_would_be_found():
    with patch("forkpoint.investigation.locate", lambda *_, **__: None):
        assert any("the oracle's is" in line for line in check(a_program()).wrong)
