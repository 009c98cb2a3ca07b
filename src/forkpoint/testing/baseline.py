"""A baseline: a digest of every value of a run, in a small text file that a reviewer can read.

    # forkpoint baseline 1: a digest of every value of a run, in the order of execution.
    # made with torch 2.13.0+cpu, blas mkl; Linux x86_64; AMD EPYC (AVX512); 1 thread

    (model)
      input:input_ids        int64    [1, 3]      5f0e66a1c2b4d893
    model.layers.0.mlp.gate_proj
      linear                 float32  [1, 3, 48]  07c1be1a54bfa920

Where a digest is another, so are the bits: the first such line names the op. How large the difference is, and why it is
there, no digest tells; that takes both runs, and `fp.compare`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from forkpoint.errors import InputError
from forkpoint.explain.session import trace_faithfully
from forkpoint.scene.format.machine import machine
from forkpoint.support.restoring import alone, by_itself, restored

if TYPE_CHECKING:
    from forkpoint.capture.trace import Event, Op, Trace
    from forkpoint.runs.run import Run

VERSION = 1
"""Of the format."""
_HEAD = f"# forkpoint baseline {VERSION}: a digest of every value of a run, in the order of execution."
_SETUP = "# made with "
_LINE = re.compile(r"  (\S+) +(\S+) +(\[[0-9, ]*\])(?: ×(\d+))? +([0-9a-f]{16})")
_ROOT = "(model)"


@dataclass(frozen=True)
class Value:
    """What one op gave, in all its passes."""

    module: str
    """Path of the module; empty for the root."""
    name: str
    """The function, `input:NAME` or `output`."""
    dtype: str
    shape: tuple[int, ...]
    """Of its first pass."""
    passes: int
    digest: str
    """16 hexadecimal digits, over shapes, dtypes and values."""
    source: str = field(default="", compare=False)
    """`file.py:line`; not in the file, since it changes with every line above it."""

    @property
    def op(self) -> str:
        return f"{self.module or _ROOT}/{self.name}"


@dataclass(frozen=True)
class Baseline:
    """A run's values, in the order of execution, and where it was made."""

    values: tuple[Value, ...]
    setup: str

    def to_text(self) -> str:
        """The file's text: a line for each value, below its module."""
        lines = [_HEAD, _SETUP + self.setup]
        columns = [[value.name, value.dtype, _shape(value)] for value in self.values]
        widths = [max(map(len, column)) for column in zip(*columns, strict=True)]
        module: str | None = None
        for value, cells in zip(self.values, columns, strict=True):
            if value.module != module:
                lines += [*([""] if module is None else []), value.module or _ROOT]
                module = value.module
            padded = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
            lines.append(f"  {padded}  {value.digest}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Baseline:
        """What `to_text` wrote.

        Raises:
            ValueError: it is something else, or of another version.
        """
        head, setup, *lines = *text.splitlines(), "", ""
        if head != _HEAD or not setup.startswith(_SETUP):
            raise ValueError(f"it does not begin as a baseline of version {VERSION}")
        module, values = "", list[Value]()
        for line in filter(None, lines):
            match = _LINE.fullmatch(line)
            if match is not None:
                name, dtype, shape, passes, digest = match.groups()
                sizes = tuple(map(int, re.findall(r"\d+", shape)))
                values.append(Value(module, name, dtype, sizes, int(passes or 1), digest))
            elif not line[0].isspace():
                module = line.removeprefix(_ROOT)
            else:
                raise ValueError(f"a line that is no value: {line.strip()[:80]!r}")
        return cls(tuple(values), setup.removeprefix(_SETUP))


def _shape(value: Value) -> str:
    times = f" ×{value.passes}" if value.passes > 1 else ""
    return f"{list(value.shape)}{times}"


# ---------------------------------------------------------------------- making one


@alone
@restored
@by_itself
def record(run: Run) -> Baseline:
    """Run a model, and take the digest of every value.

    Raises:
        CaptureError: the run could not be traced.
        InputError: it does not repeat itself bit for bit, so that no later one could be the same.
    """
    traced = trace_faithfully(run)
    if not traced.repeats:
        raise InputError(
            "a run that does not repeat itself bit for bit can have no baseline", "one that does"
        )
    return Baseline(tuple(_values(traced.trace)), _here(run))


def _values(trace: Trace) -> Iterable[Value]:
    digests: dict[Op, hashlib.blake2b] = {}
    first: dict[Op, Event] = {}
    passes: dict[Op, int] = {}
    ops = trace.ops
    for index, event in enumerate(trace.events):
        if event.status != "digest":
            continue
        held, op = trace.held(index), ops[event.op]
        assert held.digests is not None
        first.setdefault(op, event)
        passes[op] = passes.get(op, 0) + 1
        digest = digests.setdefault(op, hashlib.blake2b(digest_size=8))
        digest.update(f"{event.call} {event.dtype} {event.shape}".encode())
        digest.update(held.digests.tobytes())
    for op, event in first.items():
        yield Value(
            op.module, op.function + (f"[{op.output}]" if op.output else ""), event.dtype, event.shape, passes[op],
            digests[op].hexdigest(), "" if op.is_boundary else op.site.short,
        )  # fmt: skip


def _here(run: Run) -> str:
    devices = sorted(run.devices, key=str) or [torch.device("cpu")]
    places = [machine(device) for device in devices]
    libraries = ", ".join(
        f"{name} {number}" for name, number in places[0].libraries.items() if name != "python"
    )
    threads = torch.get_num_threads()
    return (
        f"{libraries}; {places[0].system}; {', '.join(place.text for place in places)}; {threads} thread"
        + ("s" if threads > 1 else "")
    )


# ---------------------------------------------------------------------- holding one against another


@dataclass(frozen=True)
class Change:
    """How a run is no longer as its baseline says.

    Attributes:
        op, source: where it begins; empty where the run only ends sooner.
        text: what is other, the first in the order of execution in front.
    """

    op: str
    source: str
    text: str


def difference(then: Baseline, now: Baseline) -> Change | None:
    """What is no longer as it was; None if nothing is.

    Args:
        then: the baseline.
        now: today's run.
    """
    pairs = itertools.zip_longest(then.values, now.values)
    pair = next(((old, new) for old, new in pairs if old != new), None)
    if pair is None:
        return None
    old, new = pair
    same = (Counter(then.values) & Counter(now.values)).total()
    lines = [
        _first(old, new),
        f"{same} of {len(then.values)} values are as they were; there are {len(now.values)} now",
    ]
    if then.setup != now.setup:
        lines.append(
            f"it was made elsewhere, where the same may have other bits: {then.setup}; here: {now.setup}"
        )
    return Change("" if new is None else new.op, "" if new is None else new.source, "\n".join(lines))


def _first(old: Value | None, new: Value | None) -> str:
    if new is None:
        assert old is not None
        return f"the run ends before {old.op}"
    if old is None:
        return f"the run goes on with {_worded(new)}"
    if (old.module, old.name) != (new.module, new.name):
        return f"the first op that is another: {_worded(new)}, where {old.op} was"
    what = (
        "an input that is another" if new.name.startswith("input:") else "the first op that gives other bits"
    )
    return f"{what}: {_worded(new)}, where it was {_described(old)}"


def _worded(value: Value) -> str:
    place = f" ({value.source})" if value.source else ""
    return f"{value.op}{place}, {_described(value)}"


def _described(value: Value) -> str:
    return f"{value.dtype} {_shape(value)} {value.digest}"
