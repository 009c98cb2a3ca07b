"""The runs that each question makes, and what comes out on models whose truth is known."""

from __future__ import annotations

import copy
import importlib.util
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer
from torch import nn
from torch._dynamo.backends import registry

import forkpoint as fp
from forkpoint.questions import asking
from forkpoint.questions.mates import TEXTS, mates
from forkpoint.result import VerdictKind
from forkpoint.runs.layout import MAIN
from forkpoint.runs.returned import CACHES, cache_parameters

PROMPT = "w5 w6 w7 w8 w9 w10 w11"
IDS = [5, 6, 7, 8, 9, 10, 11]
OTHERS = ["w3 w4", "w20 w21 w22 w23 w24 w25 w26 w27 w28", "w9"]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def llama():
    return ARCHITECTURES["llama"].build(attention="sdpa")


@pytest.fixture
def runs(monkeypatch):
    """The runs that a question compares, instead of their comparison."""
    seen = SimpleNamespace()

    def compare(a, b, **options):
        seen.a, seen.b, seen.options = a, b, options
        verdict = fp.Verdict(VerdictKind.UNDETERMINED, None, None, "")
        return fp.Result(
            a=None, b=None, first=None, verdict=verdict, impact=None, ops=(), not_compared=(), drift=(),
            replaced_modules=(), notes=("a note of the comparison",),
        )  # fmt: skip

    monkeypatch.setattr(asking, "compare", compare)
    return seen


def given(run, name="input_ids"):
    return [call[name].tolist() for call in run.calls]


def places(run):
    """Sample and position of every column of each call."""
    return [
        list(zip(c[MAIN].sample.flatten().tolist(), c[MAIN].position.flatten().tolist(), strict=True))
        for c in run.layout.calls
    ]  # fmt: skip


# --- options that all have -----------------------------------------------------------------------------------


def test_options_reach_the_comparison(runs, llama, tokenizer):
    result = fp.repeat(llama, tokenizer, PROMPT, probes=False, max_memory="1GB", position_ids="none")
    assert runs.options == {
        "probes": False, "tokenizer": tokenizer, "max_memory": "1GB", "progress": fp.questions.asking.SILENT, "sources": False,
        "backward": False,
    }  # fmt: skip
    assert "position_ids" not in runs.a.calls[0]
    assert result.notes == ("a note of the comparison",)


def test_a_wrong_word_is_one_error(llama, tokenizer):
    for ask, message in (
        (
            lambda: fp.repeat(llama, tokenizer, PROMPT, position_ids="some"),
            "position_ids 'some'; expected mask or none",
        ),
        (lambda: fp.dtype(llama, tokenizer, PROMPT, "int3"), "dtype 'int3'; expected one of float64"),
        (lambda: fp.cache(llama, tokenizer, PROMPT, kind="big"), "cache 'big'; expected one of dynamic"),
        (lambda: fp.quantize(llama, tokenizer, PROMPT, "int3"), "quantization 'int3'; expected one of int8"),
        (lambda: fp.compiled(llama, tokenizer, PROMPT, "gcc"), "backend 'gcc'; expected one of eager"),
        (
            lambda: fp.attention(llama, tokenizer, PROMPT, "sdpa:fast"),
            "attention 'sdpa:fast'; expected sdpa:math",
        ),
        (
            lambda: fp.attention(llama, tokenizer, PROMPT, "sdpa"),
            "attention sdpa for a model with sdpa; expected another one",
        ),
        (
            lambda: fp.attention(llama, tokenizer, PROMPT, "nonsense"),
            "attention 'nonsense' for a LlamaForCausalLM",
        ),
    ):
        with pytest.raises(fp.InputError) as caught:
            ask()
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "ask",
    [
        fp.attention, fp.autocast, fp.batch, fp.cache, fp.checkpoints, fp.compiled, fp.device, fp.dtype, fp.embed, fp.factors,
        fp.generate, fp.packed, fp.padding, fp.quantize, fp.repeat, fp.compare,
    ],
    ids=lambda ask: ask.__name__,
)  # fmt: skip
def test_an_argument_that_there_is_not_is_named_with_those_that_there_are(ask):
    with pytest.raises(fp.InputError) as caught:
        ask(None, None, None, pad_too=50, probes=False, sde="left")
    said = str(caught.value)
    assert said.startswith(f"fp.{ask.__name__} has no argument pad_too, sde; expected one of ")
    assert {"probes", "sources", "max_memory", "progress"} <= set(said.partition("one of ")[2].split(", "))
    assert "options" not in said


