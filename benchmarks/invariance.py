"""What layout-invariant inference costs: stock attention of torch and `fp.invariant`, turn by turn, in one run.

python benchmarks/invariance.py                              # SmolLM2 in float32 on the CPU, 50 and 509 tokens
python benchmarks/invariance.py --device cuda                # the shape of Llama-2-7B in bfloat16
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import pstats
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers as tf

import forkpoint as fp

LENGTHS = {"cpu": (50, 509), "cuda": (53, 509, 1024, 4093)}


def main() -> None:
    """Prints and writes one row for each case: the fastest and the median time of both, and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--profile", action="store_true", help="where Python's time goes in each case instead"
    )
    given = parser.parse_args()
    model = _model(given.device)
    if given.profile:
        for name, call in _cases(model, given.device):
            print(name)
            _profiled(model, call)
        return
    rows: list[dict[str, object]] = []
    for name, call in _cases(model, given.device):
        stock, invariant = _timed(model, call, given.repeats)
        row = {
            "case": name,
            "stock_seconds": statistics.median(stock),
            "invariant_seconds": statistics.median(invariant),
            "ratio": statistics.median(invariant) / statistics.median(stock),
            "ratio_of_fastest": min(invariant) / min(stock),
        }
        rows.append(row)
        print(f"{name:28} stock {row['stock_seconds']:.4f} s, invariant {row['invariant_seconds']:.4f} s, "
              f"{row['ratio']:.3f} times ({row['ratio_of_fastest']:.3f} of the fastest)", flush=True)  # fmt: skip
    if given.out is not None:
        given.out.write_text(
            json.dumps({"device": given.device, "torch": torch.__version__, "rows": rows}, indent=1)
        )


def _model(device: str) -> torch.nn.Module:
    if device == "cpu":
        return fp.load("demo", dtype="float32", attn="sdpa").model
    with torch.device(device):
        config = tf.LlamaConfig(max_position_embeddings=8192)
        made = tf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return made.eval()


def _cases(model: torch.nn.Module, device: str) -> list[tuple[str, Callable[[], object]]]:
    cases: list[tuple[str, Callable[[], object]]] = []
    generator = torch.Generator().manual_seed(0)

    def ids(rows: int, length: int) -> torch.Tensor:
        return torch.randint(5, 30000, (rows, length), generator=generator).to(device)

    for length in LENGTHS[device]:
        row = ids(1, length)
        cases.append((f"{length} tokens", lambda row=row: model(input_ids=row, use_cache=False)))
    width = 512 if device == "cuda" else 64
    padded = ids(8, width)
    mask = torch.ones_like(padded)
    mask[:, : width // 2] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cases.append((
        "8 rows, half padding",
        lambda: model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False),
    ))  # fmt: skip
    for length in LENGTHS[device]:
        cases.append((f"a step after {length} tokens", _step(model, ids(1, length), ids(1, 1))))
    return cases


def _step(model: torch.nn.Module, row: torch.Tensor, token: torch.Tensor) -> Callable[[], object]:
    with torch.inference_mode():
        cache = model(input_ids=row, use_cache=True).past_key_values

    def step() -> None:
        model(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def _timed(
    model: torch.nn.Module, call: Callable[[], object], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of each call, stock and invariant by turns, after two of each that are not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 2):
        for index, context in enumerate((contextlib.nullcontext(), fp.invariant(model))):
            with torch.inference_mode(), context:
                call()  # a block looks at the first call in it
                _wait(model)
                start = time.perf_counter()
                call()
                _wait(model)
                if turn >= 2:
                    times[index].append(time.perf_counter() - start)
    return times


def _profiled(model: torch.nn.Module, call: Callable[[], object]) -> None:
    profile = cProfile.Profile()
    with torch.inference_mode(), fp.invariant(model):
        call()
        call()
        with profile:
            call()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def _wait(model: torch.nn.Module) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
