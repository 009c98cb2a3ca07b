"""A port is compared by its values: sound ones raise no alarm, bugs are found at their op."""

from __future__ import annotations

import pytest
import torch
from tests.ports.board import BUGS, FAMILIES, HARMLESS, Bug, compared, sound, wrong_about
from torch import nn

import forkpoint as fp
from forkpoint import investigation
from forkpoint.ports import explaining
from forkpoint.report.words import Words


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_port_raises_no_alarm(family: str):
    assert sound(family) == ""


@pytest.mark.parametrize("change", HARMLESS[:1])
def test_a_change_that_makes_no_other_function_raises_no_alarm(change: Bug):
    assert sound(change.family, change.right, change.wrong) == ""


@pytest.mark.parametrize("number", [0, 4, 16, 21, 31, 32, 38])
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


def test_what_only_the_port_has_before_the_origin_is_said_to_be_as_doubtful():
    """The reference has frequencies, and not what they are made of."""
    result, _ = compared("neox", "dtype=torch.float32) / self.turned", "dtype=torch.float32) / self.size")
    assert result.origin is not None
    assert result.origin.op == "blocks.0/pow"
    assert (
        "neither this value nor those that it is made of here, from blocks.0/arange (" in result.origin.note
    )
    assert Words("zh").can_say(result.origin.note)
    other, _ = compared("neox", "products / math.sqrt(self.size)", "products / math.sqrt(self.turned)")
    assert other.origin is not None
    assert "neither" not in other.origin.note


def test_runs_that_agree_are_not_made_again_to_see_where_they_part(monkeypatch):
    """A compiled model is one whose ops have other names."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    port = nn.Sequential(nn.Sequential(model[0]), nn.Sequential(model[1]))
    x = torch.randn(1, 2, 3)
    a, b = fp.Run(model, {"input": x}), fp.Run(port, {"input": x})
    monkeypatch.setattr(investigation, "is_port", lambda _: True)
    monkeypatch.setattr(explaining, "prints_of", None)
    assert fp.compare(a, b).identical
    other = fp.Run(nn.Sequential(nn.Sequential(model[0]), nn.Sequential(nn.Sigmoid())), {"input": x})
    with pytest.raises(TypeError):
        fp.compare(a, other)


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
