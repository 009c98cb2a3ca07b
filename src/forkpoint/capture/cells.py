"""Cells: into which slices a value is cut for its digests, and which coordinate each of them stands for."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from forkpoint.capture import digest
from forkpoint.capture.coordinates import NONE, CoordinateTable, Ids
from forkpoint.capture.labels import Label, Shape, split_blocks, spread
from forkpoint.capture.trace import WHOLE, Cells, Digests, Width
from forkpoint.runs.layout import STREAMS
from forkpoint.support.arrays import tensor_of

MAX_OPEN_CELLS = {"without tokens": 1 << 22, "with tokens": 1 << 18}
"""Most cells of one value whose token dimensions are only suspected; a value that has a known one
already (a mask by its keys) seldom needs them."""


@dataclass(frozen=True, eq=False, slots=True)
class Cut:
    """How a value is cut for its digests: which dimensions enumerate the rows, and how rows become cells."""

    cells: Cells
    row_dims: tuple[int, ...]
    width: Width = 0
    """Elements in each cell: one number, or an array where cells differ."""
    row_ids: Ids | None = None
    """The cell of each row, where several rows are one coordinate's; None where they are the cells."""
    extra: Any = None
    """For several rows of one coordinate, which of them each row is; for pairs, their two sides and keys."""
    shape: Shape = ()
    """For pairs, the shape in which rows and heads are dimensions of their own."""

    @property
    def plain(self) -> bool:
        """Whether each row is one cell: its digest is the cell's."""
        return self.row_ids is None and self.cells.kind == "rows"

    @property
    def grid_dims(self) -> tuple[int, ...]:
        """The dimensions over which each index has a digest, the open ones among them; ascending."""
        return tuple(sorted((*self.row_dims, *self.cells.open_dims)))

    @property
    def open_cells(self) -> int:
        """How many of the cells exist only because a dimension might follow the tokens; 0 where none might."""
        return len(self.cells.ids) * math.prod(self.cells.open_sizes) if self.cells.kind == "open" else 0


def cut(
    table: CoordinateTable,
    label: Label | None,
    shape: Shape,
    lengths: Collection[int] = (),
) -> Cut:
    """How to digest a value of a label and a shape.

    Args:
        table: what the ids of the label are.
        label: whose coordinates the value has; None for a value without.
        shape: of the value.
        lengths: sizes that make a dimension suspected of following the tokens.
    """
    if label is not None and label.k is not None:
        return _pairs(table, label, label.k, shape)
    ids = np.full((1,) * len(shape), WHOLE, dtype=np.int32) if label is None else label.q
    row_dims = tuple(d for d in range(len(shape)) if ids.shape[d] > 1)
    flat_ids = ids.reshape(-1)
    unique, inverse = np.unique(flat_ids, return_inverse=True)
    rows = len(flat_ids)
    width = math.prod(shape) // rows if rows else 0
    if len(unique) == rows:
        open_dims = tuple(d for d, n in enumerate(shape) if d not in row_dims and n in lengths and n > 1)
        if label is None and shape and 0 not in open_dims and shape[0] == table.rows > 1:
            open_dims = (0, *open_dims)  # what was made as often as there are rows: a table, a state, queries
        sizes = tuple(shape[d] for d in open_dims)
        most = MAX_OPEN_CELLS["without tokens" if label is None else "with tokens"]
        if open_dims and rows * math.prod(sizes) <= most:
            cells = Cells("open", flat_ids.astype(np.int32), open_dims, sizes, row_dims=row_dims)
            return Cut(cells, row_dims, width)
        return Cut(Cells("rows", flat_ids.astype(np.int32), row_dims=row_dims), row_dims, width)
    # Several rows of one coordinate: its slice goes on from row to row, in their order.
    counts = np.bincount(inverse)
    order = np.argsort(inverse, kind="stable")
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    occurrence = np.empty(rows, dtype=np.int64)
    occurrence[order] = np.arange(rows) - starts
    cells = Cells("rows", unique.astype(np.int32))
    return Cut(cells, row_dims, width * counts, inverse.astype(np.int32).reshape(-1), occurrence)


