"""Seconds and memory of several ways to do one thing, taken in turn, so that a busy moment hits them alike."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from results import Json

SHIFT = 3
"""Repetition k begins k * SHIFT ways further on, so that nobody always comes after the same one."""


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    gc.collect()
    synchronise(device)
    start = time.perf_counter()
    kept = call()
    synchronise(device)
    seconds = time.perf_counter() - start
    del kept
    return seconds


def peak_of(call: Callable[[], object], device: torch.device) -> int | None:
    """The most bytes that a call holds at once, over what was held before it; None where that can't be told.

    On a CUDA device it is what torch's allocator handed out, elsewhere the process's resident memory, whose
    high-water mark Linux can reset.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _trim()
    reset = _reset_high_water()
    before_rss = _resident("VmRSS") if reset else None
    call()
    return None if before_rss is None else max(_resident("VmHWM") - before_rss, 0)


def _trim() -> None:
    """Give freed memory back first: what is taken again later would not show."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def affordable(seconds: float, wanted: int, patience: float, least: int = 1) -> int:
    """How many repetitions a way of so many seconds gets: all that are wanted, or what patience allows."""
    return max(min(wanted, math.floor(patience / max(seconds, 1e-9))), min(least, wanted))


def in_turn(
    ways: Mapping[str, Callable[[], float]], repetitions: Mapping[str, int]
) -> tuple[dict[str, dict[int, float]], dict[str, str]]:
    """What each way gives in each repetition; those that are due in a repetition follow one another.

    Args:
        ways: each measures itself once.
        repetitions: how often each is due; a way that is due less often than others is spread over them.

    Returns:
        For each way, what it gave, by repetition; for those that failed, how: they get no further turn.
    """
    taken: dict[str, dict[int, float]] = {name: {} for name in ways}
    failures: dict[str, str] = {}
    most = max(repetitions.values(), default=0)
    for repetition in range(most):
        due = [
            name for name in ways if name not in failures and repetition in spread(repetitions[name], most)
        ]
        start = repetition * SHIFT % max(len(due), 1)
        for name in due[start:] + due[:start]:
            try:
                taken[name][repetition] = ways[name]()
            except Exception as error:  # noqa: BLE001 - one that fails is reported, and the rest goes on
                failures[name] = failure(error)
    return taken, failures


def failure(error: Exception) -> str:
    """An error in one line.

    >>> failure(ValueError("no such thing" + chr(10) + "and more"))
    'ValueError: no such thing'
    """
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def spread(count: int, most: int) -> list[int]:
    """So many of the first `most` integers, evenly apart."""
    return [index * most // count for index in range(count)]


def ratio(of: Mapping[int, float], to: Mapping[int, float]) -> Json:
    """The median of the ratios within each repetition, and the smallest and largest of them."""
    ratios = [of[repetition] / to[repetition] for repetition in of if repetition in to]
    return {
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "repetitions": len(ratios),
    }


def floor(n_bytes: int, bytes_per_second: float, plain: float) -> float:
    """The ratio to the plain pair if nothing came on top but moving those bytes at the speed of a copy."""
    return 1 + n_bytes / bytes_per_second / plain


def copy_speed(device: torch.device, n_bytes: int | None = None) -> float:
    """Bytes a second that a copy reads and writes together, at the median of some."""
    n_bytes = n_bytes or (1 << 30 if device.type == "cuda" else 1 << 28)
    x = torch.ones(n_bytes // 4, device=device)
    y = torch.empty_like(x)
    y.copy_(x)
    times: list[float] = []
    for _ in range(9):
        synchronise(device)
        start = time.perf_counter()
        y.copy_(x)
        synchronise(device)
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / statistics.median(times)
