"""What tracing costs: the traced pair of runs against the plain pair, and against peers, in one process.

    python benchmarks/tracing.py                                   # SmolLM2 on the CPU, 50 and 509 tokens
    python benchmarks/tracing.py --model llama7b --tokens 509 4093 --scaling --verdict --out benchmarks/results
    python benchmarks/tracing.py --model llama7b --layers 2 --hidden 128 --repetitions 3      # a quick try

Ratios are medians, over repetitions in which everything takes its turn, of the time over the plain pair's in
the same repetition. Something slow gets fewer repetitions (`--patience`), and the output says how many.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import torch

import cases
import waits
from machine import describe
from measure import affordable, copy_speed, failure, floor, in_turn, peak_of, ratio, seconds_of
from peers import WAYS, NotHereError
from results import Json

FORMAT = 1
OURS = ("plain", "mode", "forkpoint")
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
LAYERS = (2, 4, 8, 16, 32)
LAYERS_TOKENS = 512
GIVE_UP = 5
"""A peer whose first pass takes so many times what patience allows is not measured."""
WAITS = 7
"""Repetitions of what `--verdict` takes several times: a verdict is long, and differs little from one to the next."""
LEAST = 3
"""Repetitions of a case of `--scaling`, if patience allows no more."""


def compare_ways(
    pair: cases.Pair, names: Iterable[str], repetitions: int, least: int, patience: float, bandwidth: float
) -> Json:
    """One case: every way on the same pair.

    Args:
        pair: what it is measured on.
        names: the ways, the plain pair among them.
        repetitions: how many each gets.
        least: how many forkpoint and the floors get, however slow they are.
        patience: seconds that a way may take over its repetitions.
        bandwidth: bytes a second of a copy.
    """
    case: Json = {
        "tokens": pair.tokens,
        "padded": pair.padded,
        "layers": pair.a.model.config.num_hidden_layers,
    }
    ways: Json = {}
    calls: dict[str, Callable[[], float]] = {}
    wanted: dict[str, int] = {}
    for name in names:
        way = WAYS[name]
        ways[name] = found = {"label": way.label}
        try:
            _first_pass(pair, name, patience)
            start = time.perf_counter()
            found["peak_bytes"] = _once(pair, name, peak_of)
            expected = time.perf_counter() - start
        except ModuleNotFoundError as error:
            found["skipped"] = f"{error.name} is not installed"
        except NotHereError as error:
            found["skipped"] = str(error)
        except Exception as error:  # noqa: BLE001 - a peer that fails is reported, and the rest goes on
            found["failed"] = failure(error)
        else:
            calls[name] = functools.partial(_once, pair, name, seconds_of)
            wanted[name] = affordable(expected, repetitions, patience, 1 if way.peer else least)
            if note := way.note(pair):
                found["note"] = note
        if (
            "failed" in found and pair.device.type == "cuda"
        ):  # after the block: the error held its frames' tensors
            gc.collect()
            torch.cuda.empty_cache()
    wanted["plain"] = max(wanted.values())
    taken, failures = in_turn(calls, wanted)
    for name, seconds in taken.items():
        if name in failures:
            ways[name]["failed"] = failures[name]
            continue
        ways[name] |= ratio(seconds, taken["plain"])
        ways[name]["seconds"] = statistics.median(seconds.values())
        if ways[name]["peak_bytes"] is not None:
            ways[name]["extra_bytes"] = ways[name]["peak_bytes"] - ways["plain"]["peak_bytes"]
    case |= _digests(pair)
    case["floor_ratio"] = floor(case["digested_bytes"], bandwidth, ways["plain"]["seconds"])
    return case | {"ways": ways}


def _first_pass(pair: cases.Pair, name: str, patience: float) -> None:
    """Loads and compiles whatever a way needs; its time is no figure."""
    seconds = _once(pair, name, seconds_of)
    if WAYS[name].peer and seconds > GIVE_UP * patience:
        raise NotHereError(f"left out: its first pass took {seconds:.0f} s")


def _once(pair: cases.Pair, name: str, measure: Callable[..., float]) -> float:
    way = WAYS[name]
    with ExitStack() as stack:
        stack.enter_context(way.around(pair))
        return measure(lambda: way.run(pair), pair.device)


def _digests(pair: cases.Pair) -> Json:
    from forkpoint.explain.session import trace_run

    counts = [cases.digested(trace_run(run).trace) for run in pair]
    return {"digested_bytes": sum(b for b, _ in counts), "digested_values": sum(n for _, n in counts)}


def say(case: Json) -> None:
    gigabytes = case["digested_bytes"] / 1e9
    print(
        f"\n{case['tokens']} tokens, padded to {case['padded']}; {case['layers']} layers; {case['digested_values']:,} "
        f"values, {gigabytes:.2f} GB digested; reading them once: {case['floor_ratio']:.3f}×"
    )
    for way in case["ways"].values():
        if "ratio" not in way:
            print(f"  {way['label']:<48} {way.get('skipped') or way['failed']}")
            continue
        extra = way.get("extra_bytes")
        print(
            f"  {way['label']:<48} {way['seconds']:9.4f} s {way['ratio']:9.3f}× "
            f"({way['ratio_least']:.2f}–{way['ratio_most']:.2f}, {way['repetitions']} repetitions)"
            + ("" if extra is None else f"  {extra / 1e6:+,.0f} MB")
            + (f"  {way['note']}" if "note" in way else ""),
            flush=True,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=("smollm2", "llama7b"), default="smollm2")
    add("--layers", type=int, help="of llama7b; by default 32")
    add("--hidden", type=int, help="width of llama7b; by default 4096")
    add("--device", help="by default CUDA for llama7b where there is such a device, else the CPU")
    add("--dtype", help="by default bfloat16 for llama7b, else float32")
    add("--tokens", type=int, nargs="*", default=[50, 509], help="prompts to measure every way on")
    add("--threads", type=int, help="torch's; by default what torch chooses")
    add("--repetitions", type=int, default=7)
    add(
        "--patience", type=float, default=20,
        help="seconds that a way may take over its repetitions in one case; slower ones get fewer",
    )  # fmt: skip
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--no-peers", action="store_true", help="forkpoint and the floors alone")
    chosen.add_argument("--only", nargs="+", choices=list(WAYS), metavar="NAME", help=", ".join(WAYS))
    add("--verdict", action="store_true", help="also time the verdict, and the start of the command")
    add("--verdict-alone", action="store_true", help="time one verdict, print it and stop")
    add("--scaling", action="store_true", help="also the ratio over the length of the prompt and over layers")
    add("--scaling-repetitions", type=int, default=5, metavar="N")
    add("--scaling-tokens", type=int, nargs="*", default=TOKENS, metavar="N")
    add("--scaling-layers", type=int, nargs="*", default=LAYERS, metavar="N")
    add("--remark", help="what is to be said of this machine, next to its figures")
    add("--seconds", type=float, help="begin no new case after this time")
    add("--json", type=Path, metavar="FILE", help="where to write the figures")
    add("--out", type=Path, metavar="FOLDER", help="the same, in a file named after model and device")
    return parser.parse_args()


def names_of(given: argparse.Namespace) -> list[str]:
    if given.only:
        return list(dict.fromkeys(("plain", *given.only)))
    return [name for name, way in WAYS.items() if not (given.no_peers and way.peer)]


def load(given: argparse.Namespace) -> cases.Subject:
    device = given.device
    if given.model == "smollm2":
        return cases.smollm2(device or "cpu", given.dtype or "float32")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return cases.llama7b(device, given.dtype or "bfloat16", given.layers, given.hidden)


def same_model(given: argparse.Namespace) -> list[str]:
    """The arguments of Python that time one verdict on the same model in a process of its own."""
    names = ("model", "layers", "hidden", "device", "dtype", "threads")
    chosen = {name: getattr(given, name) for name in names}
    pairs = [[f"--{name}", str(value)] for name, value in chosen.items() if value is not None]
    return [__file__, "--verdict-alone", *itertools.chain.from_iterable(pairs)]


def file_name(report: Json) -> str:
    """A file for a model on a device; on a CPU the number of threads counts too.

    >>> file_name({"model": {"name": "SmolLM2"}, "machine": {"device": "NVIDIA H100", "threads": 2, "kind": "cuda"}})
    'tracing-smollm2-nvidia-h100.json'
    """
    on = report["machine"]
    parts = [report["model"]["name"], on["device"], *([f"{on['threads']} threads"] * (on["kind"] == "cpu"))]
    return (
        "-".join(["tracing", *re.findall(r"[a-z0-9.]+", " ".join(parts).lower().replace("'s ", " "))])
        + ".json"
    )


def head(subject: cases.Subject, remark: str | None) -> Json:
    """A report of nothing yet."""
    report: Json = {
        "format": FORMAT,
        "date": datetime.now(tz=UTC).date().isoformat(),
        "machine": describe(subject.device),
        "model": {
            "name": subject.name, "layers": subject.layers, "hidden": subject.model.config.hidden_size,
            "dtype": str(subject.model.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in subject.model.parameters()),
        },
        "copy_bytes_per_second": None, "cases": [], "left_out": [],
    }  # fmt: skip
    return report | ({"remark": remark} if remark else {})


def main() -> None:
    given = arguments()
    begin = time.monotonic()
    if given.threads:
        torch.set_num_threads(given.threads)
    subject = load(given)
    if given.verdict_alone:
        print(json.dumps(waits.alone(subject)))
    else:
        measure_all(given, subject, begin)


def measure_all(given: argparse.Namespace, subject: cases.Subject, begin: float) -> None:
    """Measure all that is asked for, and write it down after each case."""
    report = head(subject, given.remark)
    print(json.dumps(report["machine"] | report["model"]))

    def keep() -> None:
        for path in (given.json, given.out and given.out / file_name(report)):
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def in_time(what: str) -> bool:
        late = given.seconds is not None and time.monotonic() - begin > given.seconds
        if late:
            report["left_out"].append(what)
            print(f"\nno time for {what}")
        return not late

    if given.verdict:  # before anything else has loaded libraries or compiled kernels
        times = min(given.repetitions, WAITS)
        report |= waits.all_of(subject, given.tokens, times, same_model(given))
        keep()
    report["copy_bytes_per_second"] = bandwidth = copy_speed(subject.device)

    def one(tokens: int, names: Iterable[str], repetitions: int, least: int) -> Json:
        pair = cases.pair(subject.model, tokens)
        case = compare_ways(pair, names, repetitions, least, given.patience, bandwidth)
        say(case)
        return case

    names = names_of(given)
    for tokens in given.tokens:
        if in_time(f"{tokens} tokens"):
            report["cases"].append(one(tokens, names, given.repetitions, given.repetitions))
            keep()
    if given.scaling:
        few = names if given.only else [name for name in OURS if name in names]
        report["scaling"] = scaling = {"layers": [], "tokens": []}
        for layers in [n for n in given.scaling_layers if n <= subject.layers]:
            if in_time(f"{layers} layers"):
                with cases.cut_to(subject.model, layers):
                    scaling["layers"].append(one(LAYERS_TOKENS, few, given.scaling_repetitions, LEAST))
                keep()
        for tokens in given.scaling_tokens:
            if in_time(f"{tokens} tokens of scaling"):
                scaling["tokens"].append(one(tokens, few, given.scaling_repetitions, LEAST))
                keep()
    report["seconds"] = round(time.monotonic() - begin, 1)
    keep()
    print(f"\n{report['seconds']} s in all")


if __name__ == "__main__":
    main()
