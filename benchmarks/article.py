"""The question that started it, at its own size: a Llama-2-7B's logits change when its prompt is padded.

    python benchmarks/article.py [--layers 32] [--dtype float32] [--attn sdpa] --out DIR

Random weights, 18 tokens, padded to 50. Prints the report, the time from the loaded model to the
verdict and the scene, the replay on every device, and what the script says in a bare interpreter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import forkpoint as fp

IDS = [1, 306, 29915, 345, 2355, 263, 12355, 873, 14928, 310, 1302, 535, 8842, 437, 437, 437, 29877, 29877]
PAD = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--attn", default="sdpa")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(
        num_hidden_layers=given.layers, hidden_size=given.hidden, intermediate_size=given.hidden * 43 // 16,
        attn_implementation=given.attn,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, given.dtype))
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.tensor([IDS], device=device)
    padded = torch.tensor([IDS + [PAD] * (50 - len(IDS))], device=device)
    mask, padded_mask = torch.ones_like(ids), (torch.arange(50, device=device) < len(IDS)).long()[None]
    a = fp.Run(
        model,
        {"input_ids": ids, "attention_mask": mask, "position_ids": mask.cumsum(-1) - 1},
        name="18 tokens",
    )
    b = fp.Run(
        model,
        {
            "input_ids": padded,
            "attention_mask": padded_mask,
            "position_ids": (padded_mask.cumsum(-1) - 1).clamp(min=0),
        },
        name="padded to 50",
    )
    given.out.mkdir(parents=True, exist_ok=True)
    for attempt in ("first, with libraries to load", "second"):
        start = time.perf_counter()
        result = fp.compare(a, b)
        verdict = time.perf_counter() - start
        if result.first is not None:
            result.save_scene(given.out / "scene")
        print(f"{attempt}: verdict after {verdict:.2f} s, with the scene {time.perf_counter() - start:.2f} s")
    print(result)
    if result.first is None:
        return
    from forkpoint.scene import load, replay, write_script

    scene = load(given.out / "scene")
    for where in dict.fromkeys((device, "cpu")):
        print(where, replay(scene, where))
    script = given.out / "script.py"
    print("script:", write_script(given.out / "scene", script).reproduced)
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(given.out / "scene")],
        capture_output=True,
        text=True,
        check=False,
    )
    print(script.read_text())
    print(done.stdout, done.stderr[-2000:])


if __name__ == "__main__":
    main()
