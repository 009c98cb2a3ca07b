"""The runs that a question makes: what it feeds the model is what the architecture itself would make."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from tests.architectures import ARCHITECTURES, PAD, VOCABULARY, prompt
from tests.questions.words import word_tokenizer

import forkpoint as fp
from forkpoint.questions import padding as padding_module
from forkpoint.questions.padding import padding, usual_length
from forkpoint.questions.prompts import pad_token_id, padded_run, tokenise
from forkpoint.support.progress import SILENT

GENERATING = ("llama", "gpt2", "opt", "falcon", "gpt_neox", "gptj", "bloom", "mamba", "mamba2")
SOUND = (*GENERATING, "bert", "roberta", "electra", "distilbert", "t5")
"""Architectures whose real tokens don't see padding, if their positions are right."""


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def llama():
    return ARCHITECTURES["llama"].build()


@pytest.fixture
def runs(monkeypatch):
    """The runs that a factor compares, instead of their comparison."""
    seen = SimpleNamespace()

    def compare(a, b, **options):
        seen.a, seen.b, seen.options = a, b, options
        verdict = fp.Verdict(fp.VerdictKind.UNDETERMINED, None, None, "")
        return fp.Result(
            a=None, b=None, first=None, verdict=verdict, impact=None, ops=(), not_compared=(), drift=(),
            replaced_modules=(), notes=("a note of the comparison",),
        )  # fmt: skip

    monkeypatch.setattr(padding_module, "compare", compare)
    return seen


def rows_of(run, name="input_ids"):
    return run.calls[0][name].tolist()


# --- padding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "ids", "mask", "positions"),
    [
        ("right", [5, 6, 7, 0, 0], [1, 1, 1, 0, 0], [0, 1, 2, 0, 0]),
        ("left", [0, 0, 5, 6, 7], [0, 0, 1, 1, 1], [0, 0, 0, 1, 2]),
    ],
)
def test_one_prompt_is_not_padded_at_first(runs, llama, tokenizer, side, ids, mask, positions):
    padding(llama, tokenizer, "w5 w6 w7", 5, side, probes=False)
    assert rows_of(runs.a) == [[5, 6, 7]]
    assert rows_of(runs.a, "attention_mask") == [[1, 1, 1]]
    assert rows_of(runs.a, "position_ids") == [[0, 1, 2]]
    assert rows_of(runs.b) == [ids]
    assert rows_of(runs.b, "attention_mask") == [mask]
    assert rows_of(runs.b, "position_ids") == [positions]
    assert (runs.a.name, runs.b.name) == ("unpadded", f"padded on the {side}")
    assert runs.options == {
        "probes": False, "tokenizer": tokenizer, "max_memory": None, "progress": SILENT, "sources": False,
        "backward": False,
    }  # fmt: skip


def test_what_is_handed_on(runs, llama, tokenizer):
    padding(llama, tokenizer, "w5", 5, max_memory="2GiB", progress=SILENT)
    assert runs.options["max_memory"] == "2GiB"
    assert runs.options["progress"] is SILENT


def test_several_prompts_are_padded_to_the_longest_at_first(runs, llama, tokenizer):
    padding(llama, tokenizer, ["w5", "w6 w7"], 4, "left")
    assert rows_of(runs.a) == [[0, 5], [6, 7]]
    assert rows_of(runs.b) == [[0, 0, 0, 5], [0, 0, 6, 7]]
    assert runs.a.name == "padded to the longest on the left"


def test_several_prompts_of_one_length_are_not_padded_at_first(runs, llama, tokenizer):
    padding(llama, tokenizer, ["w5 w8", "w6 w7"], 4)
    assert runs.a.name == "unpadded"


def test_position_ids_none(runs, llama, tokenizer):
    padding(llama, tokenizer, "w5 w6 w7", 5, position_ids="none")
    assert "position_ids" not in runs.a.calls[0] | runs.b.calls[0]