def test_what_is_no_model_no_tokenizer_no_prompt_and_no_side(llama, tokenizer):
    for ask, message in (
        (
            lambda: fp.batch(tokenizer, llama, PROMPT),
            f"a model of type {type(tokenizer).__name__}; expected a model of transformers",
        ),
        (
            lambda: fp.batch(llama, llama, PROMPT),
            "a tokenizer of type LlamaForCausalLM; expected the model's tokenizer",
        ),
        (
            lambda: fp.padding(llama, None, PROMPT),
            "a tokenizer of type NoneType; expected the model's tokenizer",
        ),
        (
            lambda: fp.padding(llama, tokenizer, 3),
            "a prompt of type int; expected a text, or a list of texts",
        ),
        (
            lambda: fp.cache(llama, tokenizer, None),
            "a prompt of type NoneType; expected a text, or a list of texts",
        ),
        (
            lambda: fp.repeat(llama, tokenizer, [[5, 6]]),
            "a prompt of type list; expected a text, or a list of texts",
        ),
        (lambda: fp.generate(llama, tokenizer, [PROMPT]), "a prompt of type list; expected one text"),
        (lambda: fp.padding(llama, tokenizer, PROMPT, side="top"), "side 'top'; expected left or right"),
        (lambda: fp.batch(llama, tokenizer, PROMPT, side="top"), "side 'top'; expected left or right"),
        (
            lambda: fp.embed(llama, [PROMPT], 4, tokenizer=tokenizer),
            "batch sizes 4; expected two, each 1 or more",
        ),
    ):
        with pytest.raises(fp.InputError) as caught:
            ask()
        assert str(caught.value).startswith(message)


def test_options_of_an_assertion_are_checked_too(llama, tokenizer):
    with pytest.raises(fp.InputError, match=r"fp\.batch has no argument pad_to; expected one of model"):
        fp.testing.assert_batch_invariant(llama, tokenizer, PROMPT, pad_to=50)


# --- batch ---------------------------------------------------------------------------------------------------


def test_one_prompt_alone_and_among_others(runs, llama, tokenizer):
    result = fp.batch(llama, tokenizer, PROMPT, 4, others=OTHERS)
    assert given(runs.a) == [[IDS]]
    assert given(runs.a, "attention_mask") == [[[1] * 7]]
    ids = given(runs.b)[0]
    assert [len(row) for row in ids] == [9] * 4
    assert ids[0] == [*IDS, 0, 0]
    assert given(runs.b, "attention_mask")[0][1] == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert (runs.a.name, runs.b.name) == ("alone", "in a batch of 4")
    assert result.notes == ("a note of the comparison",)


def test_several_prompts_are_a_call_each_that_hands_no_cache_on(runs, llama, tokenizer):
    fp.batch(llama, tokenizer, [PROMPT, "w30 w31"], 3, others=OTHERS, side="left")
    assert given(runs.a) == [[IDS], [[30, 31]]]
    assert [call[cache_parameters(llama)[0]] for call in runs.a.calls] == [None, None]
    assert places(runs.a) == [[(0, i) for i in range(7)], [(1, 0), (1, 1)]]
    assert given(runs.b)[0][1] == [0, 0, 0, 0, 0, 30, 31]


def test_others_of_the_same_length_need_no_padding(runs, llama, tokenizer):
    fp.batch(llama, tokenizer, PROMPT, 6, others=OTHERS, same_length=True)
    assert given(runs.b, "attention_mask") == [[[1] * 7] * 6]
    assert len({tuple(row) for row in given(runs.b)[0]}) == 6


