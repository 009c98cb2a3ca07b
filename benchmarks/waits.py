"""What a user waits for: from a loaded model to the verdict with its scene, and for the command to start."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import forkpoint as fp
from cases import PAD_TO, PROMPT, PROMPT_IDS, Pair, Subject, pair, pair_of
from forkpoint.explain.session import Traced
from measure import seconds_of, synchronise
from results import Json

STARTS = {
    "python": ["-c", "pass"],
    "import forkpoint": ["-c", "import forkpoint"],
    "forkpoint --help": ["-m", "forkpoint", "--help"],
}


def all_of(subject: Subject, lengths: Iterable[int], repetitions: int, again: list[str]) -> Json:
    """Everything that somebody waits for, printed as well.

    Args:
        subject: the model.
        lengths: of the prompts for what a verdict costs.
        repetitions: of what is taken several times.
        again: the arguments of Python that load the same model in a process of its own and print `alone`.
    """
    found = {
        "verdict": verdict(subject) | {"next_process": _next(again)},
        "verdict_cost": cost(subject, lengths, repetitions),
        "start_seconds": starts(repetitions),
    }
    for name, figures in found.items():
        print(f"\n{name}", json.dumps(figures), flush=True)
    return found


def verdict(subject: Subject) -> Json:
    """Twice: the first time libraries are loaded and kernels compiled, unless something did so before."""
    times = [alone(subject) for _ in range(2)]
    return {"first": times[0], "second": times[1]}


def _next(arguments: list[str]) -> Json:
    """The first verdict of another process, which finds libraries and kernels where this one has left them."""
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def alone(subject: Subject) -> Json:
    """One verdict, with its scene."""
    model = subject.model
    with tempfile.TemporaryDirectory() as folder:
        synchronise(subject.device)
        start = time.perf_counter()
        if subject.tokenizer is not None:
            result = fp.padding(model, subject.tokenizer, PROMPT, PAD_TO)
        else:
            result = fp.compare(*prompt_pair(subject))
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


def cost(subject: Subject, lengths: Iterable[int], repetitions: int) -> list[Json]:
    """What a verdict takes in forward passes of the pair, apart from the passes that are done in float64."""
    pairs = [
        prompt_pair(subject),
        *(pair(subject.model, tokens) for tokens in lengths if tokens != len(PROMPT_IDS)),
    ]
    return [_cost(both, subject.device, repetitions) for both in pairs]


def prompt_pair(subject: Subject) -> Pair:
    """The prompt's tokens, whatever they mean to the model, and the same padded."""
    ids = torch.tensor([PROMPT_IDS]) % subject.model.config.vocab_size  # type: ignore[union-attr, operator]
    return pair_of(subject.model, ids, PAD_TO)


def _cost(both: Pair, device: torch.device, repetitions: int) -> Json:
    a, b = both
    taken: list[dict[str, float]] = []
    passes = {"native": 0, "float64": 0}
    fp.compare(a, b)
    for _ in range(repetitions):
        plain = seconds_of(lambda: [run.execute() for run in both], device) / 2
        with _counted(device) as found:
            whole = seconds_of(lambda: fp.compare(a, b), device)
        exact = found["float64_seconds"]
        taken.append(
            {"plain": plain, "float64": exact, "rest": whole - exact, "ratio": (whole - exact) / plain}
        )
        passes = {name: int(found[name]) for name in passes}
    middle = {name: statistics.median(one[name] for one in taken) for name in taken[0]}
    return {
        "tokens": both.tokens,
        "padded": both.padded,
        "passes": passes["native"],
        "float64_passes": passes["float64"],
        "plain_seconds": middle["plain"],
        "float64_seconds": middle["float64"],
        "other_seconds": middle["rest"],
        "forward_passes": middle["ratio"],
        "repetitions": repetitions,
    }


@contextmanager
def _counted(device: torch.device) -> Generator[dict[str, float]]:
    """Counts the passes that are made, and takes the time of those in float64."""
    found = {"native": 0.0, "float64": 0.0, "float64_seconds": 0.0}
    again, in_float64, execute = Traced.again, Traced.in_float64, fp.Run.execute

    def timed(call: Callable[[], Any]) -> Any:
        synchronise(device)
        start = time.perf_counter()
        results = call()
        synchronise(device)
        found["float64_seconds"] += time.perf_counter() - start
        found["float64"] += 1
        found["native"] -= 1
        return results

    def exact(self: Traced, *args: Any, **kwargs: Any) -> Any:
        return timed(lambda: in_float64(self, *args, **kwargs))

    def again_or_exact(self: Traced, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("promotion") is None:
            return again(self, *args, **kwargs)
        return timed(lambda: again(self, *args, **kwargs))

    def counted(self: fp.Run, *args: Any, **kwargs: Any) -> Any:
        found["native"] += 1
        return execute(self, *args, **kwargs)

    with (
        mock.patch.object(Traced, "again", again_or_exact),
        mock.patch.object(Traced, "in_float64", exact),
        mock.patch.object(fp.Run, "execute", counted),
    ):
        yield found


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
