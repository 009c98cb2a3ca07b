"""What tracing costs in other versions of forkpoint, against this one, in turn on one machine.

    git worktree add /tmp/before d918e1f                      # and build its extension there, as `make` does
    python benchmarks/against.py before=/tmp/before           # SmolLM2 on the CPU, 50 and 509 tokens
    python benchmarks/against.py before=/tmp/before --model llama7b --tokens 509 4093
    python benchmarks/against.py before=/tmp/before --verdict # each process's first verdict, in place of traces
    FORKPOINT_PURE_PYTHON=1 python benchmarks/against.py before=/tmp/before

Each version has a process of its own, which makes the traced pair when it is told to; the others wait meanwhile. A
ratio is the median, over the repetitions, of a version's time over this one's in the same repetition: seconds of the
processor on a CPU, which other work on the machine leaves alone, and of the clock on a GPU.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from measure import in_turn, ratio, synchronise
from results import ROOT, Json, seconds

HERE = "this one"


class Version:
    """A process that traces with the forkpoint of one folder.

    Args:
        folder: a checkout.
        given: the model, as `arguments` has it.
    """

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        if not (folder / "src" / "forkpoint").is_dir():
            raise SystemExit(f"{folder} holds no src/forkpoint: give the root of a checkout")
        self._environment = os.environ | {"PYTHONPATH": str(folder / "src")}
        names = ("model", "layers", "hidden", "device", "threads")
        chosen = [(name, getattr(given, name)) for name in names]
        self._command = [sys.executable, __file__, "--serve"]
        self._command += [
            text for name, value in chosen if value is not None for text in (f"--{name}", str(value))
        ]
        self._process = None if given.verdict else self._started()

    def trace(self, tokens: int) -> Json:
        """The traced pair once more, in the process that did the last."""
        assert self._process is not None
        return self._ask(self._process, str(tokens))

    def verdict(self) -> Json:
        """The first verdict of a new process."""
        process = self._started()
        try:
            return self._ask(process, "verdict")
        finally:
            self._end(process)

    def stop(self) -> None:
        if self._process is not None:
            self._end(self._process)

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _ask(self, process: subprocess.Popen[str], what: str) -> Json:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{what}\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"the process of {self._environment['PYTHONPATH']} ended")

    def _end(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def serve(given: argparse.Namespace) -> None:
    """What a version's process does: a line with figures for each line that comes in."""
    import tracing

    if given.threads:
        torch.set_num_threads(given.threads)
    subject = tracing.load(given)
    pairs = functools.cache(functools.partial(_pair, subject))
    for line in sys.stdin:
        if line.strip() == "verdict":
            call: Callable[[], object] = functools.partial(_verdict, subject)
        else:
            call = functools.partial(_traced, pairs(int(line)))
        synchronise(subject.device)
        wall, cpu = time.perf_counter(), time.process_time()
        kept = call()
        synchronise(subject.device)
        figures = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        del kept
        print(json.dumps(figures | {"kind": subject.device.type}), flush=True)


def _pair(subject: Any, tokens: int) -> Any:
    import cases

    return cases.pair(subject.model, tokens)


def _traced(pair: Any) -> object:
    from peers import WAYS

    return WAYS["forkpoint"].run(pair)


def _verdict(subject: Any) -> object:
    import waits

    return waits.alone(subject)


def compare(versions: dict[str, Callable[[], Json]], repetitions: int, *, clock: bool = False) -> Json:
    """Every version in turn.

    Args:
        versions: each gives the seconds of one repetition, by the clock and of the processor.
        repetitions: how many each gets.
        clock: go by the clock on a CPU, too.

    Returns:
        For each, its median, and the ratios to this one's; `failed` if it did.
    """
    found: dict[str, list[Json]] = {name: [] for name in versions}

    def once(name: str) -> float:
        figures = versions[name]()
        found[name].append(figures)
        return figures["seconds" if clock or figures["kind"] == "cuda" else "cpu"]

    taken, failures = in_turn(
        {name: functools.partial(once, name) for name in versions}, dict.fromkeys(versions, repetitions)
    )
    report: Json = {}
    for name, values in taken.items():
        if name in failures:
            report[name] = {"failed": failures[name]}
            continue
        wall = [figures["seconds"] for figures in found[name]]
        report[name] = {
            "seconds": statistics.median(values.values()),
            "wall_seconds": statistics.median(wall),
            **ratio(values, taken[HERE]),
        }
    return report


def say(what: str, report: Json) -> None:
    print(f"\n{what}")
    for name, figures in report.items():
        if "failed" in figures:
            print(f"  {name:<24} {figures['failed']}")
            continue
        print(
            f"  {name:<24} {seconds(figures['seconds']):>9} (by the clock {seconds(figures['wall_seconds'])})  "
            f"{figures['ratio']:.3f}  ({figures['ratio_least']:.2f}-{figures['ratio_most']:.2f}, "
            f"{figures['repetitions']} repetitions)",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("versions", nargs="*", metavar="NAME=FOLDER", help="checkouts of other versions")
    add("--model", choices=("smollm2", "llama7b"), default="smollm2")
    add("--layers", type=int, help="of llama7b; by default 32")
    add("--hidden", type=int, help="width of llama7b; by default 4096")
    add("--device", help="by default CUDA for llama7b where there is such a device, else the CPU")
    add("--tokens", type=int, nargs="*", default=[50, 509])
    add("--threads", type=int, help="torch's; by default what torch chooses")
    add("--repetitions", type=int, default=21)
    add(
        "--clock",
        action="store_true",
        help="go by the clock on a CPU, too: for several threads, which wait for each other",
    )
    add("--verdict", action="store_true", help="the first verdict of a process in place of traces")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    add("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(dtype=None)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.serve:
        serve(given)
        return
    named = dict(text.split("=", 1) for text in given.versions)
    folders = {HERE: ROOT} | {name: Path(folder).absolute() for name, folder in named.items()}
    versions = {name: Version(folder, given) for name, folder in folders.items()}
    report: Json = {}
    try:
        for tokens in [None] if given.verdict else given.tokens:
            if tokens is None:
                what, calls = "first verdict of a process", {n: v.verdict for n, v in versions.items()}
            else:
                what = f"traced pair, {tokens} tokens"
                calls = {n: functools.partial(v.trace, tokens) for n, v in versions.items()}
            for _ in range(
                1 if given.verdict else 3
            ):  # loads, compiles, and what one trace keeps for the next
                for call in calls.values():
                    call()
            report[what] = compare(calls, given.repetitions, clock=given.clock)
            say(what, report[what])
    finally:
        for version in versions.values():
            version.stop()
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
