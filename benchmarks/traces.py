"""What it takes to compare long traces: `python benchmarks/traces.py --rows 10000000 --out benchmarks/results/traces-….json`.

Two traces are made up and compared in a process of its own, whose time and largest memory are what is printed. `steps` is
what generating leaves: many short generations, each step of which runs every op for one token and reads what the earlier
steps have left; about half of the rows hold digests of their own, the others are views or the values of rows before them.
`prompt` is a single call with as many digests as there are to be rows. The other trace is `equal`; differs from the middle on
(`half`) or in a tenth of its ops in every call (`scattered`); or is equal, and its lines have `moved`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.trace import Cells, Form, Op
from forkpoint.runs.layout import MAIN, Coordinates, Layout
from forkpoint.traces import compare_traces
from forkpoint.traces.reading import RecordedSite
from forkpoint.traces.schema import INTS, TABLES
from forkpoint.traces.writing import Writer
from machine import describe
from results import Json

OPS, LAYERS, STEPS = 2000, 50, 100
"""Ops of the model, its layers, and the calls of one generation."""
VARIANTS = ("equal", "half", "scattered", "moved")
MOVED = 7
"""Lines by which they have moved."""
KINDS = ("one",) * 9 + ("alias",) * 5 + ("view",) * 4 + ("pair", "past")
"""What the ops of a layer leave, one after the other: a digest of the step's token, nothing of their own, or a digest for
each token so far."""


def ops(moved: int) -> list[Op]:
    """The ops of the model, at lines that have moved so far."""
    each = OPS // LAYERS
    return [
        Op(f"model.layers.{i // each}.mlp", "mul", _site(i % each, moved))
        for i in range(OPS)
    ]  # fmt: skip


def _site(op: int, moved: int) -> RecordedSite:
    line = op + 1 + moved
    return RecordedSite("made.py", line, 4, f"made.py:{line}:4", 1, f"x{op + 1} = x{op} * {op}", f"x{op + 1}")


def make(folder: Path, rows: int, shape: str, variant: str, seed: int = 0) -> None:
    """Write a trace of so many rows."""
    steps = shape == "steps"
    calls = -(-rows // OPS) if steps else 1
    tokens = 1 if steps else -(-rows // OPS)
    ids = torch.arange(calls * tokens).reshape(calls, 1, tokens) % 97
    entries = []
    for call in range(calls):
        sample = torch.full((1, tokens), call // STEPS)
        position = torch.arange(tokens)[None] + call % STEPS
        entries.append({MAIN: Coordinates(sample, position)})
    table = CoordinateTable(Layout(entries))
    manifest = {
        "versions": {}, "settings": {}, "values": [], "command": [],
        "models": [{"class": "Made", "prefix": "", "configuration": {}, "dtype": "float32", "device": "cpu", "attention": None}],
    }  # fmt: skip
    writer = Writer(folder, manifest)
    numbers = writer.coordinates(table, 0)
    for op in ops(MOVED if variant == "moved" else 0):
        writer.op(op, 0)
    generator = np.random.default_rng(seed)
    for call in range(calls):
        grid = table.slots(call, MAIN)
        assert grid is not None
        own = grid.reshape(-1)
        before = [table.slots(c, MAIN) for c in range(call - call % STEPS, call + 1)]
        past = np.concatenate([g.reshape(-1) for g in before if g is not None])
        about = {
            "root": 0,
            "inputs": {},
            "results": ["logits"],
            "left_out": {},
            "rows": writer.rows,
            "lengths": [tokens],
        }
        logits = torch.from_numpy(generator.random((1, tokens, 4), dtype=np.float32))
        if variant == "scattered" or (variant == "half" and call >= calls // 2):
            logits = logits + 1e-6
        _rows(writer, numbers, call, own, past, generator, _changed(call, calls, variant))
        entry = entries[call][MAIN]
        writer.call(call, {
            "input.input_ids": ids[call], f"layout.{MAIN}.sample": entry.sample,
            f"layout.{MAIN}.position": entry.position, f"layout.{MAIN}.ids": torch.from_numpy(numbers[grid]),
            "result.logits": logits, "label.logits.q": torch.from_numpy(numbers[grid])[..., None],
        }, about)  # fmt: skip
    writer.manifest["calls"] = calls
    writer.close(complete=True)


def _changed(call: int, calls: int, variant: str) -> np.ndarray:
    """The ops of a call whose digests are other ones."""
    if variant == "scattered":
        return np.arange(5, OPS, 10)
    if variant != "half" or call < calls // 2:
        return np.arange(0)
    return np.arange(OPS // 2 if call == calls // 2 else 0, OPS)


def _rows(
    writer: Writer,
    numbers: np.ndarray,
    call: int,
    own: np.ndarray,
    past: np.ndarray,
    generator: Any,
    changed: np.ndarray,
) -> None:
    """The rows of one call, written as the writer would."""

    def form(status: str, kind: str, ids: np.ndarray, keys: np.ndarray | None = None) -> int:
        shape = (1, len(ids), 64)
        return writer.form(Form(status, shape, "float32", True, Cells(kind, ids, keys=keys), 64, ""), numbers)

    columns, nothing = len(own), np.zeros(0, dtype=np.int32)
    seen = np.zeros((columns, 4), dtype=np.int64)
    seen[:, 0] = np.arange(len(past) - columns, len(past)) + 1
    forms = {
        "one": form("digest", "rows", own), "alias": form("digest", "rows", own), "view": form("view", "rows", nothing),
        "pair": form("digest", "pair", own, seen), "past": form("digest", "rows", past),
    }  # fmt: skip
    lengths = {"one": columns, "alias": 0, "view": 0, "pair": 2 * columns, "past": len(past)}
    kinds = [
        KINDS[i % len(KINDS)] if columns == 1 or KINDS[i % len(KINDS)] != "past" else "one"
        for i in range(OPS)
    ]
    if columns > 1:
        kinds = ["one"] * OPS
    size = np.asarray([lengths[kind] for kind in kinds])
    digests = generator.integers(-(1 << 62), 1 << 62, int(size.sum()))
    ends = np.cumsum(size)
    moved = np.zeros(OPS, dtype=np.int64)
    moved[changed] = 1
    digests += np.repeat(moved, size)
    valid = size > 0
    arrays = [
        pa.array(np.arange(OPS, dtype=np.int32)), pa.array(np.full(OPS, call, dtype=np.int32)),
        pa.array(np.asarray([forms[kind] for kind in kinds], dtype=np.int32)),
        pa.array(np.asarray([1 + i % 2 if kind == "alias" else 0 for i, kind in enumerate(kinds)], dtype=np.int64)),
        pa.array([""] * OPS),
        pa.ListArray.from_arrays(pa.array(np.r_[0, ends].astype(np.int32)), pa.array(digests), mask=pa.array(~valid)),
        pa.nulls(OPS, INTS),
    ]  # fmt: skip
    writer.rows_at_once(pa.record_batch(arrays, schema=TABLES["rows"]))


def compare(a: Path, b: Path) -> Json:
    """Compare what `make` has made."""
    start = time.perf_counter()
    result = compare_traces(a, b)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "seconds": round(seconds, 1), "cpu_seconds": round(time.process_time(), 1), "peak_bytes": peak,
        "verdict": result.verdict.kind.value, "first": result.first and result.first.op,
        "compared": sum(row.compared for row in result.ops), "differing": sum(row.differing for row in result.ops),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shape", choices=("steps", "prompt"), nargs="*", default=["steps", "prompt"])
    parser.add_argument("--variant", choices=VARIANTS, nargs="*", default=VARIANTS)
    parser.add_argument("--compare", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to make the traces, which then stay")
    parser.add_argument("--out", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if options.compare:
        print(json.dumps(compare(*options.compare)))
        return
    cases: list[Json] = []
    with tempfile.TemporaryDirectory() as temporary:
        for shape in options.shape:
            folder = Path(options.folder or temporary) / shape
            for variant in options.variant:
                for name in ("equal", variant):
                    if not (folder / name).exists():
                        make(folder / name, options.rows, shape, name)
                command = [
                    sys.executable, __file__, "--compare", str(folder / "equal"), str(folder / variant),
                ]  # fmt: skip
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                cases.append(
                    {"shape": shape, "other": variant, "rows": options.rows, **json.loads(done.stdout)}
                )
                print(json.dumps(cases[-1]), flush=True)
                if not options.folder and variant != "equal":
                    shutil.rmtree(folder / variant)
    if options.out is not None:
        report = {
            "date": datetime.now(UTC).date().isoformat(), "machine": describe(torch.device("cpu")), "load": round(os.getloadavg()[0], 1), "cases": cases,
        }  # fmt: skip
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
