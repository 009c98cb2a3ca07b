"""Greedy completions of one prompt, in batches of random size beside random other prompts, are one and the same.

`python -m tests.test_completions --device cuda --count 1000 --new 48` asks that of Llama-2-7B's shape; `--stock` asks it
without `fp.invariant`.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import time
from collections import Counter
from typing import Any

import torch
import transformers as tf
from tests.architectures import ARCHITECTURES

import forkpoint as fp

Rows = list[list[int]]


def completions(
    model: Any, count: int, new: int, *, vocabulary: int, most: int, seed: int = 0, invariant: bool = True
) -> Counter[tuple[int, ...]]:
    """How often each completion comes, of `new` tokens each, in batches of up to `most` rows."""
    numbers = random.Random(seed)
    prompt = [numbers.randrange(3, vocabulary) for _ in range(24)]
    made: Counter[tuple[int, ...]] = Counter()
    with torch.inference_mode(), fp.invariant(model) if invariant else contextlib.nullcontext():
        while made.total() < count:
            rows = [prompt] * min(count - made.total(), numbers.randint(1, most))
            rows += [_other(numbers, vocabulary) for _ in range(numbers.randint(0, most // 4))]
            numbers.shuffle(rows)
            for row, completion in zip(rows, _completed(model, rows, new), strict=True):
                if row is prompt:
                    made[completion] += 1
    return made


def _other(numbers: random.Random, vocabulary: int) -> list[int]:
    return [numbers.randrange(3, vocabulary) for _ in range(numbers.randint(1, 48))]


def _completed(model: Any, rows: Rows, new: int) -> list[tuple[int, ...]]:
    width = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows]).to(device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]).to(device)
    made = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
    )  # fmt: skip
    return [tuple(row) for row in made[:, width:].tolist()]


def test_completions_in_random_batches_are_one():
    model = ARCHITECTURES["llama"].build(dtype=torch.bfloat16)
    made = completions(model, 24, 6, vocabulary=model.config.vocab_size, most=8)
    assert len(made) == 1 and made.total() == 24


def main() -> None:
    """Prints how many completions there were, and how many distinct ones."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--most", type=int, default=64, help="copies of the prompt in a batch")
    parser.add_argument("--stock", action="store_true")
    given = parser.parse_args()
    torch.manual_seed(0)
    with torch.device(given.device):
        config = tf.LlamaConfig(max_position_embeddings=4096)
        model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    start = time.monotonic()
    made = completions(
        model, given.count, given.new, vocabulary=30000, most=given.most, invariant=not given.stock
    )
    print(
        f"{'stock' if given.stock else 'invariant'}: {made.total()} completions of {given.new} tokens, {len(made)} distinct; "
        f"{time.monotonic() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
