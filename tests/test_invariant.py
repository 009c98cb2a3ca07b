"""Under `fp.invariant` a token's result has the same bits in every layout.

`python -m tests.test_invariant --count 5000 --seed 1` tries that many layouts; `--model smollm2` tries them with SmolLM2.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import random
import sys
import time
from collections import Counter
from typing import Any

import pytest
import torch
import transformers as tf
from tests import layouts
from tests.architectures import ARCHITECTURES, prompt
from tests.layouts import Layout

import forkpoint as fp


def differing(model: torch.nn.Module, layout: Layout, invariant: bool = True) -> list[int]:
    """The rows whose results are not the same bits as alone, in one forward call."""
    with torch.inference_mode(), fp.invariant(model) if invariant else contextlib.nullcontext():
        together, alone = layouts.laid_out(model, layout), layouts.alone(model, layout)
    return [
        index
        for index, (one, other) in enumerate(zip(alone, together, strict=True))
        if not torch.equal(one, other)
    ]


class Pool:
    """Long rows for a causal model, whose beginnings are laid out: each long row is run alone once, in an open block.

    Args:
        model: the model.
        count: how many rows.
        length: tokens of each.
    """

    def __init__(self, model: torch.nn.Module, count: int, length: int) -> None:
        numbers = random.Random(0)
        self.rows = [[numbers.randrange(3, 30000) for _ in range(length)] for _ in range(count)]
        self._model = model
        device = next(model.parameters()).device
        with torch.inference_mode():
            self._alone = {
                tuple(row[:8]): model(input_ids=torch.tensor([row], device=device), use_cache=False).logits[0]
                for row in self.rows
            }

    def differing(self, layout: Layout) -> list[int]:
        """The rows of a layout whose results are not the bits of the beginning of the long row."""
        with torch.inference_mode():
            together = layouts.laid_out(self._model, layout)
        return [
            index
            for index, (row, made) in enumerate(zip(layout.rows, together, strict=True))
            if not torch.equal(self._whole(row)[: len(row)], made)
        ]

    def _whole(self, row: list[int]) -> torch.Tensor:
        return next(made for first, made in self._alone.items() if first[: len(row)] == tuple(row[:8]))


@pytest.mark.parametrize("name", layouts.NAMES)
def test_every_layout_has_the_same_bits(name):
    for layout in itertools.islice(layouts.draw(seed=1, names=(name,), longest=128), 12):
        assert differing(layouts.model_of(layout), layout) == [], layout.words


@pytest.mark.parametrize("dtype", layouts.DTYPES)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_it_is_as_exact_as_stock(name, dtype):
    inputs = {"input_ids": torch.tensor([prompt(100)])}
    gaps = [0.0, 0.0]
    for seed in range(4):
        model = ARCHITECTURES[name].build(seed=seed, dtype=dtype)
        with torch.inference_mode():
            stock = model(**inputs).logits
            with fp.invariant(model):
                invariant = model(**inputs).logits
            exact = copy.deepcopy(model).double()(**inputs).logits
        for index, made in enumerate((stock, invariant)):
            gaps[index] += float((made.double() - exact).abs().mean())
    assert gaps[1] <= 1.1 * gaps[0]


def test_without_it_they_have_not():
    drawn = itertools.islice(layouts.draw(seed=2, names=("llama", "gpt2"), longest=256), 20)
    assert any(differing(layouts.model_of(layout), layout, invariant=False) for layout in drawn)


def _large(name: str, device: str, dtypes: tuple[torch.dtype, ...]) -> dict[torch.dtype, torch.nn.Module]:
    """SmolLM2, or random weights of the shape of a large model."""
    if name == "smollm2":
        return {dtype: fp.load("demo", dtype=_short(dtype), device=device).model for dtype in dtypes}
    config: Any = tf.LlamaConfig(max_position_embeddings=4096)  # its defaults are Llama-2-7B's shape
    if name == "qwen3-moe":
        # of the width of Qwen3-30B-A3B
        config = tf.Qwen3MoeConfig(
            num_hidden_layers=2, num_experts=128, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
            hidden_size=2048, moe_intermediate_size=768, num_experts_per_tok=8, max_position_embeddings=4096,
        )  # fmt: skip
    made: dict[torch.dtype, torch.nn.Module] = {}
    for dtype in dtypes:
        torch.manual_seed(0)
        with torch.device(device):
            made[dtype] = tf.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return made


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> int:
    """Prints a line for each layout that breaks, and what was tried."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=int, default=512, help="columns of a call, in all")
    parser.add_argument("--model", choices=("tiny", "smollm2", "llama-7b", "qwen3-moe"), default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", action="append", help="by default float32 and bfloat16")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after that time")
    parser.add_argument(
        "--pool",
        type=int,
        help="so many rows of 2,048 tokens are run alone once, and layouts are of their beginnings",
    )
    parser.add_argument("--stock", action="store_true", help="without fp.invariant: how many break")
    given = parser.parse_args()
    dtypes = tuple(getattr(torch, name) for name in given.dtype or ()) or layouts.DTYPES
    large = {} if given.model == "tiny" else _large(given.model, given.device, dtypes)
    names, vocabulary = ((given.model,), 30000) if large else (layouts.NAMES, None)
    kinds: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        if given.pool and not given.stock:
            for model in large.values():
                stack.enter_context(fp.invariant(model))
        pools = {dtype: Pool(model, given.pool, 2048) for dtype, model in large.items()} if given.pool else {}
        rows_of = next(iter(pools.values())).rows if pools else None
        drawn = layouts.draw(given.seed, names, given.longest, vocabulary, dtypes, rows_of)
        for layout in itertools.islice(drawn, given.count):
            if time.monotonic() - start > given.seconds:
                break
            kinds[layout.kind] += 1
            if pools:
                rows = pools[layout.dtype].differing(layout)
            else:
                model = large[layout.dtype] if large else layouts.model_of(layout)
                rows = differing(model, layout, not given.stock)
            if rows:
                broken[layout.kind] += 1
                if not given.stock:
                    print(f"rows {rows} differ: {layout.words}", flush=True)
    print(
        f"{given.model} {' '.join(map(_short, dtypes))}, seed {given.seed}: {kinds.total()} layouts ({dict(kinds)}): "
        f"at most {given.longest} columns, {broken.total()} not the same bits {dict(broken) or ''}; {time.monotonic() - start:.0f} s"
    )
    return int(bool(broken) and not given.stock)


if __name__ == "__main__":
    sys.exit(main())
