"""Which setting matters at a Llama-2-7B's size: a prompt against itself padded, in several dtypes and in int8.

    python benchmarks/factors_llama.py [--layers 32] [--hidden 4096] [--no-probes] [--json FILE]

Random weights with outliers planted in them: in every layer the norms enlarge a few features of the residual stream, the
same ones everywhere, so that some tokens' values there pass the threshold of 6 from which LLM.int8 leaves a column in
higher precision, and others' do not. Without outliers no column is left out, and a token's int8 doesn't depend on others.
Prints the table of `fp.factors`, and how many times float16's gap the one in int8 is. int8 needs bitsandbytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import forkpoint as fp
from article import IDS
from machine import describe

SETTINGS = ("int8", "float32", "bfloat16")
PADDED = 50
FEATURES = 8
ENLARGED = 3.0
"""What the norms make of a planted feature: its values are spread about this wide, so that about one in twenty passes 6."""


class Tokens:
    """Stands in for the tokenizer: there is one prompt, and its token ids are known."""

    pad_token_id = eos_token_id = 2

    def __call__(self, _text: str) -> dict[str, list[int]]:
        return {"input_ids": IDS}

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def build(layers: int, hidden: int, device: str) -> Any:
    """A Llama of this size in float16, the same on every call."""
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 128,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
            planted = torch.randperm(hidden)[:FEATURES]
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[planted] *= ENLARGED
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--no-probes", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{given.layers} layers of {given.hidden}, {len(IDS)} tokens padded to {PADDED}")
    print(", ".join(f"{key} {value}" for key, value in describe(torch.device(device)).items()), flush=True)
    model = build(given.layers, given.hidden, device)
    began = perf_counter()
    factors = fp.factors(model, Tokens(), "the prompt", PADDED, only=SETTINGS, probes=not given.no_probes)
    print(f"{perf_counter() - began:.0f} s\n\n{factors}", flush=True)
    if given.json is not None:
        factors.to_json(given.json)
    gaps = {row.setting: row.gap for row in factors.rows}
    if gaps["int8"] and gaps["as it is"]:
        print(f"\nThe gap in int8 is {gaps['int8'] / gaps['as it is']:.1f} times float16's.")


if __name__ == "__main__":
    main()
