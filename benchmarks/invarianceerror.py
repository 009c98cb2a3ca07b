"""How far from float64 results are within `fp.invariant`, next to stock's: many models of random weights and inputs."""

from __future__ import annotations

import copy
import math
import statistics

import torch
import transformers as tf

import forkpoint as fp

_LENGTH = 100
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


def distances(device: str, seeds: int) -> list[dict[str, object]]:
    """One row for each model and dtype: the root mean square of the distances from float64, over stock's.

    `ratio` is the geometric mean over the seeds, `deviation` its standard error (of the logarithm).
    """
    rows: list[dict[str, object]] = []
    for name, config in _MODELS.items():
        for dtype in (
            (torch.float32, torch.bfloat16)
            if device == "cpu"
            else (torch.float32, torch.bfloat16, torch.float16)
        ):
            ratios = [math.log(_ratio(config(), device, dtype, seed)) for seed in range(seeds)]
            ratio = math.exp(statistics.mean(ratios))
            deviation = statistics.stdev(ratios) / math.sqrt(seeds)
            rows.append(
                {"model": name, "dtype": str(dtype), "seeds": seeds, "ratio": ratio, "deviation": deviation}
            )
            print(
                f"{name:8} {dtype} {ratio:.4f} times stock's distance, give or take {deviation:.4f}",
                flush=True,
            )
    return rows


def _ratio(config: tf.PreTrainedConfig, device: str, dtype: torch.dtype, seed: int) -> float:
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(config).to(device, dtype).eval()
    ids = torch.randint(3, 600, (1, _LENGTH), device=device)
    with torch.inference_mode():
        stock = model(input_ids=ids, use_cache=False).logits
        with fp.invariant(model):
            invariant = model(input_ids=ids, use_cache=False).logits
        exact = copy.deepcopy(model).double()(input_ids=ids, use_cache=False).logits
    own, other = (float((one.double() - exact).pow(2).mean().sqrt()) for one in (invariant, stock))
    return own / other
