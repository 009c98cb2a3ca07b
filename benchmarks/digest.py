"""Digests: are they right on this machine, and how fast are they?

    PYTHONPATH=src python benchmarks/digest.py                 # the GPU if there is one, else the CPU
    PYTHONPATH=src python benchmarks/digest.py --device cpu --seconds 20

Checks every implementation against the definition on fresh random inputs (all dtypes, many layouts), then
times batches of tensors as models have them, against what the device needs to copy as many bytes. Progress goes
to stderr, one JSON document to stdout. A case that fails is reported with its error, and the rest goes on.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture import digest
from forkpoint.capture.digest import backend, definition, torch_impl

Json = dict[str, Any]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
OTHERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool, torch.complex64]


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)


def attempt(what: str, function: Callable[[], Any]) -> Any:
    """A result, or a word on what went wrong."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001  a benchmark on a foreign machine says all that it can
        say(f"FAILED {what}: {type(error).__name__}: {error}")
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-3000:]}


# --- Are they right? ----------------------------------------------------------------------------------


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Any bits, with the zeros, infinities and NaNs of the dtype among them."""
    if dtype is torch.bool:
        return torch.rand(shape, device=device) < 0.5
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, device=device)
    x = raw.view(dtype).reshape(shape)
    if dtype in FLOATS:
        special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1.0], device=device).to(dtype)
        chosen = special.view(-1)[torch.randint(0, 6, shape, device=device)] if dtype.itemsize > 1 else None
        if chosen is not None:
            x = torch.where(torch.rand(shape, device=device) < 0.2, chosen, x)
    return x


def layouts(x: Tensor) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Views of a tensor [B, heads, T, width] with the dimensions of their rows."""
    yield "contiguous", x, (0, 1, 2)
    yield "rows over heads", x, (0, 2)
    yield "transposed", x.transpose(1, 2), (0, 1)
    yield "grouped heads", x.unflatten(1, (-1, 2)), (0, 3)
    yield "expanded", x[:, :1].expand(-1, 3, -1, -1), (0, 2)
    yield "odd start", x[:, :, 1:, 1:], (0, 2)
    yield "every second", x[..., ::2], (0, 2)
    yield "channels first", x.flatten(0, 1).transpose(1, 2), (0, 2)
    yield "one row", x, ()
    yield "single elements", x[:, :, :, :8], (0, 1, 2, 3)
    yield "nothing", x[:, :0], (0, 2)


def compare(found: Tensor, expected: Tensor | list[int]) -> str | None:
    """What differs, if anything."""
    wanted = expected if isinstance(expected, Tensor) else torch.tensor(expected, dtype=torch.int64)
    found, wanted = found.cpu(), wanted.cpu()
    if found.shape != wanted.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(wanted.shape)}"
    wrong = (found != wanted).nonzero().flatten().tolist()
    if wrong:
        first = wrong[0]
        return (
            f"{len(wrong)} of {len(wanted)} digests wrong, first at {first}: "
            f"{int(found[first]):#x}, expected {int(wanted[first]):#x}"
        )
    return None


def check_one(implementation: Any, x: Tensor, dims: tuple[int, ...], *, slow: bool) -> str | None:
    """Against the definition where that ends within the day, else against the plain implementation."""
    judge: Any = definition if slow else torch_impl
    n_rows = int(np.prod([x.shape[dim] for dim in dims], dtype=np.int64))
    first = torch.arange(n_rows, dtype=torch.int32, device=x.device) * 1000 - 5000
    keys = torch.arange(x.shape[dims[-1]], dtype=torch.int32, device=x.device) if dims else None
    y = x.cpu() if slow else x
    reasons = [
        compare(implementation.rows(x, dims), judge.rows(y, dims)),
        compare(implementation.rows(x, dims, first), judge.rows(y, dims, first)),
        compare(implementation.grid(x, dims), judge.grid(y, dims)),
        compare(implementation.grid(x, dims, keys), judge.grid(y, dims, keys)),
    ]
    names = ("rows", "rows with first words", "grid", "grid with keys")
    return (
        "; ".join(f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True) if reason) or None
    )


def check_all(device: torch.device, seconds: float) -> Json:
    """The cases tried, and those that came out wrong."""
    fast = backend.table_implementation(device)
    chosen = [torch_impl, *([fast] if fast else [])]
    wrong: list[str] = []
    tried, begin = 0, time.monotonic()
    for size, slow in (((1, 4, 5, 16), True), ((2, 8, 67, 64), False), ((1, 4, 300, 1032), False)):
        for dtype in FLOATS + OTHERS:
            x = random_bits(size, dtype, device)
            for layout, view, dims in layouts(x):
                if time.monotonic() - begin > seconds:
                    return {"tried": tried, "wrong": wrong, "stopped": "time was up"}
                for implementation in chosen:
                    name = f"{implementation.__name__.rsplit('.', 1)[-1]}, {dtype}, {size}, {layout}"
                    reason = attempt(name, lambda: check_one(implementation, view, dims, slow=slow))  # noqa: B023
                    tried += 1
                    if reason:
                        text = reason if isinstance(reason, str) else reason["error"]
                        wrong.append(f"{name}: {text}")
    long = random_bits((3, 300_000), torch.float32, device)
    for implementation in chosen:
        rows = implementation.rows
        reason = attempt("long rows", lambda: compare(rows(long, (0,)), torch_impl.rows(long, (0,))))  # noqa: B023
        tried += 1
        if reason:
            wrong.append(f"{implementation.__name__}, long rows: {reason}")
    reason = attempt("batch", lambda: check_batch(device))
    if reason:
        wrong.append(f"batch: {reason}")
    return {"tried": tried + 1, "wrong": wrong}


