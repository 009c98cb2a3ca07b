"""Questions with gradients: both losses are means over the tokens that both runs have."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer
from torch import nn

import forkpoint as fp
from forkpoint.errors import InputError
from forkpoint.questions.learning import with_labels
from forkpoint.runs.layout import Layout

TEXT = "w5 w6 w7 w8 w9 w10"


def llama(**changes) -> nn.Module:
    return ARCHITECTURES["llama"].build(**changes)


def test_padding_mates_and_first_tokens_have_no_labels():
    model = llama()
    ids, mask = torch.tensor([[0, 5, 6, 7], [9, 8, 7, 6]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    a = fp.Run(model, {"input_ids": torch.tensor([[5, 6, 7]])})
    b = fp.Run(model, {"input_ids": ids, "attention_mask": mask}, layout=Layout.from_mask(mask))
    a, b = with_labels(a, b)
    assert a.calls[0]["labels"].tolist() == [[-100, 6, 7]]
    assert b.calls[0]["labels"].tolist() == [[-100, -100, 6, 7], [-100] * 4]


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: fp.padding(model, word_tokenizer(), TEXT, pad_to=12, backward=True),
        lambda model: fp.padding(model, word_tokenizer(), TEXT, pad_to=12, side="left", backward=True),
        lambda model: fp.batch(model, word_tokenizer(), TEXT, size=3, backward=True),
        lambda model: fp.attention(model, word_tokenizer(), TEXT, "eager", backward=True),
        lambda model: fp.dtype(model, word_tokenizer(), TEXT, "float64", backward=True),
        lambda model: fp.autocast(model, word_tokenizer(), TEXT, backward=True),
    ],
    ids=["padding", "left", "batch", "attention", "dtype", "autocast"],
)
def test_sound_models_differ_by_rounding_alone(ask):
    found = ask(llama(attention="sdpa")).backward
    assert found.identical or found.rounding
    assert found.origin is None and all(one.rounding is not False for one in found.parameters)
    assert found.loss_a == pytest.approx(found.loss_b, rel=1e-2)


class Leak(torch.autograd.Function):
    """Hands back to every token some of the gradient of all, padding among them."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        return gradient + 1e-3 * gradient.mean(1, keepdim=True)


def test_padding_that_leaks_on_the_way_back_is_found():
    model = llama()
    norm = model.model.norm
    norm.forward = lambda x, forward=norm.forward: forward(Leak.apply(x))
    result = fp.padding(model, word_tokenizer(), TEXT, pad_to=12, backward=True)
    assert result.verdict.kind in (fp.VerdictKind.ROUNDING, fp.VerdictKind.IDENTICAL)
    assert result.backward.rounding is False and result.backward.origin.module == "model.layers.1"


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: fp.cache(llama(), word_tokenizer(), TEXT, backward=True), "runs of 1 and 3 calls"),
        (
            lambda: fp.padding(ARCHITECTURES["bert"].build(), word_tokenizer(), TEXT, backward=True),
            "no labels",
        ),
        (lambda: fp.padding(llama(), word_tokenizer(), "w5", pad_to=3, backward=True), "nothing predicts"),
        (
            lambda: fp.quantize(llama(), word_tokenizer(), TEXT, "int8-dynamic", backward=True),
            "PyTorch does not differentiate",
        ),
    ],
)
def test_what_has_no_one_loss_is_refused(ask, said):
    with pytest.raises(InputError, match=said):
        ask()
