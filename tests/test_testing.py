"""Assertions for tests of users: each passes on sound models and fails with the op on planted leaks."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer
from torch import nn

import forkpoint as fp
from forkpoint import testing

PROMPTS = ["w5 w6 w7 w8 w9 w10 w11", "w30 w31 w40"]


class Leaky(nn.Module):
    """A part of a model that adds the mean over all columns, whatever they hold."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        out = self.inner(hidden, *args, **kwargs)
        return out + 0.1 * hidden.mean(1, keepdim=True)


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def sound():
    return ARCHITECTURES["llama"].build()


@pytest.fixture
def leaky(sound):
    sound.model.layers[1].mlp = Leaky(sound.model.layers[1].mlp)
    return sound


def test_a_sound_model_passes_all(sound, tokenizer):
    testing.assert_padding_invariant(sound, tokenizer, PROMPTS)
    testing.assert_batch_invariant(sound, tokenizer, PROMPTS)
    testing.assert_cache_consistent(sound, tokenizer, PROMPTS[0])
    testing.assert_matches(
        copy.deepcopy(sound), sound, {"input_ids": torch.tensor([[5, 6, 7]])}, allow="identical"
    )


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, tokenizer: testing.assert_padding_invariant(model, tokenizer, PROMPTS, sides=["right"]),
        lambda model, tokenizer: testing.assert_batch_invariant(model, tokenizer, PROMPTS),
        lambda model, tokenizer: testing.assert_cache_consistent(model, tokenizer, PROMPTS[0]),
    ],
    ids=["padding", "batch", "cache"],
)
def test_a_leak_fails_and_its_op_is_in_the_message(leaky, tokenizer, ask):
    with pytest.raises(AssertionError) as caught:
        ask(leaky, tokenizer)
    first = str(caught.value).splitlines()[0]
    assert first.startswith("<Result: semantic")
    assert "at model.layers.1.mlp/" in first


def test_a_port_that_computes_something_else_fails(sound):
    port = copy.deepcopy(sound)
    port.model.layers[0].post_attention_layernorm.variance_epsilon = 1e-2
    with pytest.raises(fp.DifferenceError, match=r"model\.layers\.0\.post_attention_layernorm/add") as caught:
        testing.assert_matches(port, sound, {"input_ids": torch.tensor([[5, 6, 7]])})
    assert "reference" in str(caught.value)
    testing.assert_matches(
        port, sound, {"input_ids": torch.tensor([[5, 6, 7]])}, allow=("rounding", "semantic")
    )


def test_a_result_is_given_back(sound):
    run = fp.Run(sound, {"input_ids": torch.tensor([[5, 6, 7]])})
    assert testing.assert_same(run, run, allow="identical").identical


def test_nothing_to_test_is_no_success(sound, tokenizer):
    for ask in (
        testing.assert_padding_invariant,
        testing.assert_batch_invariant,
        testing.assert_cache_consistent,
    ):
        with pytest.raises(fp.InputError, match="no prompt"):
            ask(sound, tokenizer, [])


def test_what_no_verdict_is_can_not_be_allowed_and_nothing_is_run():
    for ask in (
        testing.assert_padding_invariant, testing.assert_batch_invariant, testing.assert_cache_consistent,
        testing.assert_matches, testing.assert_same,
    ):  # fmt: skip
        given = [None] * (2 if ask is testing.assert_same else 3)
        with pytest.raises(fp.InputError, match="allow='typo'"):
            ask(*given, allow="typo")