def check_batch(device: torch.device) -> str | None:
    """One batch of everything."""
    batch, expected = digest.DigestBatch(), []
    for dtype in FLOATS + OTHERS:
        for _, view, dims in layouts(random_bits((1, 8, 37, 64), dtype, device)):
            batch.add(view, dims)
            expected.append(torch_impl.rows(view, dims))
    results = batch.results()
    reasons = [compare(torch.from_numpy(results[slot].copy()), rows) for slot, rows in enumerate(expected)]
    return next((f"slot {slot}: {reason}" for slot, reason in enumerate(reasons) if reason), None)


# --- How fast are they? -------------------------------------------------------------------------------


def seconds_of(function: Callable[[], Any], device: torch.device, repeats: int = 9) -> Json:
    """Median and minimum of the device's time, or of the clock on the CPU; the first call isn't counted."""
    function()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(device)
            start.record()
            function()
            end.record()
            torch.cuda.synchronize(device)
            times.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            function()
            times.append(time.perf_counter() - begin)
    return {"median": statistics.median(times), "min": min(times)}


def copy_speed(device: torch.device) -> Json:
    """GB/s that a copy reads and writes together; a digest only reads."""
    x = torch.empty((1 << 30 if device.type == "cuda" else 1 << 26) // 4, device=device).normal_()
    y = torch.empty_like(x)
    took = seconds_of(lambda: y.copy_(x), device)
    return {name: 2 * x.nbytes / value / 1e9 for name, value in took.items()}


def cases(device: torch.device) -> Iterator[tuple[str, Callable[[], list[Tensor]], tuple[int, ...]]]:
    """Tensors as models have them; on a CPU fewer and smaller ones."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32

    def many(count: int, *shape: int, kind: torch.dtype = dtype) -> Callable[[], list[Tensor]]:
        return lambda: [torch.randn(shape, device=device).to(kind) for _ in range(count)]

    if cuda:
        yield "hidden [1, 4093, 4096] bf16", many(40, 1, 4093, 4096), (0, 1)
        yield "heads [1, 32, 4093, 128] bf16", many(40, 1, 32, 4093, 128), (0, 2)
        yield "mlp [1, 4093, 11008] bf16", many(16, 1, 4093, 11008), (0, 1)
        yield "hidden [1, 4093, 4096] fp32", many(20, 1, 4093, 4096, kind=torch.float32), (0, 1)
        yield "hidden [1, 509, 4096] bf16", many(320, 1, 509, 4096), (0, 1)
        yield "hidden [1, 50, 4096] bf16", many(1000, 1, 50, 4096), (0, 1)
        yield "step [1, 1, 4096] bf16", many(2000, 1, 1, 4096), (0, 1)
        yield "one row of [8192, 8192] bf16", many(10, 8192, 8192), ()
        yield "odd width [1, 4093, 4095] fp32", many(20, 1, 4093, 4095, kind=torch.float32), (0, 1)
        yield "hidden [1, 4093, 2048] fp64", many(20, 1, 4093, 2048, kind=torch.float64), (0, 1)
    else:
        yield "hidden [1, 509, 576] fp32", many(60, 1, 509, 576), (0, 1)
        yield "heads [1, 9, 509, 64] fp32", many(60, 1, 9, 509, 64), (0, 2)
        yield "mlp [1, 509, 1536] fp32", many(30, 1, 509, 1536), (0, 1)
        yield "hidden [1, 509, 576] bf16", many(60, 1, 509, 576, kind=torch.bfloat16), (0, 1)
        yield "hidden [1, 509, 576] fp64", many(60, 1, 509, 576, kind=torch.float64), (0, 1)
        yield "hidden [1, 50, 576] fp32", many(500, 1, 50, 576), (0, 1)
        yield "step [1, 1, 576] fp32", many(2000, 1, 1, 576), (0, 1)


def filled(tensors: list[Tensor], dims: tuple[int, ...]) -> digest.DigestBatch:
    batch = digest.DigestBatch()
    for x in tensors:
        batch.add(x, dims)
    return batch


def time_case(
    make: Callable[[], list[Tensor]], dims: tuple[int, ...], device: torch.device, copy: float
) -> Json:
    """Speed of a whole flush, and what it costs the host."""
    tensors = make()
    n_bytes = sum(x.nbytes for x in tensors)
    batches = [filled(tensors, dims) for _ in range(10)]
    spare = iter(batches)
    took = seconds_of(lambda: next(spare).flush(), device)
    result: Json = {
        "tensors": len(tensors),
        "MB": n_bytes / 1e6,
        "GB/s": n_bytes / took["median"] / 1e9,
        "GB/s at best": n_bytes / took["min"] / 1e9,
        "share of a copy's traffic": n_bytes / took["median"] / 1e9 / copy,
    }
    begin = time.perf_counter()
    batch = filled(tensors, dims)
    added = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        flush_begin = time.perf_counter()
        batch.flush()
        result["flush, host µs"] = (time.perf_counter() - flush_begin) * 1e6
        result["extra MB"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    else:
        batch.flush()
    result["add, µs a tensor"] = (added - begin) / len(tensors) * 1e6
    begin = time.perf_counter()
    batch.results().values  # noqa: B018 - they arrive when somebody looks
    result["results, µs"] = (time.perf_counter() - begin) * 1e6
    return result


def sweep(make: Callable[[], list[Tensor]], dims: tuple[int, ...], device: torch.device) -> Json:
    """The kernel alone with other sizes of its blocks, in GB/s."""
    from forkpoint.capture.digest import triton_impl

    tensors = make()
    n_bytes = sum(x.nbytes for x in tensors)
    (queue,) = filled(tensors, dims)._queues.values()  # noqa: SLF001
    table = queue.table()
    speeds: Json = {}

    def measure(name: str, block: int, warps: int, repeat: int) -> None:
        run = functools.partial(triton_impl.digest_table, table, device, block, warps, repeat)
        took = attempt(f"sweep {name}", lambda: seconds_of(run, device, 5))
        speeds[name] = took if "error" in took else n_bytes / took["median"] / 1e9

    for block, warps, repeat in (
        (256, 1, 8), (512, 1, 4), (512, 1, 16), (512, 2, 8), (512, 4, 1), (512, 4, 8),
        (1024, 1, 8), (1024, 2, 8), (1024, 4, 1), (1024, 4, 4), (1024, 4, 16), (1024, 8, 8), (2048, 2, 8), (2048, 4, 8),
    ):  # fmt: skip
        measure(f"{block} words, {warps} warps, {repeat} times", block, warps, repeat)
    return speeds


def time_grid(device: torch.device) -> Json:
    """Attention weights of one layer, and their sum per query."""
    heads, tokens = (32, 2048) if device.type == "cuda" else (9, 509)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    weights = torch.rand(1, heads, tokens, tokens, device=device).to(dtype)
    keys = torch.arange(tokens, dtype=torch.int32, device=device)
    query = keys.repeat_interleave(tokens)
    grid = seconds_of(lambda: digest.grid(weights, (0, 2, 3), keys), device, 5)
    cells = digest.grid(weights, (0, 2, 3), keys)
    total = seconds_of(lambda: digest.accumulate(cells, query, tokens), device, 5)
    return {
        "MB": weights.nbytes / 1e6,
        "grid GB/s": weights.nbytes / grid["median"] / 1e9,
        "accumulate, million digests/s": len(cells) / total["median"] / 1e6,
    }


def machine(device: torch.device) -> Json:
    found: Json = {"device": str(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    for name in ("triton", "numba", "numpy"):
        found[name] = getattr(sys.modules.get(name), "__version__", None)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"name": properties.name, "multiprocessors": properties.multi_processor_count}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=100, help="begin no new case after this time")
    options = parser.parse_args()
    device = torch.device(options.device)
    begin = time.monotonic()

    warnings.simplefilter("always")
    started = time.perf_counter()
    fast = backend.table_implementation(device)
    if fast is not None and device.type == "cuda":
        fast.WORTHWHILE = 0  # type: ignore[attr-defined]  # the variants that long inputs come to use
    report: Json = {"implementation": fast.__name__ if fast else "torch_impl"}  # type: ignore[attr-defined]
    report["first digest, s"] = time.perf_counter() - started
    say(f"{report['implementation']} ready after {report['first digest, s']:.1f} s")
    report["machine"] = machine(device)
    report["checks"] = attempt("checks", lambda: check_all(device, options.seconds * 0.4))
    say("checks", json.dumps(report["checks"], indent=1)[:3000])
    report["copy GB/s, read and written"] = copy = copy_speed(device)
    say("copy", copy)

    report["speed"], report["sweep"] = {}, {}
    for name, make, dims in cases(device):
        if time.monotonic() - begin > options.seconds * 0.75:
            say(f"no time for {name}")
            continue
        report["speed"][name] = result = attempt(name, lambda: time_case(make, dims, device, copy["median"]))  # noqa: B023
        say(
            name,
            {key: round(value, 2) if isinstance(value, float) else value for key, value in result.items()},
        )
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report["grid"] = attempt("grid", lambda: time_grid(device))
    say("grid", report["grid"])
    for name, make, dims in cases(device):
        wanted = device.type == "cuda" and any(part in name for part in ("4096] bf16", "11008", "128]"))
        if not wanted or "step" in name or time.monotonic() - begin > options.seconds:
            continue
        report["sweep"][name] = attempt(name, lambda: sweep(make, dims, device))  # noqa: B023
        say("sweep", name, report["sweep"][name])
        gc.collect()
        torch.cuda.empty_cache()
    report["seconds"] = time.monotonic() - begin
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