def test_texts_of_many_lengths_are_there_if_none_are_given(runs, llama, tokenizer):
    result = fp.batch(llama, tokenizer, PROMPT)
    assert len(given(runs.b)[0]) == 8
    assert result.notes[0].startswith("The other rows were not given: 7 texts of 2 to ")
    assert len({len(text.split()) for text in TEXTS}) == len(TEXTS)


def test_rows_that_fill_a_batch_are_not_the_same_twice():
    found = mates([[1]], [[3, 4, 5]], 4, same_length=False)
    assert found == [[3, 4, 5], [4, 5, 3], [5, 3, 4]]
    with pytest.raises(fp.InputError, match="a batch of 2 for 3 prompts; expected 3 or more"):
        mates([[1], [2], [3]], [[3]], 2, same_length=False)


def test_a_batch_of_a_sound_model_rounds(llama, tokenizer):
    result = fp.batch(llama, tokenizer, [PROMPT, "w30 w31"], 4, others=OTHERS)
    assert result.verdict.kind in (VerdictKind.ROUNDING, VerdictKind.IDENTICAL)
    assert result.impact.tokens == 9


# --- cache ---------------------------------------------------------------------------------------------------


def test_steps_hold_what_the_one_pass_holds(runs, llama, tokenizer):
    fp.cache(llama, tokenizer, PROMPT, 3, chunk=2)
    assert given(runs.a) == [[IDS]]
    assert given(runs.b) == [[[5, 6, 7]], [[8, 9]], [[10, 11]]]
    assert given(runs.b, "position_ids") == [[[0, 1, 2]], [[3, 4]], [[5, 6]]]
    assert given(runs.b, "attention_mask") == [[[1] * n] for n in (3, 5, 7)]
    assert places(runs.b) == [[(0, 0), (0, 1), (0, 2)], [(0, 3), (0, 4)], [(0, 5), (0, 6)]]
    assert all(call["use_cache"] for call in runs.b.calls)


def test_the_last_chunk_may_be_shorter(runs, llama, tokenizer):
    result = fp.cache(llama, tokenizer, PROMPT, chunk=4)
    assert [len(call[0]) for call in given(runs.b)] == [5, 2]
    assert result.notes[0] == "The split was not given: 5 of 7 tokens were chosen."


def test_prompts_of_other_lengths_are_padded_on_the_left(runs, llama, tokenizer):
    fp.cache(llama, tokenizer, ["w3 w4", "w5 w6 w7 w8"], 3)
    assert given(runs.b) == [[[0, 0, 3], [5, 6, 7]], [[4], [8]]]
    assert places(runs.b)[1] == [(0, 1), (1, 3)]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("llama", {"prompts": "w5"}, "a prompt of 1 token; expected 2 or more"),
        ("llama", {"split": 7}, "a split after 7 of 7 tokens; expected 1 to 6"),
        ("llama", {"chunk": 0}, "chunks of 0 tokens; expected 1 or more"),
        ("bert", {}, "a BertModel, whose tokens see those after them; expected a model that decodes"),
        ("distilbert", {}, "a DistilBertModel, which takes no cache"),
        (
            "t5",
            {"kind": "static"},
            "a static cache for a T5ForConditionalGeneration, an encoder-decoder; expected dynamic",
        ),
        (
            "t5",
            {"prompts": ["w5 w6", "w7"]},
            "prompts of several lengths for a T5ForConditionalGeneration, an encoder",
        ),
        (
            "llama",
            {"kind": "sliding"},
            "a sliding cache for a LlamaForCausalLM without a sliding window; expected",
        ),
        ("mistral", {"kind": "sliding", "prompts": "w5 w6 w7"}, "3 tokens, within the window of"),
        ("mamba", {"kind": "static"}, "a static cache for a MambaForCausalLM, which keeps its own"),
    ],
)
def test_what_can_not_be_cached(tokenizer, name, arguments, message):
    with pytest.raises(fp.InputError) as caught:
        fp.cache(ARCHITECTURES[name].build(), tokenizer, **{"prompts": PROMPT, **arguments})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama", "dynamic"),
        ("llama", "static"),
        ("mamba", "dynamic"),
        ("mistral", "sliding"),
        ("bart", "dynamic"),
    ],
)
def test_decoding_of_a_sound_model_rounds(tokenizer, name, kind):
    result = fp.cache(ARCHITECTURES[name].build(), tokenizer, PROMPT, kind=kind)
    assert result.verdict.kind in (VerdictKind.ROUNDING, VerdictKind.IDENTICAL)
    assert result.impact.tokens == 7


