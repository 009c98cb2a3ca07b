"""What is measured: a model, and the same prompt as it is and padded on the right."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

import forkpoint as fp
from forkpoint.capture.trace import Trace

PROMPT = "I've got a lovely bunch of coconuts do do do dooo"
PROMPT_IDS = (
    1,
    306,
    29915,
    345,
    2355,
    263,
    12355,
    873,
    14928,
    310,
    1302,
    535,
    8842,
    437,
    437,
    437,
    437,
    3634,
)
"""The prompt as Llama-2's tokenizer reads it."""
PAD_TO = 50


class Pair(NamedTuple):
    """Two runs of one model: without padding, and with some."""

    a: fp.Run
    b: fp.Run

    @property
    def tokens(self) -> int:
        return self.a.calls[0]["input_ids"].shape[1]

    @property
    def padded(self) -> int:
        return self.b.calls[0]["input_ids"].shape[1]

    @property
    def device(self) -> torch.device:
        return self.a.calls[0]["input_ids"].device


@dataclass(frozen=True)
class Subject:
    """A model to measure on; `tokenizer` is None where token ids must do."""

    name: str
    model: nn.Module
    tokenizer: Any = None

    @property
    def layers(self) -> int:
        return len(self.model.model.layers)  # type: ignore[union-attr, arg-type]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def smollm2(device: str, dtype: str) -> Subject:
    """The model called `demo`."""
    loaded = fp.load("demo", dtype=dtype, device=device)
    real = loaded.model.config.num_hidden_layers == 30
    return Subject("SmolLM2-135M" if real else "a small random Llama", loaded.model, loaded.tokenizer)


def smollm2_shape(device: str, dtype: str) -> Subject:
    """Of its shape, with random weights: for what its weights do not matter to, where they are not there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(device, getattr(torch, dtype)).eval()
    return Subject("SmolLM2-135M's shape", model)


def llama7b(device: str, dtype: str, layers: int | None = None, hidden: int | None = None) -> Subject:
    """Llama-2-7B's shape or a smaller one, with random weights that are made where they stay."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = hidden or 4096
    heads = max(hidden // 128, 1)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 43 // 16, num_attention_heads=heads,
        num_key_value_heads=heads, num_hidden_layers=layers or 32, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    shape = "Llama-2-7B's shape" if hidden == 4096 else f"a random Llama of width {hidden}"
    return Subject(shape, model)


@contextmanager
def cut_to(model: Any, layers: int) -> Generator[None]:
    """The same model with its first layers only."""
    config, whole = model.config, model.model.layers
    before = config.num_hidden_layers
    model.model.layers, config.num_hidden_layers = whole[:layers], layers
    try:
        yield
    finally:
        model.model.layers, config.num_hidden_layers = whole, before


def padded_length(tokens: int) -> int:
    """What a prompt is padded to: 50, or for longer ones the next multiple of 4 with 3 columns of padding."""
    return PAD_TO if tokens < PAD_TO else -(-(tokens + 3) // 4) * 4


def pair(model: nn.Module, tokens: int) -> Pair:
    """A prompt of so many random tokens."""
    ids = torch.randint(5, 30000, (1, tokens), generator=torch.Generator().manual_seed(1))
    return pair_of(model, ids % model.config.vocab_size, padded_length(tokens))  # type: ignore[union-attr, operator]


def pair_of(model: nn.Module, ids: torch.Tensor, length: int) -> Pair:
    """These tokens, and the same padded to a length."""
    ids = ids.to(next(model.parameters()).device)
    extra = length - ids.shape[1]

    def run(padding: int, name: str) -> fp.Run:
        mask = nn.functional.pad(torch.ones_like(ids), (0, padding))
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        padded = nn.functional.pad(ids, (0, padding), value=2)
        return fp.Run(
            model, {"input_ids": padded, "attention_mask": mask, "position_ids": positions}, name=name
        )

    return Pair(run(0, f"{ids.shape[1]} tokens"), run(extra, f"padded to {length}"))


def digested(trace: Trace) -> tuple[int, int]:
    """How many bytes of values a trace has digests of, and how many values; each counts once."""
    read = [event for event in trace.events if event.status == "digest"]
    return sum(_n_bytes(event.shape, event.dtype) for event in read), len(read)


def _n_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return torch.Size(shape).numel() * getattr(torch, dtype).itemsize