def test_a_length_that_was_not_given_is_said(runs, llama, tokenizer):
    result = padding(llama, tokenizer, "w5 w6 w7")
    assert runs.b.calls[0]["input_ids"].shape == (1, 50)
    assert result.notes == (
        "The length to pad to was not given: 50 was chosen.", "a note of the comparison",
    )  # fmt: skip
    assert padding(llama, tokenizer, "w5", 50).notes == ("a note of the comparison",)


@pytest.mark.parametrize("longest", range(1, 130))
def test_the_usual_length_leaves_room_and_is_no_longer_than_needed(longest):
    chosen = usual_length(longest)
    assert chosen == 50 if longest < 50 else longest + 8 <= chosen < longest + 16 and chosen % 8 == 0


def test_chat_template(runs, llama, tokenizer):
    tokenizer.chat_template = "{% for m in messages %}w9 {{ m['content'] }} w10{% endfor %}"
    padding(llama, tokenizer, "w5", 5, chat_template=True)
    assert rows_of(runs.a) == [[9, 5, 10]]


def test_the_model_and_the_tokenizer_are_left_alone(runs, llama):
    tokenizer = word_tokenizer(eos_token="</s>")
    before = {name: value.clone() for name, value in llama.state_dict().items()}
    padding(llama, tokenizer, "w5", 5, "left")
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == "right"
    assert rows_of(runs.b) == [[2, 2, 2, 2, 5]]
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("w5 w6 w7", {"pad_to": 2}, "a prompt of 3 tokens for a padded length of 2; expected 4 or more (pad to 50, say)"),
        ("w5 w6 w7", {"pad_to": 3}, "a prompt of 3 tokens for a padded length of 3; expected 4 or more (pad to 50, say)"),
        ("", {}, "an empty prompt ''; expected a prompt of at least one token"),
        (["w5", ""], {}, "an empty prompt ''; expected a prompt of at least one token"),
        ("  ", {}, "an empty prompt '  '; expected a prompt of at least one token"),
        ([], {}, "no prompt; expected at least one"),
        ("w5", {"side": "up"}, "side 'up'; expected left or right"),
        ("w5", {"position_ids": "yes"}, "position_ids 'yes'; expected mask or none"),
        ("w5", {"chat_template": True}, "a tokenizer without a chat template; expected one that has it (leave chat_template out)"),
    ],
)  # fmt: skip
def test_what_can_not_be_used(llama, tokenizer, prompts, options, message):
    with pytest.raises(fp.InputError) as caught:
        padding(llama, tokenizer, prompts, **options)
    assert str(caught.value) == message


def test_no_token_to_pad_with(llama):
    with pytest.raises(fp.InputError, match="neither a pad nor an eos token"):
        padding(llama, word_tokenizer(unk_token="</s>"), "w5")


def test_tokens_that_the_model_does_not_have(llama, tokenizer):
    tokenizer.add_tokens(["new"])
    with pytest.raises(fp.InputError, match=r"^token id 101, for a model with embeddings for 101 tokens"):
        tokenise(llama, tokenizer, "w5 new")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(fp.InputError, match=r"^pad token id 102, for a model with embeddings for 101 tokens"):
        pad_token_id(llama, tokenizer)


def test_robertas_family_must_be_padded_with_its_own_token():
    roberta = ARCHITECTURES["roberta"].build()
    assert pad_token_id(roberta, word_tokenizer()) == PAD
    with pytest.raises(
        fp.InputError, match=r"^pad token id 2, .* every token but 0; expected pad token id 0"
    ):
        pad_token_id(roberta, word_tokenizer(eos_token="</s>"))


# --- position ids and masks --------------------------------------------------------------------------------


def inputs_in_generate(model, ids, mask):
    """What `generate` hands to the model's first forward call."""
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    try:
        model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=1, do_sample=False, pad_token_id=PAD
        )
    finally:
        hook.remove()
    return seen[0]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", GENERATING)
