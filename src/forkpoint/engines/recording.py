"""What an engine computed, put together from its trace: of each value the rows of all tokens, whatever call they came in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.trace import Op
from forkpoint.engines.folder import EngineFacts, Reported, read_facts
from forkpoint.errors import InputError
from forkpoint.runs.layout import MAIN, Coordinates
from forkpoint.support.memory import load_array
from forkpoint.traces.reading import TraceFolder, WeightDigests, read


@dataclass(frozen=True)
class TokenRows:
    """Rows of one sample: `value[i]` belongs to the token at `position[i]`."""

    position: Tensor
    """[tokens], ascending."""
    value: Tensor
    """[tokens, size]."""


@dataclass(frozen=True)
class TraceRow:
    """A row of the trace.

    Attributes:
        back: how many rows back this value was before, if it was.
    """

    op: Op
    call: int
    status: str
    shape: tuple[int, ...]
    floating: bool
    back: int


@dataclass(frozen=True, eq=False)
class Boundary:
    """A value that goes into a module of the engine or comes out of it, at all tokens that it was computed for.

    Attributes:
        module, function, output: as of the trace's op: `input:NAME` or `output`.
        origin: the trace's first row, in the call in which it comes first, that holds this very value.
        producer: the op that made it, as far as a row tells.
        rows: by sample.
        order: the trace's row at which it comes first.
    """

    module: str
    function: str
    output: int
    order: int
    origin: int
    producer: Op
    rows: dict[int, TokenRows]

    @property
    def name(self) -> str:
        return f"{self.module}/{self.function}"

    @property
    def size(self) -> int:
        return next(iter(self.rows.values())).value.shape[1]


@dataclass(eq=False)
class Recording:
    """An engine's recording.

    Attributes:
        facts: what the engine was told and reported.
        events: the trace's rows.
        boundaries: in the order in which they were computed first.
        weights: by name; those that the trace has empty as the engine's own layers gave them.
        cached: by sample, then by `MODULE.key` and `MODULE.value`, [tokens, size]: what was read from a cache.
        unread: by place, why a value can't be used.
    """

    folder: Path
    recorded: TraceFolder
    facts: EngineFacts
    events: list[TraceRow]
    boundaries: list[Boundary]
    weights: dict[str, WeightDigests]
    cached: dict[int, dict[str, Tensor]]
    unread: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def name(self) -> str:
        return self.facts.engine if self.facts.engine != "?" else self.folder.name

    @property
    def samples(self) -> list[int]:
        return sorted({s for c in self.grids for s in c.sample[c.valid].tolist()})

    @property
    def grids(self) -> Iterator[Coordinates]:
        """Where the tokens of each call are."""
        for entry in self.recorded.run.layout.calls:
            yield from entry.values()

    def first_position(self, sample: int) -> int:
        """The first position of a sample that the engine computed."""
        return min(
            int(c.position[c.valid & (c.sample == sample)].min())
            for c in self.grids
            if bool((c.sample == sample).any())
        )

    def ids_of(self, sample: int) -> dict[int, int]:
        """The token id that the model was given at each position."""
        return self._by_position(sample, ("input_ids", "ids", "tokens"))

    def positions_of(self, sample: int) -> dict[int, int]:
        """The position that the model was given at each position."""
        return self._by_position(sample, ("positions", "position_ids"))

    def _by_position(self, sample: int, names: tuple[str, ...]) -> dict[int, int]:
        ids: dict[int, int] = {}
        for inputs, entry in zip(self.recorded.run.calls, self.recorded.run.layout.calls, strict=False):
            value = next((inputs[name] for name in names if name in inputs), None)
            where = entry.get(MAIN)
            if value is None or where is None or value.shape != where.sample.shape:
                continue
            here = where.valid & (where.sample == sample)
            ids.update(zip(where.position[here].tolist(), value[here].tolist(), strict=True))
        return ids

    def reported_of(self, prompt: int | None) -> Reported | None:
        """What the engine said of the tokens of a prompt."""
        return next((r for r in self.facts.reported if r.id == prompt), None) if prompt is not None else None


def read_recording(folder: str | Path) -> Recording:
    """Read an engine's recording.

    Raises:
        InputError: it is no trace, it has no values, or it is damaged.
    """
    recorded = read(folder, "engine")
    if not recorded.values:
        recorded.close()
        raise InputError(
            f"{folder}, a trace without values", "values of the engine's ops", "record with values=['*'] (docs/engines.md)"
        )  # fmt: skip
    facts, tensors = read_facts(recorded.folder)
    unread: dict[str, str] = {}
    events = _events(recorded)
    boundaries = _boundaries(recorded, events, unread)
    weights, cached = dict(recorded.weights), dict[int, dict[str, Tensor]]()
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "weight" and rest in weights:
            old = weights[rest]
            weights[rest] = WeightDigests(rest, old.kind, old.shape, old.dtype, np.asarray(value))
        elif kind == "cache":
            sample, _, name = rest.partition(".")
            cached.setdefault(int(sample), {})[name] = value
    return Recording(recorded.folder, recorded, facts, events, boundaries, weights, cached, unread)


def _events(recorded: TraceFolder) -> list[TraceRow]:
    trace, rows = recorded.trace, list[TraceRow]()
    for index in range(len(trace)):
        one = trace.event(index)
        op, back = trace.ops[one.op], int(trace.back[index])
        rows.append(TraceRow(op, one.call, one.status, one.shape, one.floating, back))
    return rows


def _boundaries(recorded: TraceFolder, events: list[TraceRow], unread: dict[str, str]) -> list[Boundary]:
    """The floating-point values of modules, joined over the calls."""
    parts: dict[tuple[str, str, int], dict[int, list[tuple[Tensor, Tensor]]]] = {}
    first: dict[tuple[str, str, int], int] = {}
    last: dict[tuple[str, str, int], int] = {}
    repeated: set[tuple[str, str, int]] = set()
    for index, event in enumerate(events):
        op, call = event.op, event.call
        if not op.is_boundary or not event.floating:
            continue
        key = op.module, op.function, op.output
        first.setdefault(key, index)
        if last.get(key) == call:
            repeated.add(key)  # one module, called for several layers: which is meant is not known
        last[key] = call
        value = recorded.value(index)
        grid = next(iter(recorded.run.layout.calls[call].values()), None)
        if value is None or grid is None:
            continue
        by_sample = _by_sample(value[0], grid)
        if by_sample is None:
            unread[op.name] = f"its shape {list(value[0].shape)} does not begin with the tokens of the call"
            continue
        for sample, pair in by_sample.items():
            parts.setdefault(key, {}).setdefault(sample, []).append(pair)
    boundaries: list[Boundary] = []
    for key, samples in parts.items():
        if key in repeated:
            unread[f"{key[0]}/{key[1]}"] = "its module runs more than once in a call"
            continue
        origin = origin_of(events, first[key])
        rows = {sample: _joined(pairs) for sample, pairs in samples.items()}
        if len({r.value.shape[1] for r in rows.values()}) == 1:
            boundaries.append(Boundary(*key, first[key], origin, _producer(recorded, events, origin), rows))
    return sorted(boundaries, key=lambda b: b.order)


def origin_of(events: list[TraceRow], row: int) -> int:
    """The first row with the value that this row has, but for rows of memory that was not written yet."""
    back = events[row].back
    if not back:
        return row
    before = row - back
    if events[before].status != "skipped":
        return origin_of(events, before)
    return next(r for r in range(before + 1, row + 1) if events[r].back and r - events[r].back == before)


_NEAR = 24
"""Rows in which what made a value is looked for: those of one module."""


def _producer(recorded: TraceFolder, events: list[TraceRow], row: int) -> Op:
    """The first op of the rows before whose digests are the same; the row's own op where a kernel made it that has no row."""
    mine = recorded.trace.event(row).digests
    if mine is None:
        return events[row].op
    for before in range(max(0, row - _NEAR), row):
        event = events[before]
        if event.call != events[row].call or event.op.is_boundary or event.shape != events[row].shape:
            continue
        theirs = recorded.trace.event(before).digests
        if theirs is not None and np.array_equal(load_array(theirs), load_array(mine)):
            return event.op
    return events[row].op


