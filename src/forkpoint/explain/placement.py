"""Where a result lies: a caller reads it by its place, so a token must be in the place where it went in.

A label says whose value an element is, whatever the model did with the rows. So two results can be equal at every
coordinate although a batch came back sorted, or a sequence backwards. Here each shared coordinate is looked up
where it *lies*: at the place of itself, of another token, of padding. If that is the same in both runs (a model that
turns its result around in runs of one layout), nothing was moved; else one of the runs is read wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.coordinates import CoordinateTable, Ids
from forkpoint.capture.labels import Label
from forkpoint.match import Shared
from forkpoint.runs.layout import DECODER, MAIN

Ints = NDArray[np.int64]
Shape = tuple[int, ...]
Calls = Mapping[int, tuple[Tensor, Label | None]]
"""What a run returned under one name, by call."""


@dataclass(frozen=True)
class Displaced:
    """A result in which what both runs have lies elsewhere in one of them, relative to their layouts.

    Attributes:
        name: the result.
        count, of: how many of the coordinates (or samples) that both have lie elsewhere.
        text: one of them, with its place in each run and whose place that is.
    """

    name: str
    count: int
    of: int
    text: str


@dataclass(frozen=True)
class PlacedRun:
    """One run: its coordinates, and what these are called in both runs.

    Attributes:
        numbers: for each id its shared number, -1 for what this run alone has.
        rows: for each id the sample (of run A) in whose row it is, -1 for those of this run alone.
        name: what a sample of this run is called.
    """

    table: CoordinateTable
    numbers: Ints
    rows: Ints
    name: Callable[[int], object]
    heads: dict[tuple[int, str], Ids | None] = field(default_factory=dict[tuple[int, str], "Ids | None"])
    """What `first_of_rows` has found, by call and stream."""

    def first_of_rows(self, call: int, stream: str) -> Ids | None:
        """Id of the first token in each row of a call's input; None where a row holds several samples, or none."""
        key = call, stream
        if key not in self.heads:
            grid = self.table.slots(call, stream)
            heads = (
                None if grid is None else [self._first(line.tolist()) for line in grid.reshape(len(grid), -1)]
            )
            self.heads[key] = None if heads is None or -1 in heads else np.asarray(heads, dtype=np.int32)
        return self.heads[key]

    def _first(self, row: list[int]) -> int:
        tokens = [item for item in row if self.table.tokens[item] is not None]
        one = len({(self.table.tokens[item] or ("", -1, -1))[1] for item in tokens}) == 1
        return tokens[0] if one else -1


@dataclass
class _Lies:
    """Where coordinates lie in one run, a row for each cell of a result.

    Attributes:
        whose: [cells], number of the coordinate that lies there.
        place: [cells], number of the coordinate whose place it is; -1 for those of this run alone.
        ids: [cells], id of the coordinate whose place it is.
        index: [cells, dimensions], the cell.
    """

    whose: Ints
    place: Ints
    ids: Ids
    index: Ints

    @classmethod
    def joined(cls, parts: Sequence[_Lies]) -> _Lies:
        return cls(
            *(np.concatenate([getattr(p, n) for p in parts]) for n in ("whose", "place", "ids", "index"))
        )

    @property
    def in_place(self) -> bool:
        """Whether everything lies in its own place."""
        return bool((self.whose == self.place).all())

    def of(self, whose: int) -> Ints:
        return np.flatnonzero(self.whose == whose)

    def places(self) -> dict[int, frozenset[int]]:
        """For each coordinate whose places it lies in."""
        places_of: dict[int, set[int]] = {}
        for whose, place in zip(self.whose.tolist(), self.place.tolist(), strict=True):
            places_of.setdefault(whose, set()).add(place)
        return {whose: frozenset(places) for whose, places in places_of.items()}


Reading = tuple[str, tuple[int, ...], str]
"""How a result's dimensions follow the input's rows and columns: the kind, the dimensions, and the order."""
_ORDERS = ("rows", "columns", "tokens", "tokens by columns", "packed")


def displaced(
    name: str, a: Calls, b: Calls, shared: Shared, side_a: PlacedRun, side_b: PlacedRun
) -> Displaced | None:
    """Whether both runs have something that lies elsewhere in one of them; None also where a place says nothing.

    It is told by labels and shapes, whatever the values are, so that an answer is kept for the next comparison.
    """
    key = "displaced", name, _forms(a), _forms(b)
    answers = shared.worked_out
    if key not in answers:
        answers[key] = _displaced(name, a, b, shared, side_a, side_b)
    return answers[key]


def _forms(calls: Calls) -> Hashable:
    """The label and the shape of a result in each call."""
    return tuple((call, label, value.shape) for call, (value, label) in calls.items())


def _displaced(
    name: str, a: Calls, b: Calls, shared: Shared, side_a: PlacedRun, side_b: PlacedRun
) -> Displaced | None:
    """The same, worked out."""
    for readings, lies in ((_readings_of_tokens, _tokens), (_readings_of_rows, _samples)):
        worst: Displaced | None = None
        for reading in readings(a, b):
            in_a, in_b = lies(reading, a, side_a, shared), lies(reading, b, side_b, shared)
            if in_a is None or in_b is None:
                continue
            worst = _compare(name, in_a, in_b, shared, (side_a, side_b), by_sample=lies is _samples)
            if worst is None:
                break
        else:
            if worst is not None:
                return worst
    return None


def _readings_of_tokens(a: Calls, b: Calls) -> Iterator[Reading]:
    dims = min((value.dim() for value, _ in (*a.values(), *b.values())), default=0)
    for stream in (DECODER, MAIN):
        for pair in permutations(range(dims), 2):
            yield stream, pair, "grid"
        for d in range(dims):
            for order in _ORDERS:
                yield stream, (d,), order