def test_a_decoder_that_forgets_what_it_read_is_told_from_its_cache(tokenizer):
    model = ARCHITECTURES["t5"].build()

    def forget(module, args, kwargs, output):
        past = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        if past is not None and past.get_seq_length():
            past.self_attention_cache.layers[0].values.mul_(0.5)
        return output

    model.decoder.block[0].register_forward_hook(forget, with_kwargs=True)
    result = fp.cache(model, tokenizer, PROMPT, split=3)
    assert (result.verdict.kind, result.verdict.mechanism) == (VerdictKind.SEMANTIC, "cache_state")
    assert result.origin.module.startswith("decoder.block.")


@pytest.mark.parametrize("name", ["vit", "wav2vec2"])
def test_a_model_that_reads_no_text_is_asked_nothing_about_prompts(tokenizer, name):
    model = ARCHITECTURES[name].build()
    for ask in (fp.padding, fp.batch, fp.dtype, fp.repeat, fp.factors):
        with pytest.raises(fp.InputError, match="and no token ids; expected a model that reads text"):
            ask(model, tokenizer, PROMPT)


def test_a_model_that_needs_an_image_besides_a_text_is_told_from_one_that_does_not(tokenizer):
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {**small, "vocab_size": 101, "max_position_embeddings": 32, "pad_token_id": 0}
    vision = {**small, "image_size": 8, "patch_size": 4}
    clip = tf.CLIPModel(tf.CLIPConfig(text_config=words, vision_config=vision, projection_dim=8)).eval()
    for ask in (fp.padding, fp.batch, fp.dtype, fp.factors):
        with pytest.raises(fp.InputError, match=r"^a CLIPModel, which can't run on token ids alone"):
            ask(clip, tokenizer, PROMPT)
    with pytest.raises(fp.InputError, match=r"^a CLIPModel, which can't run on token ids alone"):
        fp.audit(clip)
    llava = tf.LlavaConfig(
        text_config={**words, "model_type": "llama"}, image_token_index=100,
        vision_config={**vision, "model_type": "clip_vision_model"},
    )  # fmt: skip
    result = fp.padding(tf.LlavaForConditionalGeneration(llava).eval(), tokenizer, PROMPT, probes=False)
    assert result.impact.tokens == len(IDS)


@pytest.mark.parametrize(("name", "room"), [("bert", 16), ("roberta", 15), ("gpt2", 16)])
def test_rows_beside_a_prompt_are_no_longer_than_the_model_takes(tokenizer, runs, name, room):
    model = ARCHITECTURES[name].build(max_position_embeddings=16)
    fp.batch(model, tokenizer, PROMPT)
    assert max(map(len, given(runs.b)[0])) == room
    assert runs.b.execute()


# --- attention -----------------------------------------------------------------------------------------------


def test_another_implementation_is_used_in_one_run_alone(llama, tokenizer):
    result = fp.attention(llama, tokenizer, PROMPT)
    assert (result.a.name, result.b.name) == ("sdpa", "eager")
    functions = {row.op.split("/")[-1] for row in result.unmatched_b}
    assert "softmax" in functions
    assert result.verdict.kind is VerdictKind.ROUNDING
    assert llama.config._attn_implementation == "sdpa"


def test_a_kernel_of_torchs_attention_by_name(llama, tokenizer):
    result = fp.attention(llama, tokenizer, PROMPT, "sdpa:math")
    assert result.b.name == "sdpa:math"
    assert result.verdict.kind in (VerdictKind.ROUNDING, VerdictKind.IDENTICAL)


