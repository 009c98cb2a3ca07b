"""Models whose caches, or whose tokens, are not those of most decoders; and how much of a cached run is compared."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer
from transformers import LlamaForCausalLM

import forkpoint as fp
from forkpoint.runs.returned import cache_parameters, caches_in
from zoo import ZOO

PROMPT = "w5 w6 w7 w8 w9 w10 w11 w12"


def test_a_model_that_fills_a_cache_but_returns_none():
    """It is given one, as `generate` gives it: without, its attention would forget every earlier token."""
    torch.manual_seed(0)
    model = ZOO["recurrent_gemma"].build()
    result = fp.cache(model, word_tokenizer(), PROMPT)
    assert result.verdict.kind is fp.VerdictKind.ROUNDING
    assert result.impact.max_abs < 1e-4


class TakesCache(LlamaForCausalLM):
    """As transformers from 5.24 on names it."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        output = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
            **{cache_parameters(LlamaForCausalLM)[0]: cache},
        )  # fmt: skip
        [kept] = caches_in(output, LlamaForCausalLM).values() or [None]
        return {"logits": output.logits, "cache": kept}


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_is_handed_on_by_the_name_that_the_model_takes(kind):
    torch.manual_seed(0)
    model = TakesCache(ARCHITECTURES["llama"].build().config).eval()
    result = fp.cache(model, word_tokenizer(), PROMPT, kind=kind)
    assert result.verdict.kind in (fp.VerdictKind.IDENTICAL, fp.VerdictKind.ROUNDING), result.verdict.summary
    assert result.impact.tokens == 8


@pytest.mark.parametrize("name", ["roformer", "xlm"])
def test_a_model_whose_tokens_see_those_after_them_has_no_steps(name):
    with pytest.raises(fp.InputError, match="whose tokens see those after them"):
        fp.cache(ZOO[name].build(), word_tokenizer(), PROMPT)


@pytest.mark.parametrize("question", ["batch", "cache"])
def test_masks_over_queries_and_keys_are_lined_up(question):
    """Of one row and of many, of all tokens and of one at a time."""
    result = getattr(fp, question)(ARCHITECTURES["llama"].build(), word_tokenizer(), PROMPT)
    assert [row.op for row in result.ops if row.status == "not compared" and row.floating] == []
    assert [value.op for value in result.not_compared if value.floating] == []


def test_an_encoder_that_refuses_to_be_asked_together_with_a_cache():
    model = ZOO["switch_transformers"].build()
    with pytest.raises(ValueError, match="use_cache"):
        model(input_ids=torch.ones(1, 2).long(), decoder_input_ids=torch.zeros(1, 1).long(), use_cache=True)
    kind = fp.cache(model, word_tokenizer(), "w5 w6 w7 w8").verdict.kind
    assert kind in (fp.VerdictKind.ROUNDING, fp.VerdictKind.IDENTICAL)
