"""What recording costs over tracing: `python benchmarks/recording.py --out benchmarks/results/recording-….json`.

Three ways of a session of forward calls, taken in turn, in one order and in the other by turns: plain; traced as a
comparison traces them (digests in memory, none written); and recorded to a trace on disk. Beginning a recording, which
digests the weights once, is taken apart from the calls. Seconds are those of the clock; of the process's own work on the
processor there is a ratio, too, which others that are at work on the machine disturb less.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

import forkpoint as fp
from cases import Subject, smollm2, smollm2_shape
from forkpoint.explain.session import trace_run
from machine import describe
from results import Json

Seconds = tuple[float, float]
"""Of the clock, and of the process's work."""


def taken(call: Callable[[], object]) -> Seconds:
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def plain(subject: Subject, ids: torch.Tensor, calls: int) -> Seconds:
    return taken(lambda: [subject.model(input_ids=ids) and None for _ in range(calls)])


def traced(subject: Subject, ids: torch.Tensor, calls: int) -> Seconds:
    """Each call a run of its own, its digests brought to the host."""

    def trace() -> None:
        trace_run(fp.Run(subject.model, {"input_ids": ids})).trace.complete()

    return taken(lambda: [trace() for _ in range(calls)])


def recorded(subject: Subject, ids: torch.Tensor, calls: int, begun: list[float]) -> Seconds:
    """The calls of a recording that has begun, its end included; how long it took to begin goes to `begun`."""
    with tempfile.TemporaryDirectory() as folder:
        recording = fp.record(Path(folder) / "trace", model=subject.model)
        begun.append(taken(recording.__enter__)[0])

        def record() -> None:
            for _ in range(calls):
                subject.model(input_ids=ids)
            recording.__exit__(None, None, None)

        return taken(record)


def measure(subject: Subject, tokens: int, calls: int, repetitions: int) -> Json:
    model: Any = subject.model
    words = model.config.vocab_size
    ids = torch.randint(0, min(words, 1000), (1, tokens), generator=torch.Generator().manual_seed(0))
    begun: list[float] = []
    ways: dict[str, Callable[[], Seconds]] = {
        "plain": lambda: plain(subject, ids, calls),
        "traced": lambda: traced(subject, ids, calls),
        "recorded": lambda: recorded(subject, ids, calls, begun),
    }
    found: dict[str, list[Seconds]] = {name: [] for name in ways}
    with torch.no_grad():
        for way in ways.values():
            way()
        begun.clear()
        for repetition in range(repetitions):
            order = [*ways] if repetition % 2 else [*ways][::-1]
            for name in order:
                gc.collect()
                found[name].append(ways[name]())

    def ratios(of: str, to: str, which: int = 0) -> list[float]:
        return sorted(a[which] / b[which] for a, b in zip(found[of], found[to], strict=True))

    over = ratios("recorded", "traced")
    return {
        "tokens": tokens, "calls": calls, "repetitions": repetitions,
        **{f"{name}_seconds": round(median(of[0] for of in found[name]) / calls, 4) for name in ways},
        "begin_seconds": round(median(begun), 4),
        "traced_over_plain": round(median(ratios("traced", "plain")), 3),
        "recorded_over_traced": round(median(over), 3),
        "quartiles": [round(over[len(over) // 4], 3), round(over[len(over) * 3 // 4], 3)],
        "recorded_over_traced_of_work": round(median(ratios("recorded", "traced", 1)), 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="*", default=[50, 509])
    parser.add_argument("--calls", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=24)
    parser.add_argument("--out", type=Path, help="where to write the figures")
    parser.add_argument("--random", action="store_true", help="random weights of SmolLM2-135M's shape")
    options = parser.parse_args()
    subject = (smollm2_shape if options.random else smollm2)("cpu", "float32")
    cases: list[Json] = []
    for tokens in options.tokens:
        cases.append(measure(subject, tokens, options.calls, options.repetitions))
        print(subject.name, json.dumps(cases[-1]), flush=True)
    if options.out is not None:
        report = {
            "date": datetime.now(UTC).date().isoformat(), "machine": describe(torch.device("cpu")), "load": round(os.getloadavg()[0], 1),
            "model": subject.name, "cases": cases,
        }  # fmt: skip
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