def test_a_kernel_that_refuses_is_one_error(llama, tokenizer):
    refusing = "sdpa:cudnn"  # there is none for the CPU
    if torch.cuda.is_available():
        pytest.skip("it may run here")
    with pytest.raises(fp.InputError, match=f"attention '{refusing}', which can't run here "):
        fp.attention(llama, tokenizer, PROMPT, refusing)
    assert llama.config._attn_implementation == "sdpa"


def test_an_implementation_is_put_back_where_the_model_fails(llama, tokenizer, monkeypatch):
    monkeypatch.setattr(llama, "forward", lambda **_: 1 / 0)
    with pytest.raises(fp.InputError, match=r"attention 'eager', which can't run here \(division by zero\)"):
        fp.attention(llama, tokenizer, PROMPT)
    assert llama.config._attn_implementation == "sdpa"


class Counting(nn.Module):
    """A part of a model that counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls.add_(1)
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, tokenizer: fp.attention(model, tokenizer, PROMPT, probes=False),
        lambda model, tokenizer: fp.compiled(model, tokenizer, PROMPT, "eager", probes=False),
    ],
    ids=["attention", "compiled"],
)
def test_what_is_tried_first_leaves_the_model_as_it_was(llama, tokenizer, ask):
    llama.model.norm = Counting(llama.model.norm)
    ask(llama, tokenizer)
    assert llama.model.norm.calls == 0


# --- dtype, autocast, device -----------------------------------------------------------------------------------


def test_another_dtype_leaves_the_model_alone(llama, tokenizer):
    before = copy.deepcopy(llama.state_dict())
    result = fp.dtype(llama, tokenizer, PROMPT)
    assert (result.a.name, result.b.name) == ("float32", "bfloat16")
    assert (result.verdict.kind, result.verdict.mechanism) == (VerdictKind.ROUNDING, "low_precision")
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())
    with pytest.raises(fp.InputError, match="dtype float32 for a model in float32"):
        fp.dtype(llama, tokenizer, PROMPT, "float32")


def test_autocast_is_on_in_one_run_alone(llama, tokenizer):
    result = fp.autocast(llama, tokenizer, PROMPT)
    assert (result.a.name, result.b.name) == ("float32", "autocast to bfloat16")
    assert (result.verdict.kind, result.verdict.mechanism) == (VerdictKind.ROUNDING, "low_precision")


def test_a_device_that_is_not_here_or_is_the_same(llama, tokenizer):
    with pytest.raises(fp.InputError, match="device cpu for a model on cpu; expected another one"):
        fp.device(llama, tokenizer, PROMPT, "cpu")
    with pytest.raises(fp.ModelError, match="unknown device nonsense"):
        fp.device(llama, tokenizer, PROMPT, "nonsense")


@pytest.mark.gpu
def test_an_offloaded_cache_is_made_anew_for_each_run(llama, tokenizer):
    result = fp.cache(llama.cuda(), tokenizer, PROMPT, kind="offloaded")
    assert result.verdict.kind is VerdictKind.ROUNDING


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "mixtral", "t5"])
def test_the_cpu_and_a_gpu_round(tokenizer, name):
    result = fp.device(ARCHITECTURES[name].build(), tokenizer, PROMPT)
    assert (result.a.device, result.b.device) == ("cpu", "cuda:0")
    assert result.verdict.kind is VerdictKind.ROUNDING


# --- quantize ------------------------------------------------------------------------------------------------


@needs_bitsandbytes
def test_int8_weights_are_other_weights(tokenizer):
    llama = ARCHITECTURES["llama"].build()
    llama.config._name_or_path = "models/tiny"
    before = copy.deepcopy(vars(llama.config))
    result = fp.quantize(llama, tokenizer, PROMPT)
    assert result.a.model == result.b.model == "LlamaForCausalLM (tiny)"
    assert vars(llama.config) == before
    assert (result.verdict.kind, result.verdict.mechanism) == (VerdictKind.INPUTS, "quantization")
    assert any(row.actual == "Linear8bitLt" for row in result.replaced_modules)
    assert type(llama.model.layers[0].mlp.up_proj) is nn.Linear


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation.*")
def test_dynamic_int8_of_pytorch(llama, tokenizer):
    result = fp.quantize(llama, tokenizer, PROMPT, "int8-dynamic")
    assert (result.verdict.kind, result.verdict.mechanism) == (VerdictKind.INPUTS, "quantization")


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation.*")
def test_a_model_that_can_not_run_quantised_is_one_error(tokenizer):
    """Mamba multiplies by a layer's weight itself, which a packed layer does not have."""
    with pytest.raises(fp.InputError) as caught:
        fp.quantize(ARCHITECTURES["mamba"].build(), tokenizer, PROMPT, "int8-dynamic")
    assert str(caught.value).startswith(
        "a MambaForCausalLM int8-dynamic, which can't run here (unsupported operand"
    )


