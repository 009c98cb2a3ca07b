"""Reports of `benchmarks/tracing.py` with every kind of entry in them; their figures are made up."""

from __future__ import annotations

from typing import Any

from peers import WAYS

Json = dict[str, Any]


def way(name: str, ratio: float, repetitions: int = 7, extra: int | None = 0, **more: str) -> Json:
    return {
        "label": WAYS[name].label, "peak_bytes": extra, "extra_bytes": extra, "ratio": ratio,
        "ratio_least": ratio * 0.9, "ratio_most": ratio * 1.1, "repetitions": repetitions,
        "seconds": 0.0722 * ratio, **more,
    }  # fmt: skip


def case(tokens: int, layers: int, ways: Json) -> Json:
    found = {"tokens": tokens, "padded": tokens + 3, "layers": layers, "digested_bytes": 9_400_000_000}
    return found | {"digested_values": 4000, "floor_ratio": 1.0432, "ways": ways}


def peers() -> Json:
    small = case(
        509, 32,
        {
            "plain": way("plain", 1.0),
            "mode": way("mode", 1.27),
            "forkpoint": way("forkpoint", 1.412, extra=221_000_000),
            "debugmode": way("debugmode", 37.04, 3, 360_000_000),
            "torchlens": {"label": WAYS["torchlens"].label, "skipped": "torchlens is not installed"},
            "store": way("store", 1.96, extra=12_300_000_000),
            "loops": way("loops", 12345.6, 1, 0, note="1 of 33 hidden states"),
        },
    )  # fmt: skip
    failed = {"label": WAYS["store"].label, "failed": "OutOfMemoryError: CUDA out of memory. Tried to"}
    broken = {"label": WAYS["transformers"].label, "failed": "TypeError: no such argument: f"}
    large = case(
        4093, 32,
        {"plain": way("plain", 1.0), "forkpoint": way("forkpoint", 1.1, extra=None), "store": failed,
         "transformers": broken},
    )  # fmt: skip
    return _report("cuda") | {
        "cases": [small, large],
        "scaling": {
            "layers": [_scaled(512, layers, 1.5 - layers / 100) for layers in (2, 8, 32)],
            "tokens": [_scaled(tokens, 32, 1 + 64 / tokens) for tokens in (64, 512, 4096)],
        },
        "verdict": {
            "first": _verdict(9.97, 10.76),
            "second": _verdict(5.28, 5.97),
            "next_process": _verdict(6.1, 6.6),
        },
        "verdict_cost": [_cost(18, 50, 9.617), _cost(509, 512, 8.4)],
        "start_seconds": {"python": 0.021, "import forkpoint": 0.024, "forkpoint --help": 0.187},
    }


def alone() -> Json:
    """A CPU, and as little as a report can hold."""
    few = case(50, 30, {"plain": way("plain", 1.0, extra=None)}) | {"floor_ratio": None}
    return _report("cpu") | {"cases": [few], "copy_bytes_per_second": None, "remark": "It was busy."}


def _scaled(tokens: int, layers: int, ratio: float) -> Json:
    ways = {"plain": way("plain", 1.0, 3), "mode": way("mode", 1.05, 3), "forkpoint": way("forkpoint", ratio)}
    return case(tokens, layers, ways)


def _verdict(judged: float, saved: float) -> Json:
    found = {"kind": "rounding", "tokens": 18, "padded": 50}
    return found | {"verdict_seconds": judged, "scene_seconds": saved}


def _cost(tokens: int, padded: int, passes: float) -> Json:
    return {
        "tokens": tokens, "padded": padded, "passes": 7, "float64_passes": 2, "plain_seconds": 0.14,
        "float64_seconds": 0.557, "other_seconds": 1.338, "forward_passes": passes, "repetitions": 7,
    }  # fmt: skip


def _report(kind: str) -> Json:
    return {
        "format": 1,
        "date": "2026-01-31",
        "machine": {"device": f"a {kind} device", "kind": kind, "threads": 2, "versions": {"torch": "2.11"}},
        "model": {"name": "Llama-2-7B's shape", "layers": 32, "hidden": 4096, "dtype": "bfloat16"},
        "copy_bytes_per_second": 2.93e12,
        "left_out": [],
    }
