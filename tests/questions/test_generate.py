"""Two ways to generate: first tokens that differ by construction, each labelled as it was made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer

import forkpoint as fp
from forkpoint.questions.generate import label
from forkpoint.result import VerdictKind

PROMPTS = ("w5 w6 w7 w8", "w9 w3 w22", "w40 w41 w42 w43 w44", "w71 w2")


def llama():
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    model.generation_config.eos_token_id = None
    return model


def nearly_twins(seed):
    """A model whose tokens come in pairs with nearly the same row of the head: each choice is made by the last bits."""
    model = llama()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows = model.lm_head.weight
        half = len(rows) // 2
        rows[1 : 2 * half : 2] = rows[: 2 * half : 2] * (1 + 1e-7 * torch.randn(half, rows.shape[1]))
    return model


def planted(position):
    """A model that favours a token in a batch, and where it sees many tokens at once, by far."""
    model = llama()

    wanted = model.lm_head.weight[33].detach()

    def favour(module, args, output):
        beyond = output.shape[0] > 1 or output.shape[1] > position
        return output + 50 * wanted / wanted.square().sum() if beyond else output

    model.model.norm.register_forward_hook(favour)
    return model


@pytest.mark.parametrize("against", ["batch", "no-cache", "static", "assisted"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_near_ties(prompt, against):
    found = fp.generate(nearly_twins(0), word_tokenizer(), prompt, against, max_new_tokens=16, size=3)
    assert found.first is not None
    assert found.result.verdict.kind is VerdictKind.ROUNDING
    tied = 0 in (found.margin_a, found.margin_b)
    assert found.label == ("tie" if tied else "within rounding")
    assert max(found.margin_a, found.margin_b) < 1e-5
    assert found.token_a // 2 == found.token_b // 2
    assert found.exact_a == pytest.approx(-found.exact_b, abs=1e-12)
    assert found.tokens_a[: found.first] == found.tokens_b[: found.first]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_planted_fault_is_confident(prompt):
    found = fp.generate(planted(100), word_tokenizer(), prompt, "batch", max_new_tokens=4, size=3)
    assert (found.first, found.label) == (0, "confident")
    assert found.token_b == 33
    assert found.result.verdict.kind is VerdictKind.SEMANTIC
    assert min(found.margin_a, found.margin_b, found.exact_a, found.exact_b) > 0.1


def test_a_planted_fault_of_one_pass_over_all_tokens():
    found = fp.generate(planted(6), word_tokenizer(), PROMPTS[0], "no-cache", max_new_tokens=8)
    assert (found.first, found.label) == (3, "confident")


def favouring(*columns):
    """A model that favours a token, by far, where it is given so many columns at once."""
    model = llama()
    wanted = model.lm_head.weight[33].detach()

    def favour(module, args, output):
        return output + 50 * wanted / wanted.square().sum() if output.shape[1] in columns else output

    model.model.norm.register_forward_hook(favour)
    return model


def test_a_planted_fault_of_several_candidates_at_once():
    """The prompt ends as it began, so that the first call is about the prompt and what came next there, too."""
    prompt = "w5 w6 w7 w8 w5 w6"
    found = fp.generate(favouring(*range(7, 12)), word_tokenizer(), prompt, "assisted", max_new_tokens=6)
    assert found.name_b.startswith("assisted")
    assert (found.label, found.token_b) == ("confident", 33)
    assert found.result.verdict.kind is VerdictKind.SEMANTIC


def test_what_an_assistant_guesses_is_not_compared():
    model = llama()
    other = ARCHITECTURES["qwen2"].build(attention="sdpa")
    other.generation_config.eos_token_id = None
    found = fp.generate(model, word_tokenizer(), PROMPTS[0], "assisted", max_new_tokens=8, assistant=other)
    assert (found.name_b, found.first) == ("assisted", None)
    near = fp.generate(
        nearly_twins(0), word_tokenizer(), PROMPTS[0], "assisted", max_new_tokens=16, assistant=other
    )
    assert near.label in ("tie", "within rounding")


def test_a_cache_that_keeps_a_window_alone():
    model = ARCHITECTURES["mistral"].build(attention="sdpa")
    model.generation_config.eos_token_id = None
    long = " ".join(f"w{n}" for n in range(3, 15))
    assert fp.generate(model, word_tokenizer(), long, "sliding", max_new_tokens=4).first is None


def test_a_fault_of_a_static_cache_is_confident():
    model = llama()

    def favour(module, args, kwargs, output):
        from transformers import StaticCache

        wanted = module.lm_head.weight[33].detach()
        if any(isinstance(value, StaticCache) for value in kwargs.values()):
            output.logits = (
                output.logits + 50 * F.one_hot(torch.tensor(33), output.logits.shape[-1]) * wanted.norm()
            )
        return output

    model.register_forward_hook(favour, with_kwargs=True)
    found = fp.generate(model, word_tokenizer(), PROMPTS[0], "static", max_new_tokens=4)
    assert (found.first, found.token_b, found.label) == (0, 33, "confident")


@pytest.mark.parametrize("against", ["batch", "no-cache", "static", "assisted"])
def test_a_sound_model_generates_the_same(against):
    found = fp.generate(llama(), word_tokenizer(), PROMPTS[0], against, max_new_tokens=8, size=3)
    assert found.first is None
    assert found.result is None
    assert found.tokens_a == found.tokens_b
    assert len(found.tokens_a) == 8
    assert "8 tokens are generated, the same in both ways." in str(found)


def test_what_generate_makes_itself_is_what_is_compared():
    model, tokenizer = llama(), word_tokenizer()
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    theirs = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, 4:].tolist()
    found = fp.generate(model, tokenizer, PROMPTS[0], max_new_tokens=8, size=2)
    assert list(found.tokens_a) == theirs


def test_nothing_is_compared_behind_the_end_of_a_text():
    model = llama()
    whole = fp.generate(model, word_tokenizer(), PROMPTS[0], max_new_tokens=8, size=2).tokens_a
    model.generation_config.eos_token_id = whole[3]
    stopped = fp.generate(model, word_tokenizer(), PROMPTS[0], max_new_tokens=8, size=2)
    assert stopped.tokens_a == stopped.tokens_b == whole[: whole.index(whole[3]) + 1]


# --- the label -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "margins", "exact", "expected"),
    [
        ("rounding", (1e-3, 2e-3), (1e-4, -1e-4), "within rounding"),
        ("rounding", (0.0, 2e-3), (1e-4, -1e-4), "tie"),
        ("rounding", (1e-3, 2e-3), (0.0, 0.0), "tie"),
        ("rounding", (1e-3, 2e-3), (1e-15, 1e-15), "tie"),
        ("semantic", (1.0, 2.0), (1.0, 2.0), "confident"),
        ("semantic", (1.0, 2.0), (1.0, -1.0), None),
        ("undetermined", (1.0, 2.0), (1.0, 2.0), None),
        ("nondeterminism", (1.0, 2.0), (1.0, 2.0), None),
    ],
)
def test_labels(kind, margins, exact, expected):
    verdict = fp.Verdict(VerdictKind(kind), None, None, "")
    result = fp.Result(
        a=None, b=None, first=None, verdict=verdict, impact=None, ops=(), not_compared=(), drift=(), replaced_modules=(),
    )  # fmt: skip
    found = fp.Generation(
        "a", "b", 3, (1,), (2,), "", "", 0, 1, 2, margin_a=margins[0], margin_b=margins[1], exact_a=exact[0],
        exact_b=exact[1], result=result,
    )  # fmt: skip
    assert label(found, result) == expected


def test_what_float64_can_not_tell_apart_is_a_tie():
    verdict = fp.Verdict(VerdictKind.ROUNDING, None, None, "")
    result = fp.Result(
        a=None, b=None, first=None, verdict=verdict, impact=None, ops=(), not_compared=(), drift=(), replaced_modules=(),
    )  # fmt: skip
    found = fp.Generation(
        "a", "b", 3, (1,), (2,), "", "", 0, 1, 2, margin_a=1e-7, margin_b=2e-7, exact_a=4e-16, exact_b=0.0, result=result
    )  # fmt: skip
    assert label(found, result, 1e-13) == "tie"
    assert label(replace(found, exact_a=4e-9, exact_b=-4e-9), result, 1e-13) == "within rounding"


# --- how it is shown, and what is refused --------------------------------------------------------------------


def test_the_report_and_the_json(tmp_path):
    found = fp.generate(planted(100), word_tokenizer(), PROMPTS[0], max_new_tokens=4, size=3)
    text = str(found)
    assert "The first token that differs is number 1 of those generated." in text
    assert "B picks 'w33', ahead of the other's by" in text
    assert "confident: it is no rounding" in text
    assert "Semantic difference" in text
    assert repr(found) == "<Generation: token 0 differs, confident>"
    assert "label None" not in str(replace(found, label=None))
    found.to_json(tmp_path / "found.json")
    data = json.loads((tmp_path / "found.json").read_text())
    assert (data["label"], data["first"], data["token_b"]) == ("confident", 0, 33)
    assert data["result"]["verdict"]["kind"] == "semantic"


def test_a_model_that_does_not_decode():
    with pytest.raises(fp.InputError, match="an encoder-decoder"):
        fp.generate(ARCHITECTURES["bart"].build(), word_tokenizer(), PROMPTS[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"against": "beams"},
            "way 'beams'; expected one of batch, no-cache, static, sliding, offloaded, quantized, assisted",
        ),
        ({"max_new_tokens": 0}, "0 tokens to generate; expected 1 or more"),
        (
            {"against": "sliding"},
            "a sliding cache for a LlamaForCausalLM without a sliding window; expected dynamic or static",
        ),
        (
            {"assistant": object()},
            "an assistant; expected against='assisted', and another model than the one that it assists",
        ),
    ],
)
def test_what_can_not_be_used(options, message):
    with pytest.raises(fp.InputError) as caught:
        fp.generate(llama(), word_tokenizer(), PROMPTS[0], **options)
    assert str(caught.value) == message


def test_generating_leaves_the_model_as_it_was():
    model = llama()
    model.model.register_buffer("calls", torch.zeros(()))
    model.model.norm.register_forward_hook(lambda *_: model.model.calls.add_(1) and None)
    fp.generate(model, word_tokenizer(), PROMPTS[0], max_new_tokens=3, size=3)
    assert model.model.calls == 0