def _readings_of_rows(a: Calls, b: Calls) -> Iterator[Reading]:
    dims = min((value.dim() for value, _ in (*a.values(), *b.values())), default=0)
    for stream in (DECODER, MAIN):
        for d in range(dims):
            yield stream, (d,), "samples"


# ---------------------------------------------------------------------- one run, read in one way


def _tokens(reading: Reading, calls: Calls, side: PlacedRun, shared: Shared) -> _Lies | None:
    """Where the tokens lie; None where the result can't be read that way."""
    stream, dims, order = reading
    parts: list[_Lies] = []
    tokens = shared.is_token
    for call, (value, label) in calls.items():
        grid = side.table.slots(call, stream)
        expected = None if grid is None else _expected(grid, order, side.table)
        if label is None or expected is None or tuple(value.shape[d] for d in dims) != expected.shape:
            return None
        held = _along(label.q, dims)
        if held is None or any(n not in (1, m) for n, m in zip(held.shape, expected.shape, strict=True)):
            return None
        if any(m > 1 and n == 1 for n, m in zip(held.shape, expected.shape, strict=True)):
            return None  # one value for several places
        whose, ids = side.numbers[held].reshape(-1), expected.reshape(-1)
        cells = np.argwhere(np.ones(expected.shape, dtype=bool))
        keep = tokens[whose]
        parts.append(_Lies(whose[keep], side.numbers[ids][keep], ids[keep], cells[keep]))
    return _Lies.joined(parts) if parts else None


def _samples(reading: Reading, calls: Calls, side: PlacedRun, _: Shared) -> _Lies | None:
    """Where the samples lie, each with all that it has along a dimension as long as the rows."""
    stream, dims = reading[:2]
    parts: list[_Lies] = []
    for call, (value, label) in calls.items():
        ids = side.first_of_rows(call, stream)
        if label is None or ids is None or value.shape[dims[0]] != len(ids):
            return None
        whose = _constant(side.rows[label.q], dims[0])
        if whose is None:
            return None
        whose = np.broadcast_to(whose, ids.shape)
        keep = whose >= 0
        cells = np.arange(len(ids))[:, None]
        parts.append(_Lies(whose[keep], side.rows[ids][keep], ids[keep], cells[keep]))
    return _Lies.joined(parts) if parts else None


def _expected(grid: Ids, order: str, table: CoordinateTable) -> Ids | None:
    """Ids of a call's columns in the places where a result of that order has them; None where there is no such order."""
    if order in ("grid", "columns", "packed") and grid.ndim != 2:
        return None
    if order == "grid":
        return grid
    valid = np.asarray([table.tokens[i] is not None for i in grid.reshape(-1).tolist()]).reshape(grid.shape)
    if order == "packed":  # by columns, the longest rows first
        longest = np.argsort(-valid.sum(1), kind="stable")
        grid, valid = grid[longest], valid[longest]
    if order in ("columns", "tokens by columns", "packed"):
        grid, valid = grid.T, valid.T
    return grid.reshape(-1) if order in ("rows", "columns") else grid[valid]


def _along(ids: Ids, dims: tuple[int, ...]) -> Ids | None:
    """Compressed ids as an array over some dimensions, in that order; None where they vary along others."""
    if any(size > 1 for d, size in enumerate(ids.shape) if d not in dims):
        return None
    others = tuple(d for d in range(ids.ndim) if d not in dims)
    own = [d for d in range(ids.ndim) if d in dims]
    return np.squeeze(ids, others).transpose([own.index(d) for d in dims])


def _constant(samples: Ints, dim: int) -> Ints | None:
    """[size of a dimension or 1], samples that depend on that dimension alone; None where they don't."""
    moved = np.moveaxis(samples, dim, 0).reshape(samples.shape[dim], -1)
    return moved[:, 0] if bool((moved == moved[:, :1]).all()) else None


# ---------------------------------------------------------------------- both runs


def _compare(
    name: str, a: _Lies, b: _Lies, shared: Shared, sides: tuple[PlacedRun, PlacedRun], *, by_sample: bool
) -> Displaced | None:
    if a.in_place and b.in_place:
        return None
    places_a, places_b = a.places(), b.places()
    both = [whose for whose in places_a if whose in places_b]
    moved = [whose for whose in both if places_a[whose] != places_b[whose]]
    if not moved:
        return None
    whose = min(moved)
    sample, position = (whose, None) if by_sample else shared.coordinate(whose)
    title = f"sample {sides[0].name(sample)}" if sample is not None else "what both have"
    if position is not None:
        title = f"token {position} of {title}"
    where = [
        f"{_index(lies, whose, by_sample=by_sample)} of run {run}, {_whose_place(lies, whose, side, by_sample=by_sample)}"
        for run, lies, side in zip("AB", (a, b), sides, strict=True)
    ]
    return Displaced(name, len(moved), len(both), f"{title} lies at {where[0]}, and at {where[1]}")


def _index(lies: _Lies, whose: int, *, by_sample: bool) -> str:
    index = lies.index[lies.of(whose)[0]].tolist()
    return f"row {index[0]}" if by_sample else str(index)


def _whose_place(lies: _Lies, whose: int, side: PlacedRun, *, by_sample: bool) -> str:
    """Whose place the first cell of a coordinate is."""
    cell = lies.of(whose)[0]
    if lies.place[cell] == whose:
        return "its own place"
    token = side.table.tokens[int(lies.ids[cell])]
    if token is None:
        return "where padding went in"
    _, sample, position = token
    return f"where {'' if by_sample else f'token {position} of '}sample {side.name(sample)} went in"