def test_a_library_that_is_not_there_is_named(llama, tokenizer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        fp.ModelError, match="quantisation torchao-int8 without torchao; expected the package torchao"
    ):
        fp.quantize(llama, tokenizer, PROMPT, "torchao-int8")


def test_a_quantised_model_is_not_quantised_again(llama, tokenizer, monkeypatch):
    monkeypatch.setattr(llama.config, "quantization_config", {}, raising=False)
    with pytest.raises(fp.InputError, match="that is quantised already"):
        fp.quantize(llama, tokenizer, PROMPT)


# --- compiled --------------------------------------------------------------------------------------------------


def test_layers_are_compiled_each_by_itself(tokenizer):
    llama = ARCHITECTURES["llama"].build()
    result = fp.compiled(llama, tokenizer, PROMPT, "aot_eager")
    assert result.verdict.kind in (VerdictKind.ROUNDING, VerdictKind.IDENTICAL)
    note = result.notes[0]
    assert note.startswith(
        "2 modules handed to torch.compile, each by itself, and compared by inputs and outputs; by eager no bit changes"
    )
    assert "aot_eager" in note
    assert (
        not hasattr(llama.model.layers[0], "_compiled_call_impl")
        or llama.model.layers[0]._compiled_call_impl is None
    )


def test_every_layer_of_many_is_compiled(tokenizer, monkeypatch):
    """Each reads its own number for the cache, so that each needs a graph; Dynamo makes eight of one piece of code."""
    ran: list[int] = []

    def counting(graph, inputs):
        number = len(ran)
        ran.append(0)

        def run(*values):
            ran[number] += 1
            return graph(*values)

        return run

    monkeypatch.setitem(registry._COMPILER_FNS, "eager", counting)
    model = ARCHITECTURES["llama"].build(num_hidden_layers=12)
    result = fp.compiled(model, tokenizer, PROMPT, "eager", probes=False)
    assert result.notes[0].startswith("12 modules handed to torch.compile, each by itself")
    assert len(ran) == 12
    assert min(ran) >= 1


def test_a_fault_that_one_backend_makes_is_found_at_its_module(tokenizer, monkeypatch):
    def faulty(graph, inputs):
        def run(*values):
            out = graph(*values)
            bad = any(
                "down_proj" in str(node.target) or "down_proj" in node.name for node in graph.graph.nodes
            )
            return tuple(x * 1.5 if bad and x.is_floating_point() else x for x in out)

        return run

    monkeypatch.setitem(registry._COMPILER_FNS, "aot_eager", faulty)
    llama = ARCHITECTURES["llama"].build()
    result = fp.compiled(llama, tokenizer, PROMPT, "aot_eager")
    assert "by eager no bit changes, by aot_eager results change by" in result.notes[0]
    assert result.first.op.startswith("model.layers.0")
    assert (result.verdict.kind, result.verdict.mechanism, result.verdict.by_design) == (
        VerdictKind.SEMANTIC,
        None,
        None,
    )
    assert result.verdict.evidence[-1].name == "native"


# --- packed, repeat, checkpoints -------------------------------------------------------------------------------


