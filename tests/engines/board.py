"""vLLM against transformers: a sound pair of each model, 50 planted faults, and what misleads. `make engineboard` runs it.

python -m tests.engines.board --engine-python .venv-engines/bin/python [--keep DIR] [--without-demo]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tests.engines.planted import TRANSFORMERS, VLLM, Fault
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import forkpoint as fp

ROOT = Path(__file__).parents[2]
LIMIT = 60.0
"""Seconds that a comparison may take, after loading."""


def tiny_qwen3(folder: Path) -> Path:
    """A random Qwen3 whose head size vLLM's kernels for the CPU take."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen3ForCausalLM(config).eval().save_pretrained(folder)
    return folder


def record(python: str, model: Path, folder: Path, *wanted: str) -> str:
    """Have vLLM record cases in its own environment; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    command = [python, str(ROOT / "tests/engines/vllm_recordings.py"), str(model), str(folder), *wanted]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class Board:
    """Counts what was found and prints each line as it comes."""

    def __init__(self) -> None:
        self.wrong = 0
        self.slowest = 0.0

    def line(self, name: str, found: str, *, right: bool) -> None:
        self.wrong += not right
        print(f"{'ok  ' if right else 'WRONG'} {name}: {found}", flush=True)

    def compared(self, model: Any, folder: Path, **options: Any) -> fp.EngineComparison:
        begun = time.perf_counter()
        found = fp.compare_engine(model, folder, **options)
        self.slowest = max(self.slowest, time.perf_counter() - begun)
        return found

    def sound(self, name: str, model: Any, folder: Path) -> None:
        found = self.compared(model, folder)
        numbers = Counter(one.status for one in found.listed)
        worst = max(row.times or 0.0 for row in found.ops)
        unlisted = [one for one in found.listed if one.status == "listed" and not one.reason]
        text = f"{found.verdict}, {dict(numbers)} of the engine's ops, farthest {worst:.2f} times rounding"
        whole = {check.outcome for check in found.question} == {"same"}
        self.line(name, text, right=found.agrees and not unlisted and whole)

    def fault(self, engine: str, fault: Fault, model: Any, folder: Path, *, plant: bool) -> None:
        with fault.planted(model) if plant else nullcontext():
            found = self.compared(model, folder)
        at = found.first.reference if found.first is not None else "nowhere"
        self.line(f"{engine}, {fault.name}", f"{at} ({found.verdict})", right=at in fault.at)

    def misleading(
        self, name: str, found: fp.EngineComparison, verdict: str, mechanism: str | None, said: str
    ) -> None:
        text = " ".join([found.summary, *(check.text for check in found.question), *found.notes])
        right = (found.verdict, found.mechanism) == (verdict, mechanism) and said in text
        if name == "prefix reported" and said not in text:
            # vLLM returns memory that it has not written for these tokens: at times what was there before, at times nothing
            right = found.agrees and "were found in the prefix cache" in text
        self.line(f"misleading, {name}", f"{found.verdict} ({found.mechanism}): {found.summary}", right=right)


def run(python: str, keep: Path, *, demo: bool) -> int:
    board = Board()
    path = tiny_qwen3(keep / "qwen3")
    folder = keep / "recordings"
    print(record(python, path, folder, "sound", "faults", "misleading").strip())
    record(python, path, folder, "sampled")
    model = loaded(path)
    board.sound("sound, a tiny Qwen3", model, folder / "sound")
    for fault in VLLM:
        board.fault("vLLM", fault, model, folder / fault.name, plant=False)
    for fault in TRANSFORMERS:
        board.fault("transformers", fault, model, folder / "sound", plant=True)
    print(f"{len(VLLM)} faults of vLLM and {len(TRANSFORMERS)} of transformers")
    prompts = [[5, 6, 7, 8, 9, 20, 30, 11, 40, 77, 12, 13, 14], [10, 11, 12, 99, 100]]
    cases = [
        (
            "warm-up",
            "rounding",
            None,
            "1 calls of the engine that computed no request's tokens were left out",
        ),
        ("prefix", "rounding", None, "were found in the prefix cache and were recorded"),
        ("stale", "semantic", "cache_state", "the prefix cache is stale"),
        ("stale reported", "semantic", "cache_state", "the prefix cache is stale"),
        ("prefix reported", "semantic", "cache_state", "whose logits were not computed in this run"),
        ("reset", "rounding", None, "every token was computed in this run"),
        ("temperature", "inputs", "temperature", "temperature=0.7"),
        ("top_p", "inputs", "top_p", "top_p=0.8"),
    ]
    for name, verdict, mechanism, said in cases:
        board.misleading(name, board.compared(model, folder / name), verdict, mechanism, said)
    zeros = board.compared(model, folder / "zeros", prompts=prompts)
    board.misleading("zeros", zeros, "inputs", "token_ids", "a warm-up was recorded in place of the prompt")
    if demo:
        smollm2 = fp.load("demo").model
        smollm2.save_pretrained(keep / "smollm2")
        print(record(python, keep / "smollm2", keep / "demo", "sound").strip())
        board.sound("sound, SmolLM2", smollm2, keep / "demo" / "sound")
    print(f"{board.wrong} wrong; the slowest comparison took {board.slowest:.1f} s after loading")
    return int(board.wrong > 0 or board.slowest > LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine-python", default=str(ROOT / ".venv-engines/bin/python"))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--without-demo", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        return run(asked.engine_python, asked.keep or Path(work), demo=not asked.without_demo)


if __name__ == "__main__":
    sys.exit(main())
