"""What recording costs over tracing: `python benchmarks/recording.py`.

Three ways of a session of forward calls, taken in turn: plain; traced as a comparison traces them (digests in memory); and
recorded to a trace on disk. Beginning a recording, which digests the weights once, is taken apart from the calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import forkpoint as fp
from cases import Subject, smollm2
from forkpoint.explain.session import trace_run
from measure import in_turn


def plain(subject: Subject, ids: torch.Tensor, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        subject.model(input_ids=ids)
    return (time.perf_counter() - start) / calls


def traced(subject: Subject, ids: torch.Tensor, calls: int) -> float:
    """Each call a run of its own, its digests brought to the host."""
    start = time.perf_counter()
    for _ in range(calls):
        trace = trace_run(fp.Run(subject.model, {"input_ids": ids})).trace
        trace.complete()
    return (time.perf_counter() - start) / calls


def recorded(subject: Subject, ids: torch.Tensor, calls: int, begun: list[float]) -> float:
    """The calls of a recording that has begun; how long it took to begin goes to `begun`."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with fp.record(Path(folder) / "trace", model=subject.model):
            start = time.perf_counter()
            begun.append(start - begin)
            for _ in range(calls):
                subject.model(input_ids=ids)
        return (time.perf_counter() - start) / calls


def measure(subject: Subject, tokens: int, calls: int, repetitions: int) -> dict[str, object]:
    model: Any = subject.model
    words = model.config.vocab_size
    ids = torch.randint(0, min(words, 1000), (1, tokens), generator=torch.Generator().manual_seed(0))
    begun: list[float] = []
    ways = {
        "plain": lambda: plain(subject, ids, calls),
        "traced": lambda: traced(subject, ids, calls),
        "recorded": lambda: recorded(subject, ids, calls, begun),
    }
    with torch.no_grad():
        for way in ways.values():
            way()
        begun.clear()
        taken, failures = in_turn(ways, dict.fromkeys(ways, repetitions))
    assert not failures, failures
    ratios = [taken["recorded"][i] / taken["traced"][i] for i in taken["traced"]]
    return {
        "tokens": tokens, "calls": calls,
        **{f"{name}_seconds": round(statistics.median(taken[name].values()), 4) for name in ways},
        "begin_seconds": round(statistics.median(begun), 4),
        "recorded_over_traced": round(statistics.median(ratios), 3),
        "least_over_least": round(min(taken["recorded"].values()) / min(taken["traced"].values()), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="*", default=[50, 509])
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    subject = smollm2("cpu", "float32")
    for tokens in options.tokens:
        print(
            subject.name, json.dumps(measure(subject, tokens, options.calls, options.repetitions)), flush=True
        )


if __name__ == "__main__":
    main()
