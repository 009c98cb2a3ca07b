"""Lengths that a model or a machine can't take, and those beyond what the configuration says that it takes all the same."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import ARCHITECTURES, PAD, prompt

import forkpoint as fp
from forkpoint.questions import limits
from forkpoint.questions.prompts import padded_run

BEYOND = 160
"""Tokens; the tiny models say 128 of themselves."""


def beyond(name, position_ids="mask"):
    model = ARCHITECTURES[name].build()
    assert model.config.max_position_embeddings < BEYOND
    return padded_run(model, [prompt(5)], BEYOND, pad=PAD, position_ids=position_ids)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_length_that_the_model_has_no_positions_for(name):
    with pytest.raises(
        fp.InputError, match=r"^a length of 160 tokens, for a \w+ with positions for 128 \(.+128 or fewer"
    ):
        beyond(name, position_ids="none")


def test_positions_of_an_encoder_decoder():
    with pytest.raises(fp.InputError, match=r"^a length of 160 tokens, for a Bart"):
        beyond("bart")


@pytest.mark.parametrize(("name", "position_ids"), [("gpt2", "mask"), ("llama", "none"), ("opt", "mask")])
def test_what_the_model_takes_is_not_refused(name, position_ids):
    """Padding has position 0, rotary positions have no end."""
    (output,) = beyond(name, position_ids).execute()
    assert output.logits.shape[1] == BEYOND


def test_a_length_beyond_memory_is_refused_before_anything_is_made():
    with pytest.raises(
        fp.InputError,
        match=r"^1 row of 100,000,000,000 tokens, whose results take .* GiB; expected what fits",
    ):
        padded_run(ARCHITECTURES["llama"].build(), [prompt(5)], 10**11, pad=PAD)


@pytest.mark.parametrize("name", ["llama", "bert", "bart"])
def test_what_is_needed_is_counted_low(name, monkeypatch):
    """The tensors that go in and come out are no fewer bytes than what is counted."""
    model = ARCHITECTURES[name].build()
    run = padded_run(model, [prompt(5), prompt(4)], 20, pad=PAD)
    (output,) = run.execute()
    tensors = [*run.calls[0].values(), *(t for t in output.values() if isinstance(t, torch.Tensor))]
    real = sum(t.numel() * t.dtype.itemsize for t in tensors)
    monkeypatch.setattr(limits, "_memory_of", lambda device: real)
    limits.check_memory(model, torch.device("cpu"), 2, 20)
    monkeypatch.setattr(limits, "_memory_of", lambda device: real // 20)
    with pytest.raises(fp.InputError):
        limits.check_memory(model, torch.device("cpu"), 2, 20)


def test_where_the_memory_is_not_known_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "_memory_of", lambda device: None)
    limits.check_memory(ARCHITECTURES["llama"].build(), torch.device("cpu"), 1, 10**12)


def test_packed_weights_of_a_head_are_not_counted_as_its_results(monkeypatch):
    model = ARCHITECTURES["llama"].build()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(10**6, 1))
    monkeypatch.setattr(limits, "_memory_of", lambda device: 10**6)
    limits.check_memory(model, torch.device("cpu"), 1, 20)
