"""What a user waits for: from a loaded model to the verdict with its scene, and for the command to start."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import forkpoint as fp
from cases import PAD_TO, PROMPT, PROMPT_IDS, Subject, pair_of
from measure import synchronise
from results import Json

STARTS = {
    "python": ["-c", "pass"],
    "import forkpoint": ["-c", "import forkpoint"],
    "forkpoint --help": ["-m", "forkpoint", "--help"],
}


def verdict(subject: Subject) -> Json:
    """Twice: the first time libraries are loaded and kernels compiled, unless something did so before."""
    times = [_verdict(subject) for _ in range(2)]
    return {"first": times[0], "second": times[1]}


def _verdict(subject: Subject) -> Json:
    model = subject.model
    with tempfile.TemporaryDirectory() as folder:
        synchronise(subject.device)
        start = time.perf_counter()
        if subject.tokenizer is not None:
            result = fp.padding(model, subject.tokenizer, PROMPT, PAD_TO)
        else:
            vocabulary = model.config.vocab_size  # type: ignore[union-attr]
            result = fp.compare(*pair_of(model, torch.tensor([PROMPT_IDS]) % vocabulary, PAD_TO))
        judged = time.perf_counter() - start
        if result.first is not None:
            result.save_scene(Path(folder, "scene"))
        saved = time.perf_counter() - start
    return {
        "kind": result.verdict.kind.value,
        "tokens": result.impact.tokens,
        "padded": PAD_TO,
        "verdict_seconds": judged,
        "scene_seconds": saved if result.first is not None else None,
    }


def starts(repetitions: int) -> Json:
    """Median seconds of fresh processes, taken in turn; the first of each, which reads from disk, is left out."""
    package = str(Path(fp.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])}
    taken: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(repetitions + 1):
        for name, arguments in STARTS.items():
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment
            )
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}
