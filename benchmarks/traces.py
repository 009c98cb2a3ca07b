"""What it takes to compare long traces: `python benchmarks/traces.py --rows 10000000`.

Two traces are made up and compared in a process of its own, whose time and largest memory are what is printed. `steps` is
what generating leaves: many short generations, each step of which runs every op for one token and reads what the earlier
steps have left; about half of the rows hold digests of their own, the others are views or the values of rows before them.
`prompt` is a single call with as many digests as there are to be rows. The traces are equal up to the middle, and differ
from there on.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.sites import Site
from forkpoint.capture.trace import Cells, Form, Op
from forkpoint.runs.layout import MAIN, Coordinates, Layout
from forkpoint.traces import compare_traces
from forkpoint.traces.schema import INTS, TABLES
from forkpoint.traces.writing import Writer

OPS, LAYERS, STEPS = 2000, 50, 100
"""Ops of the model, its layers, and the calls of one generation."""
KINDS = ("one",) * 9 + ("alias",) * 5 + ("view",) * 4 + ("pair", "past")
"""What the ops of a layer leave, one after the other: a digest of the step's token, nothing of their own, or a digest for
each token so far."""


def ops() -> list[Op]:
    each = OPS // LAYERS
    return [
        Op(f"model.layers.{i // each}.mlp", "mul", Site("made.py", i % each + 1, 4, f"made.py:{i % each + 1}:4", 1))
        for i in range(OPS)
    ]  # fmt: skip


def make(folder: Path, rows: int, shape: str, differs: bool, seed: int = 0) -> None:
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
    for op in ops():
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
        if differs and call >= calls // 2:
            logits = logits + 1e-6
        _rows(writer, numbers, call, own, past, generator, changed_from=_changed(call, calls, differs))
        entry = entries[call][MAIN]
        writer.call(call, {
            "input.input_ids": ids[call], f"layout.{MAIN}.sample": entry.sample,
            f"layout.{MAIN}.position": entry.position, f"layout.{MAIN}.ids": torch.from_numpy(numbers[grid]),
            "result.logits": logits, "label.logits.q": torch.from_numpy(numbers[grid])[..., None],
        }, about)  # fmt: skip
    writer.manifest["calls"] = calls
    writer.close(complete=True)


def _changed(call: int, calls: int, differs: bool) -> int:
    """The first op of a call whose digests are other ones."""
    if not differs or call < calls // 2:
        return OPS
    return OPS // 2 if call == calls // 2 else 0


def _rows(
    writer: Writer,
    numbers: np.ndarray,
    call: int,
    own: np.ndarray,
    past: np.ndarray,
    generator: Any,
    changed_from: int,
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
    if changed_from < OPS:
        digests[(ends - size)[changed_from] :] += 1
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


def compare(folder: Path) -> dict[str, Any]:
    """Compare what `make` has made."""
    start = time.perf_counter()
    result = compare_traces(folder / "a", folder / "b")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert result.first is not None
    return {
        "seconds": round(seconds, 1), "cpu_seconds": round(time.process_time(), 1), "peak_bytes": peak, "first": result.first.op,
        "compared": sum(row.compared for row in result.ops), "differing": sum(row.differing for row in result.ops),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shape", choices=("steps", "prompt"), nargs="*", default=["steps", "prompt"])
    parser.add_argument("--compare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where to make the traces, which then stay")
    options = parser.parse_args()
    if options.compare:
        print(json.dumps(compare(options.compare)))
        return
    for shape in options.shape:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(options.folder or temporary) / shape
            for name, differs in (("a", False), ("b", True)):
                if not (folder / name).exists():
                    make(folder / name, options.rows, shape, differs)
            command = [sys.executable, __file__, "--compare", str(folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            print(shape, f"{options.rows:,} rows:", done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
