"""How far from float64 results are within `fp.invariant`, next to stock's: many models of random weights and inputs."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Sequence

import torch
import transformers as tf

import forkpoint as fp

_COMMON = {
    "vocab_size": 600, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
_MODELS = {
    "llama": lambda: tf.LlamaConfig(**_COMMON),
    "mistral": lambda: tf.MistralConfig(**_COMMON, sliding_window=64),
    "qwen2": lambda: tf.Qwen2Config(**_COMMON),
    "qwen3": lambda: tf.Qwen3Config(**_COMMON, head_dim=32),
    "gemma2": lambda: tf.Gemma2Config(**_COMMON, head_dim=32),
    "phi3": lambda: tf.Phi3Config(**_COMMON, pad_token_id=0),
    "gpt2": lambda: tf.GPT2Config(vocab_size=600, n_embd=128, n_layer=3, n_head=4, n_positions=512),
}


NAMES = tuple(_MODELS)
"""The models that there are."""


def distances(
    device: str,
    seeds: int,
    names: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    tokens: int = 100,
    seconds: float = math.inf,
) -> list[dict[str, object]]:
    """One row for each model and dtype: the root mean square of the distances from float64, over stock's.

    Each seed is another model and another prompt. `ratio` is the geometric mean over the seeds, `deviation` its standard
    error (of the logarithm), `low` and `high` are the ends of its interval of 95 % (Student's t), and `above` is the
    number of seeds whose ratio is larger than one: half of them, where only chance tells the two apart. After `seconds`
    no other seed is begun.
    """
    every = dtypes or ("float32", "bfloat16", *(["float16"] if device != "cpu" else []))
    ratios: dict[tuple[str, str], list[float]] = {
        (name, dtype): [] for name in names or NAMES for dtype in every
    }
    start = time.monotonic()
    for seed in range(seeds):
        if seed > 1 and time.monotonic() - start > seconds:
            break
        for (name, dtype), several in ratios.items():
            one = _ratio(_MODELS[name](), device, getattr(torch, dtype), seed, tokens)
            several.append(math.log(one))
    return [
        {"model": name, "dtype": dtype, "tokens": tokens}
        | _interval(f"{name:8} {dtype:8} {tokens} tokens", several)
        for (name, dtype), several in ratios.items()
    ]


def products(
    device: str, seeds: int, dtypes: Sequence[str] = (), seconds: float = math.inf
) -> list[dict[str, object]]:
    """One row for each size, dtype and number of rows: of one product by itself what `distances` says of models.

    Each seed is another matrix and other rows, all of normally distributed values.
    """
    start = time.monotonic()
    rows: list[dict[str, object]] = []
    for dtype in dtypes or ("float32", "bfloat16"):
        for columns, inner in _SIZES["cpu" if device == "cpu" else "gpu"]:
            for count in _COUNTS:
                several: list[float] = []
                for seed in range(seeds):
                    if seed > 1 and time.monotonic() - start > seconds:
                        break
                    several.append(
                        math.log(_of_product(columns, inner, count, device, getattr(torch, dtype), seed))
                    )
                told = f"{columns} columns of {inner} values, {dtype}, {count} rows"
                size = {"columns": columns, "inner": inner, "dtype": dtype, "rows": count}
                rows.append(size | _interval(told, several))
    return rows


_SIZES = {
    "cpu": ((576, 576), (1536, 576), (576, 1536)),
    "gpu": ((128, 128), (4096, 4096), (4096, 11008), (11008, 4096)),
}
"""Columns, and values that each is a sum of: of SmolLM2-135M and Llama-2-7B."""
_COUNTS = (1, 2, 8, 17, 100, 1000)


def _of_product(columns: int, inner: int, count: int, device: str, dtype: torch.dtype, seed: int) -> float:
    torch.manual_seed(seed)
    layer = torch.nn.Linear(inner, columns, bias=False, device=device, dtype=dtype).eval()
    layer.weight.data = (torch.randn(columns, inner, device=device) / math.sqrt(inner)).to(dtype)
    x = torch.randn(count, inner, device=device).to(dtype)
    with torch.inference_mode():
        stock = layer(x)
        with fp.invariant(layer):
            layer(x)  # what comes in one call alone is left to the reference
            invariant = layer(x)
        exact = torch.nn.functional.linear(x.double(), layer.weight.double())
    return _ratio_of(invariant, stock, exact)


def _interval(told: str, ratios: list[float]) -> dict[str, object]:
    count, mean = len(ratios), statistics.mean(ratios)
    deviation = statistics.stdev(ratios) / math.sqrt(count)
    reach = _student(count - 1) * deviation
    low, high = math.exp(mean - reach), math.exp(mean + reach)
    above = sum(ratio > 0 for ratio in ratios)
    print(
        f"{told}, {count} seeds: {math.exp(mean):.4f} times stock's distance, "
        f"{low:.4f} to {high:.4f}; above 1 in {above}",
        flush=True,
    )
    return {
        "seeds": count, "ratio": math.exp(mean), "deviation": deviation, "low": low, "high": high, "above": above,
    }  # fmt: skip


def _student(freedom: int) -> float:
    """What 95 % of Student's t lie within, by the first terms of its expansion.

    >>> f"{_student(7):.2f} {_student(11):.2f} {_student(99):.3f}"
    '2.36 2.20 1.984'
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _ratio(config: tf.PreTrainedConfig, device: str, dtype: torch.dtype, seed: int, tokens: int) -> float:
    torch.manual_seed(seed)
    with torch.device(device):
        model = tf.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    ids = torch.randint(3, 600, (1, tokens), device=device)
    with torch.inference_mode():
        stock = model(input_ids=ids, use_cache=False).logits
        with fp.invariant(model):
            invariant = model(input_ids=ids, use_cache=False).logits
        exact = copy.deepcopy(model).double()(input_ids=ids, use_cache=False).logits
    return _ratio_of(invariant, stock, exact)


def _ratio_of(own: torch.Tensor, stock: torch.Tensor, exact: torch.Tensor) -> float:
    """The root mean square of the distances of one result over that of the other's; 1 where both are exact."""
    one, other = (float((made.double() - exact).pow(2).mean().sqrt()) for made in (own, stock))
    return one / other if one and other else 1.0