def test_of_two_architectures_nobody_is_told_to_load_one_checkpoint(llama, tokenizer):
    gpt2 = ARCHITECTURES["gpt2"].build()
    result = fp.checkpoints(llama, tokenizer, gpt2, tokenizer, PROMPT)
    assert result.notes[0] == "The models are of two classes: LlamaForCausalLM and GPT2LMHeadModel."
    assert result.verdict.mechanism == "parameters"
    assert result.verdict.advice.startswith("Two architectures have weights of their own")
    same = fp.checkpoints(llama, tokenizer, ARCHITECTURES["llama"].build(seed=1), tokenizer, PROMPT)
    assert same.verdict.advice.startswith("Load both models from one checkpoint")


def test_packed_positions_begin_again(runs, llama, tokenizer):
    fp.packed(llama, tokenizer, [PROMPT, "w30 w31"])
    assert given(runs.a) == [[IDS], [[30, 31]]]
    assert given(runs.b) == [[[*IDS, 30, 31]]]
    assert given(runs.b, "position_ids") == [[[*range(7), 0, 1]]]
    assert runs.b.calls[0]["use_cache"] is False
    assert places(runs.b) == [[*((0, i) for i in range(7)), (1, 0), (1, 1)]]


def test_packed_samples_of_a_sound_model_round(llama, tokenizer):
    result = fp.packed(llama, tokenizer, PROMPT)
    assert result.notes[0] == "The samples behind the prompt were not given: 2 texts were chosen."
    assert result.verdict.kind in (VerdictKind.ROUNDING, VerdictKind.IDENTICAL)


def test_samples_can_not_be_told_apart_without_positions(tokenizer, llama):
    with pytest.raises(fp.InputError, match="a T5ForConditionalGeneration, which takes no position ids"):
        fp.packed(ARCHITECTURES["t5"].build(), tokenizer, PROMPT)
    with pytest.raises(fp.InputError, match="packed samples without position ids"):
        fp.packed(llama, tokenizer, PROMPT, position_ids="none")


def test_dropout_does_not_repeat(tokenizer):
    model = ARCHITECTURES["llama"].build(attention_dropout=0.5)
    assert fp.repeat(model, tokenizer, PROMPT).verdict.kind is VerdictKind.IDENTICAL
    result = fp.repeat(model.train(), tokenizer, PROMPT)
    assert (result.verdict.kind, result.verdict.mechanism) == (VerdictKind.NONDETERMINISM, "random_state")


def test_two_checkpoints_say_what_differs_before_they_run(llama, tokenizer):
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.mul_(1.5)
    result = fp.checkpoints(llama, tokenizer, other, word_tokenizer(), PROMPT, names=("base", "child"))
    assert (result.a.name, result.b.name) == ("base", "child")
    assert (result.verdict.kind, result.verdict.mechanism) == (VerdictKind.INPUTS, "parameters")
    assert result.notes[0] == (
        "1 of 21 parameters differ, relative to their size most: model.layers.1.mlp.down_proj.weight (50 %)."
    )
    assert result.first.op == "model.layers.1.mlp.down_proj/linear"


def test_a_tokenizer_that_makes_other_ids_is_said(llama, tokenizer):
    other = word_tokenizer(pad_token="<pad>", eos_token="</s>")
    other.add_tokens(["w5"], special_tokens=True)
    other.add_prefix_space = False

    class Shifted:
        eos_token_id, pad_token_id = 2, 0

        def __call__(self, text):
            return {"input_ids": [token + 1 for token in tokenizer(text)["input_ids"]]}

    result = fp.checkpoints(llama, tokenizer, copy.deepcopy(llama), Shifted(), PROMPT, probes=False)
    assert result.notes[0].startswith("The second model's tokenizer makes other token ids of the prompts")
    assert result.identical


def test_a_vocabulary_that_does_not_reach(llama, tokenizer):
    small = ARCHITECTURES["llama"].build(vocab_size=10)
    with pytest.raises(fp.InputError, match="token id 11, for a second model with embeddings for 10 tokens"):
        fp.checkpoints(llama, tokenizer, small, tokenizer, PROMPT)
