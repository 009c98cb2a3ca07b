"""`python -m tests.traces.versions`: the same tiny models in the oldest transformers that is supported and in the newest.

Each version lies in a folder of its own, put before what is installed. Both record the same models, whose weights the old
one has saved; the traces are compared; then one element of one op in the middle is moved by one ULP in the new version,
which has to be found there. The exit status is 1 if an op is neither matched nor listed with a reason, if a fault is not
found at its op, or if a divergence lacks a line of either version.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from tests.architectures import ARCHITECTURES, prompt
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import forkpoint as fp
from forkpoint.traces.reading import read

ROOT = Path(__file__).parents[2]
NAMES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "opt", "bert", "mixtral", "t5", "gptj", "mamba2",
)  # fmt: skip
FAULTY = (
    "linear",
    "matmul",
    "mul",
    "add",
    "softmax",
    "layer_norm",
    "rsqrt",
    "silu",
    "gelu",
    "relu",
    "cat",
    "pow",
    "bmm",
)
"""Functions one of whose values may be moved by one ULP."""
SHOWN = 8
"""Lines that read otherwise, of each model, in the file of results."""


def record_all(folder: Path, weights: Path, cases: list[dict[str, Any]]) -> None:
    """In one version: record models, each with the fault that the case asks for."""
    import transformers

    (folder / "version.txt").write_text(transformers.__version__)
    for case in cases:
        architecture = ARCHITECTURES[case["name"]]
        of: Any = architecture.model_class
        saved = weights / case["name"]
        if not saved.exists():
            built: Any = architecture.build()
            built.save_pretrained(saved)
        model = of.from_pretrained(
            saved,
            config=architecture.make_config(),
            dtype=torch.float32,
            attn_implementation=case["attention"],
        ).eval()
        inputs = architecture.inputs([prompt(7), prompt(5, seed=1)], pad_to=9)
        with (
            torch.no_grad(),
            planted(case.get("fault")),
            fp.record(folder / f"{case['name']}-{case['attention']}"),
        ):
            model(**inputs)


class Fault(TorchFunctionMode):
    """Moves the first element of one value by one ULP: the n-th that a function makes at a place."""

    def __init__(self, function: str, source: str, nth: int) -> None:
        super().__init__()
        self.function, self.source, self.left = function, source, nth

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.left < 0 or getattr(func, "__name__", "").strip("_") != self.function or not self._is_here():
            return found
        self.left -= 1
        return tree_map(_moved, found) if self.left < 0 else found

    def _is_here(self) -> bool:
        frame = sys._getframe(1)
        while frame is not None:
            if f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" == self.source:
                return True
            frame = frame.f_back
        return False


def _moved(value: Any) -> Any:
    moved = value.clone()
    first = (0,) * moved.dim()
    moved[first] = torch.nextafter(moved[first], torch.tensor(torch.inf))
    return moved


@contextmanager
def planted(fault: dict[str, Any] | None) -> Generator[None]:
    """Outside of what records, so that the op has the value with the fault."""
    if fault is None:
        yield
        return
    with Fault(**fault) as mode:
        yield
    if mode.left >= 0:
        raise RuntimeError(f"the fault was not planted: {fault}")


# ---------------------------------------------------------------------- what is found


def place_of_fault(result: fp.Result) -> tuple[fp.result.OpRow, dict[str, Any]] | None:
    """The op in the middle of those before the first divergence, and how to find it in the new version."""
    often = Counter((row.module, row.function, row.source_b or row.source) for row in result.ops)
    before: list[tuple[fp.result.OpRow, dict[str, Any]]] = []
    seen: Counter[tuple[str, str]] = Counter()
    for row in result.ops:
        source = row.source_b or row.source
        function = (row.op_b or row.op).rpartition("/")[2]
        if row.status == "differs":
            break
        if row.status == "only in a" or not source:
            continue
        nth = seen[function, source]
        seen[function, source] += 1
        usable = row.status == "equal" and row.floating and row.function in FAULTY and row.passes == 1
        if usable and often[row.module, row.function, source] == 1:
            before.append((row, {"function": function, "source": source, "nth": nth}))
    return before[len(before) // 2] if before else None


def told(a: Path, b: Path) -> tuple[fp.Result, dict[str, Any], list[str]]:
    """The comparison, what the file of results has of it, and what is wrong."""
    result = fp.compare_traces(a, b)
    wrong: list[str] = []
    alone = (*result.unmatched_a, *result.unmatched_b)
    for folder, other in ((a, "only in b"), (b, "only in a")):
        ops = {op.key for op in read(folder, "A").trace.ops}
        rows = sum(row.status != other for row in result.ops)
        if len(ops) != rows:
            wrong.append(f"{len(ops)} ops in {folder.parent.name}, of which {rows} are matched or listed")
    wrong += [f"{row.op} is listed without a reason" for row in alone if not row.reason]
    first = result.first
    if (
        first is not None
        and not result.identical
        and first.function
        and not ((first.code and first.code_b) or first.matched == "place")
    ):
        wrong.append(f"{first.op} differs without a line of both versions")
    changed = {
        (row.source, row.code, row.source_b, row.code_b): row.matched
        for row in result.ops
        if row.code_b and row.code != row.code_b
    }
    keys = ("op", "source", "code", "op_b", "source_b", "code_b", "matched")
    found = {
        "verdict": result.verdict.kind.value,
        "largest_gap": result.impact.max_abs if result.impact is not None else None,
        "ops": len(result.ops),
        "statuses": dict(Counter(row.status for row in result.ops)),
        "matched": dict(Counter(row.matched for row in result.ops if row.matched)),
        "alone": {f"{status}: {reason}": n for (status, reason), n in _reasons(alone).items()},
        "first": None if first is None else {key: getattr(first, key) for key in keys},
        "changed_lines": len(changed),
        "changed": [[*pair, how] for pair, how in list(changed.items())[:SHOWN]],
    }
    return result, found, wrong


def _reasons(rows: tuple[fp.result.OpRow, ...]) -> Counter[tuple[str, str]]:
    """Why ops are in one run alone, without the names of others."""
    return Counter((row.status, re.sub(r"(the same value) from .*", r"\1", row.reason)) for row in rows)


def board(old: Path, new: Path, names: list[str], work: Path) -> tuple[dict[str, Any], int]:
    """All models in both versions; what is known of them, and how many have something wrong."""
    cases = [{"name": n, "attention": attention} for n in names for attention in ARCHITECTURES[n].attentions]
    for version, folder in (("old", old), ("new", new)):
        _recorded(folder, work / version, work / "weights", cases)
    found: dict[str, Any] = {}
    faults: list[dict[str, Any]] = []
    wrong: dict[str, list[str]] = {}
    planned: dict[str, fp.result.OpRow] = {}
    for case in cases:
        key = f"{case['name']}-{case['attention']}"
        result, found[key], wrong[key] = told(work / "old" / key, work / "new" / key)
        place = place_of_fault(result)
        if place is None:
            wrong[key].append("no op to plant a fault in")
            continue
        planned[key], fault = place
        faults.append({**case, "fault": fault})
    _recorded(new, work / "faulty", work / "weights", faults)
    for key, row in planned.items():
        first = fp.compare_traces(work / "old" / key, work / "faulty" / key).first
        at = first is not None and (first.op, first.source_b) == (row.op, row.source_b)
        found[key]["fault"] = {
            "op": row.op,
            "source_b": row.source_b or row.source,
            "matched": row.matched,
            "found": at,
        }
        if not at:
            wrong[key].append(
                f"a fault of one ULP at {row.op} ({row.source}) is found at {first and first.op}"
            )
    for key, about in found.items():
        about["wrong"] = wrong[key]
        print(key, _line(about), *wrong[key], sep="\n    ", flush=True)
    versions = {side: (work / side / "version.txt").read_text() for side in ("old", "new")}
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": fp_device(),
        "torch": torch.__version__,
        **versions,
    }
    return {**about, "models": found}, sum(map(bool, wrong.values()))


def fp_device() -> str:
    """The processor, as the file of results names it."""
    names = (
        re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return f"{names[0] if names else 'unknown processor'}, {torch.get_num_threads()} thread"


def _line(found: dict[str, Any]) -> str:
    how = ", ".join(f"{n} by {way}" for way, n in found["matched"].items())
    statuses = found["statuses"]
    alone = (
        f"{statuses.get('only in a', 0)} in the old alone, {statuses.get('only in b', 0)} in the new alone"
    )
    first, fault = found["first"], found.get("fault")
    text = f"{found['verdict']}: {found['ops']} ops, {how}; {alone}; {found['changed_lines']} lines read otherwise"
    if first is not None:
        text += f"\n    A {first['source']}: {first['code']}\n    B {first['source_b']}: {first['code_b']}"
    if fault is not None:
        text += f"\n    one ULP at {fault['op']} (by {fault['matched']}): {'found' if fault['found'] else 'NOT FOUND'}"
    return text


def table(found: dict[str, Any]) -> str:
    """The results as docs/versions.md shows them."""
    ways = ("place", "text", "function", "structure", "value")
    lines = [
        f"| model, attention | verdict | ops | {' | '.join(f'`{way}`' for way in ways)} | old alone | new alone | lines | one ULP |",
        f"| --- | --- |{' ---: |' * (len(ways) + 4)} --- |",
    ]
    for key, about in found["models"].items():
        statuses, matched = about["statuses"], about["matched"]
        numbers = [
            about["ops"], *(matched.get(way, 0) for way in ways), statuses.get("only in a", 0), statuses.get("only in b", 0),
            about["changed_lines"],
        ]  # fmt: skip
        fault = f"found at `{about['fault']['op']}`" if about["fault"]["found"] else "not found"
        lines.append(
            f"| {key.replace('-', ', ')} | {about['verdict']} | {' | '.join(map(str, numbers))} | {fault} |"
        )
    return "\n".join(lines) + "\n"


def _recorded(version: Path, folder: Path, weights: Path, cases: list[dict[str, Any]]) -> None:
    """Record in a process of its own, with that version first on the path.

    Gemma 3 makes a rotary table for each of a *set* of kinds of layers, so that their order is that of hashes.
    """
    folder.mkdir(parents=True)
    path = os.pathsep.join([str(version), str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.traces.versions",
        "--record",
        str(folder),
        "--weights",
        str(weights),
    ]
    subprocess.run(
        [*command, "--cases", json.dumps(cases)],
        check=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        cwd=ROOT,
    )


def installed(folder: Path, requirement: str) -> Path:
    """A version of transformers in a folder of its own."""
    if not (folder / "transformers").exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(folder),
            requirement,
        ]
        subprocess.run(pip, check=True)
    return folder


def oldest() -> str:
    """The oldest version that pyproject.toml allows."""
    found = re.search(r'"transformers>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def main(arguments: list[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="models of tests.architectures")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".venv" / "versions", help="where versions are installed"
    )
    parser.add_argument("--old", type=Path, help="a folder with a version of transformers")
    parser.add_argument("--new", type=Path, help="a folder with another")
    parser.add_argument("--out", type=Path, help="the file of results")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cases", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.record:
        record_all(options.record, options.weights, options.cases)
        return 0
    old = options.old or installed(options.folder / "old", f"transformers=={oldest()}")
    new = options.new or installed(options.folder / "new", "transformers")
    with tempfile.TemporaryDirectory() as work:
        found, wrong = board(old, new, options.names or list(NAMES), Path(work))
    print(
        f"{found['old']} against {found['new']}: {len(found['models'])} models, {wrong} with something wrong"
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
