"""Runs in the environment that has vLLM: a recording of each case, in a folder of its own.

python tests/engines/vllm_recordings.py MODEL FOLDER [sound|faults|misleading …]
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# vLLM is installed in an environment of its own.

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tests.engines import planted

import forkpoint as fp
from forkpoint.engines.driver import USUAL

PROMPTS = [[5, 6, 7, 8, 9, 20, 30, 11, 40, 77, 12, 13, 14], [10, 11, 12, 99, 100]]
LONG = [torch.randint(3, 250, (140,), generator=torch.Generator().manual_seed(3)).tolist()]


def engine(model: str, **options: object) -> Any:
    os.environ.update(USUAL)
    import vllm

    asked = {
        "enforce_eager": True, "skip_tokenizer_init": True, "seed": 0, "max_model_len": 256, "kv_cache_memory_bytes": 1 << 28,
        "dtype": "float32", "max_num_batched_tokens": 8, "max_num_seqs": 4, **options,
    }  # fmt: skip
    return vllm.LLM(model, **asked)


def main(model: str, folder: Path, wanted: list[str]) -> None:
    llm = engine(model)
    inner = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    if "sound" in wanted:
        begun = time.perf_counter()
        fp.record_engine(llm, PROMPTS, folder / "sound", max_tokens=3)
        print("seconds", time.perf_counter() - begun, flush=True)
    if "faults" in wanted:
        for fault in planted.VLLM:
            llm.reset_prefix_cache()
            with fault.planted(inner):
                fp.record_engine(llm, PROMPTS, folder / fault.name, max_tokens=2)
    if "misleading" in wanted:
        misleading(llm, inner, folder)


def misleading(llm: Any, inner: torch.nn.Module, folder: Path) -> None:
    from vllm import SamplingParams

    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    llm.reset_prefix_cache()
    generate = llm.generate

    def warmed(*args: object, **kwargs: object) -> object:
        runner._dummy_run(8)  # as vLLM does to see how much memory it takes
        return generate(*args, **kwargs)

    llm.generate = warmed
    try:
        fp.record_engine(llm, PROMPTS, folder / "warm-up", max_tokens=2)
    finally:
        del llm.generate
    llm.reset_prefix_cache()
    fp.record_engine(llm, [[0] * len(p) for p in PROMPTS], folder / "zeros", max_tokens=1)
    # a prefix cache that was filled with other weights, and log-probabilities asked of its tokens
    norm = inner.model.layers[0].input_layernorm.weight
    now = norm.detach().clone()
    for name, factor in (("prefix", 1.0), ("stale", 1.05)):
        llm.reset_prefix_cache()
        with torch.inference_mode():
            norm.copy_(now * factor)
        plain = SamplingParams(max_tokens=1, temperature=0.0)
        generate([{"prompt_token_ids": LONG[0]}], plain, use_tqdm=False)
        with torch.inference_mode():
            norm.copy_(now)
        for kind, asked in (
            ("", {"prompt_logprobs": None}),
            (" reported", {"skip_reading_prefix_cache": False}),
        ):
            fp.record_engine(llm, LONG, folder / f"{name}{kind}", max_tokens=2, **asked)
    llm.reset_prefix_cache()
    fp.record_engine(llm, LONG, folder / "reset", max_tokens=2)


def sampled(model: str, folder: Path) -> None:
    """An engine that reports what it samples from."""
    llm = engine(model, logprobs_mode="processed_logprobs")
    for name, told in (("temperature", {"temperature": 0.7}), ("top_p", {"temperature": 1.0, "top_p": 0.8})):
        llm.reset_prefix_cache()
        fp.record_engine(llm, PROMPTS, folder / name, max_tokens=40, **told)


if __name__ == "__main__":
    if sys.argv[3:] == ["sampled"]:
        sampled(sys.argv[1], Path(sys.argv[2]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