def _by_sample(value: Tensor, grid: Coordinates) -> dict[int, tuple[Tensor, Tensor]] | None:
    """(positions, rows) of each sample; None where the value's first dimensions are not those of the call's tokens."""
    dims = grid.sample.dim()
    if tuple(value.shape[:dims]) != grid.shape or value.dim() == dims:
        return None
    flat = value.reshape(grid.sample.numel(), -1)
    sample, position = grid.sample.reshape(-1), grid.position.reshape(-1)
    return {
        int(number): (position[here], flat[here])
        for number in sample[sample >= 0].unique().tolist()
        if (here := (sample == number) & (position >= 0)).any()
    }


def _joined(pairs: list[tuple[Tensor, Tensor]]) -> TokenRows:
    """The rows of all calls, ascending; of a token that was computed more than once the last."""
    latest: dict[int, Tensor] = {}
    for positions, rows in pairs:
        latest.update(zip(positions.tolist(), rows, strict=True))
    order = sorted(latest)
    return TokenRows(torch.tensor(order), torch.stack([latest[p] for p in order]))


def sliced(rows: Mapping[int, TokenRows], start: int, end: int) -> dict[int, TokenRows]:
    """A part of each row."""
    return {sample: TokenRows(r.position, r.value[:, start:end]) for sample, r in rows.items()}


def summed(one: Mapping[int, TokenRows], other: Mapping[int, TokenRows]) -> dict[int, TokenRows]:
    """Row by row, the sum of two values of the same tokens."""
    return {
        s: TokenRows(r.position, r.value + other[s].value)
        for s, r in one.items()
        if s in other and torch.equal(r.position, other[s].position) and r.value.shape == other[s].value.shape
    }