def _pairs(table: CoordinateTable, label: Label, keys: Ids, shape: Shape) -> Cut:
    (q, k), shape = split_blocks([label.q, keys], shape)
    dims = tuple(d for d in range(len(shape)) if q.shape[d] > 1 or k.shape[d] > 1)
    grid = tuple(shape[d] for d in dims)
    query = spread(q, shape, dims).reshape(grid)
    key = spread(k, shape, dims).reshape(grid)
    tokens = table.tokens
    stream = np.asarray([0 if t is None else 1 + STREAMS.index(t[0]) for t in tokens] + [0])
    sample = np.asarray([-1 if t is None else t[1] for t in tokens] + [-1])
    position = np.asarray([-1 if t is None else t[2] for t in tokens] + [-1])
    mine = (sample[key] == sample[query]) & (sample[key] >= 0)
    before = mine & ((stream[key] != stream[query]) | (position[key] <= position[query]))
    ids, cell = np.unique(query.reshape(-1), return_inverse=True)
    past = np.where(before.reshape(-1), cell, NONE)
    future = np.where((mine & ~before).reshape(-1), cell, NONE)
    places = position[key].reshape(-1)
    counts = np.stack(
        [
            np.bincount(cell, weights=before.reshape(-1), minlength=len(ids)),
            np.bincount(cell, weights=before.reshape(-1) * places, minlength=len(ids)),
            np.bincount(cell, weights=(mine & ~before).reshape(-1), minlength=len(ids)),
            np.bincount(cell, weights=(mine & ~before).reshape(-1) * places, minlength=len(ids)),
        ],
        axis=1,
    ).astype(np.int64)
    sides = (past.astype(np.int32), future.astype(np.int32), places.astype(np.int32).reshape(grid))
    width = math.prod(shape) // max(math.prod(grid), 1)
    return Cut(Cells("pair", ids.astype(np.int32), keys=counts), dims, width, extra=sides, shape=shape)


def digests_of(value: Tensor, how: Cut) -> list[Tensor]:
    """The digests of a value of rows that share cells, or of pairs, on its device; see `collect`."""
    on, cells = value.device, how.cells
    if cells.kind == "rows":
        assert how.row_ids is not None
        elements = math.prod(value.shape) // max(len(how.extra), 1)
        words = -(-elements * value.dtype.itemsize // 4)  # that a row fills
        rows = digest.rows(value, how.row_dims, tensor_of(how.extra * words).to(on))
        index = tensor_of(how.row_ids.astype(np.int64)).to(on)
        return [digest.accumulate(rows, index, len(cells.ids))]
    past, future, keys = how.extra
    grid = digest.grid(value.reshape(how.shape), how.row_dims, tensor_of(keys).to(on))
    return [
        digest.accumulate(grid, tensor_of(side.astype(np.int64)).to(on), len(cells.ids))
        for side in (past, future)
    ]


def collect(how: Cut, shape: Shape, parts: list[Digests]) -> tuple[Digests, Digests | None]:
    """Digests as an event holds them: its own, and those with the open dimensions taken in.

    Args:
        how: how the value was digested.
        shape: of the value.
        parts: what `digests_of` gave; for open cells the digests by rows, over `Cut.grid_dims` and `Cut.row_dims`.
    """
    cells = how.cells
    if cells.kind == "rows":
        return parts[0], None
    if cells.kind == "open":
        grid_dims = how.grid_dims
        order = [grid_dims.index(d) for d in (*how.row_dims, *cells.open_dims)]
        grid = parts[0].reshape([shape[d] for d in grid_dims]).transpose(order)
        return grid.reshape(len(cells.ids), *cells.open_sizes), parts[1]
    return np.stack(parts, axis=1), None
