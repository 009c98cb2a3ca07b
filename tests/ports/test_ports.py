"""A port is compared by its values: sound ones raise no alarm, bugs are found at their op."""

from __future__ import annotations

import pytest
import torch
from tests.ports.board import BUGS, FAMILIES, compared, sound, wrong_about
from torch import nn

import forkpoint as fp


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_port_raises_no_alarm(family: str):
    assert sound(family) == ""


@pytest.mark.parametrize("number", [0, 6, 17, 23, 32, 39])
def test_a_bug_is_found_at_its_op(number: int):
    """The board of all is `python -m tests.traces.ports_board`."""
    assert wrong_about(BUGS[number]) == ""


def test_the_report_says_where_and_what_the_reference_does():
    result, _ = compared("llama", "mean + self.eps", "mean + 10 * self.eps")
    origin = result.origin
    assert origin is not None and origin.op == "layers.0.attention_norm/add" and origin.position == 0
    assert "model.layers.0.input_layernorm/add (modeling_llama.py" in origin.note
    assert any(note.startswith("names do not meet: ") for note in result.notes)
    assert "layers.0.attention_norm/add" in str(result) and "attention_norm/add" in result.to_text(lang="zh")


def test_what_has_no_name_is_held_against_the_one_result_of_its_shape():
    linear = nn.Linear(3, 3)
    x = torch.randn(1, 2, 3)
    named = fp.Run(linear, {"input": x}, call=lambda m, i: {"logits": m(**i), "loss": torch.zeros(())})
    plain = fp.Run(linear, {"input": x})
    for a, b, letter in ((plain, named, "A"), (named, plain, "B")):
        result = fp.compare(a, b)
        assert result.impact is not None and result.impact.max_abs == 0.0
        assert f"what run {letter} returns is held against logits of the other run" in result.notes
    assert plain.returns == ""
    two = fp.Run(linear, {"input": x}, call=lambda m, i: {"logits": m(**i), "again": m(**i)})
    assert not any("held against" in note for note in fp.compare(plain, two).notes)