def test_position_ids_are_those_of_generate(name, side):
    model = ARCHITECTURES[name].build()
    run = padded_run(model, [prompt(5), prompt(3)], 9, pad=PAD, side=side)
    inputs = run.calls[0]
    theirs = inputs_in_generate(model, inputs["input_ids"], inputs["attention_mask"])
    expected = theirs.get("position_ids")
    if expected is None:
        assert "position_ids" not in inputs
    else:
        assert torch.equal(inputs["position_ids"], expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SOUND)
def test_padding_does_not_reach_real_tokens(name, side):
    """If it did, the tool would have made the difference that it reports."""
    model = ARCHITECTURES[name].build()
    row = prompt(5)
    a = padded_run(model, [row], 5, pad=PAD)
    b = padded_run(model, [row], 9, pad=PAD, side=side)
    (first,), (second,) = a.execute(), b.execute()
    if "decoder_input_ids" in a.calls[0]:
        difference = first.logits - second.logits
    else:
        real = slice(4, 9) if side == "left" else slice(0, 5)
        difference = first[0] - second[0][:, real]
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("name", SOUND)
def test_without_padding_it_is_the_plain_call(name):
    model = ARCHITECTURES[name].build()
    run = padded_run(model, [prompt(5)], 5, pad=PAD)
    plain = {key: run.calls[0][key] for key in ("input_ids", "decoder_input_ids") if key in run.calls[0]}
    (first,) = run.execute()
    with torch.no_grad():
        assert torch.allclose(first[0], model(**plain)[0], atol=1e-4)


def test_the_test_above_can_fail():
    model = ARCHITECTURES["gpt2"].build()
    a = padded_run(model, [prompt(5)], 5, pad=PAD)
    b = padded_run(model, [prompt(5)], 9, pad=PAD, side="left", position_ids="none")
    (first,), (second,) = a.execute(), b.execute()
    assert (first[0] - second[0][:, 4:]).abs().max() > 1e-2


def test_robertas_family_makes_its_own_position_ids():
    run = padded_run(ARCHITECTURES["roberta"].build(), [prompt(3)], 5, pad=PAD, side="left")
    assert "position_ids" not in run.calls[0]
    run = padded_run(ARCHITECTURES["bert"].build(), [prompt(3)], 5, pad=PAD, side="left")
    assert rows_of(run, "position_ids") == [[0, 0, 0, 1, 2]]


def test_a_model_that_takes_no_mask_still_has_a_layout():
    run = padded_run(ARCHITECTURES["fnet"].build(), [prompt(3)], 5, pad=PAD)
    assert "attention_mask" not in run.calls[0]
    (coordinates,) = run.layout.calls[0].values()
    assert coordinates.position.tolist() == [[0, 1, 2, -1, -1]]


def test_an_encoder_decoder_gets_a_start_token():
    run = padded_run(ARCHITECTURES["bart"].build(), [prompt(3), prompt(2)], 5, pad=PAD)
    assert rows_of(run, "decoder_input_ids") == [[2], [2]]
    assert "position_ids" not in run.calls[0]


def test_wrapped_models_get_the_same_inputs():
    peft = pytest.importorskip("peft")
    expected = padded_run(ARCHITECTURES["llama"].build(), [prompt(3)], 5, pad=PAD, side="left").calls[0]
    adapted = peft.get_peft_model(
        ARCHITECTURES["llama"].build(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    for model in (adapted, torch.compile(ARCHITECTURES["llama"].build()), torch.compile(adapted)):
        inputs = padded_run(model, [prompt(3)], 5, pad=PAD, side="left").calls[0]
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[name], expected[name]) for name in inputs)


def test_a_vision_model_is_left_as_it_was():
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    config = tf.Qwen2VLConfig(text_config=text, vision_config=vision)
    model = tf.Qwen2VLForConditionalGeneration(config).eval()
    run = padded_run(model, [prompt(3)], 5, pad=PAD, side="left")
    assert run.calls[0]["position_ids"].shape == (4, 1, 5)
    assert model.model.rope_deltas is None
