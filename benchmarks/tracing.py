"""What tracing costs: the traced pair of runs against the plain pair, and against peers, in one process.

    python benchmarks/tracing.py [--model smollm2|llama7b] [--tokens 50 509] [--json FILE]

Every figure is the median, over interleaved repetitions, of a ratio to the plain pair of the same
repetition. The floor is a function mode that does nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

import forkpoint as fp
from forkpoint.session import trace_run


class Empty(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def load(name: str, layers: int | None = None) -> torch.nn.Module:
    if name == "smollm2":
        return fp.load("demo").model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(num_hidden_layers=layers or 32, attn_implementation="sdpa")
    torch.manual_seed(0)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
    return model


def pair(model: torch.nn.Module, tokens: int, extra: int) -> tuple[fp.Run, fp.Run]:
    device = next(model.parameters()).device
    ids = torch.randint(5, 30000, (1, tokens), generator=torch.Generator().manual_seed(1)).to(device)
    mask = torch.ones_like(ids)
    padded = torch.cat([ids, torch.full((1, extra), 2, device=device)], 1)
    padded_mask = torch.cat([mask, torch.zeros(1, extra, dtype=torch.long, device=device)], 1)

    def inputs(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    return fp.Run(model, inputs(ids, mask)), fp.Run(model, inputs(padded, padded_mask))


def ways(a: fp.Run, b: fp.Run, peers: bool) -> dict[str, Callable[[], object]]:
    model = a.model

    def plain() -> None:
        with torch.no_grad():
            for run in (a, b):
                model(**run.calls[0])

    def floor() -> None:
        with Empty():
            plain()

    def traced() -> None:
        for run in (a, b):
            trace_run(run)

    found: dict[str, Callable[[], object]] = {"plain": plain, "floor": floor, "forkpoint": traced}
    if peers:
        found["DebugMode"] = lambda: _debug_mode(plain)
        found["store everything"] = lambda: _store(plain)
    return found


def _debug_mode(plain: Callable[[], None]) -> None:
    from torch.utils._debug_mode import DebugMode

    with DebugMode(record_torchfunction=False) as mode, DebugMode.log_tensor_hashes(hash_inputs=True):
        plain()
    mode.debug_string()


class Keep(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[torch.Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.values.append(result.detach().clone())
        return result


def _store(plain: Callable[[], None]) -> None:
    with Keep():
        plain()


def measure(a: fp.Run, b: fp.Run, repetitions: int, peers: bool) -> dict[str, object]:
    on_gpu = next(a.model.parameters()).is_cuda
    seconds: dict[str, list[float]] = {}
    memory: dict[str, int] = {}
    for repetition in range(repetitions + 1):
        for name, way in ways(a, b, peers).items():
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            start = time.perf_counter()
            try:
                way()
            except Exception as error:  # noqa: BLE001 - a peer that fails is reported, and the rest goes on
                seconds.setdefault(name, []).append(float("nan"))
                print(f"{name}: {type(error).__name__}: {error}"[:200])
                continue
            if on_gpu:
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() - before
            if repetition:
                seconds.setdefault(name, []).append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(x / y for x, y in zip(values, seconds["plain"], strict=True))
        for name, values in seconds.items()
    }
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratios": ratios,
        "peak_bytes": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("smollm2", "llama7b"), default="smollm2")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokens", type=int, nargs="+", default=[50, 509])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = load(given.model, given.layers)
    device = (
        torch.cuda.get_device_name() if next(model.parameters()).is_cuda else platform.processor() or "CPU"
    )
    report: dict[str, object] = {
        "date": datetime.now(tz=UTC).date().isoformat(), "device": device, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "model": given.model, "layers": given.layers, "tokens": {},
    }  # fmt: skip
    for tokens in given.tokens:
        a, b = pair(model, tokens, 3 if tokens > 1000 else 16)
        figures = measure(a, b, given.repetitions, not given.no_peers)
        report["tokens"][str(tokens)] = figures  # type: ignore[index]
        print(tokens, json.dumps(figures))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
