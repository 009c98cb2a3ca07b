"""Compares tables over queries and keys (a mask, a position bias) in which only some dimensions are known to follow tokens."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from forkpoint.match.columns import Columns, Line, along_both
from forkpoint.match.joined import Difference, Pass, Tally
from forkpoint.match.numbering import Ints


class DigestGrid(NamedTuple):
    """The digests of a value as an array over the dimensions along which it has cells.

    Attributes:
        dims: these dimensions, ascending.
        digests: [size of each of `dims`].
    """

    dims: tuple[int, ...]
    digests: Ints


def has_grid(of: Pass) -> bool:
    """Whether the digests of a pass lie on a grid over dimensions of its value."""
    cells = of.cells
    return cells.kind != "pair" and math.prod(of.shape[d] for d in cells.row_dims) == len(cells.ids)


def _grid(of: Pass) -> DigestGrid:
    order = (*of.cells.row_dims, *of.cells.open_dims)
    dims = tuple(sorted(order))
    digests = of.digests.reshape([of.shape[d] for d in order])
    return DigestGrid(dims, digests.transpose([order.index(d) for d in dims]))


def compare_grids(
    a: Pass, b: Pass, columns_a: Columns, columns_b: Columns, pairs: tuple[tuple[int, int], ...], tally: Tally
) -> None:
    """Compare two grids, for each pair of samples on the rows and columns where both runs have the sample's tokens."""
    other_shape = f"shape {list(a.shape)} in A, {list(b.shape)} in B"
    grids = _over_the_same(a, b)
    if grids is None:
        tally.skip(1, other_shape)
        return
    grid_a, grid_b = grids
    for sample_a, sample_b in pairs:
        lines = [
            _line(_places(a, columns_a, d, sample_a, one=b.shape[d] == 1), _places(b, columns_b, d, sample_b, one=a.shape[d] == 1))
            for d in grid_a.dims
        ]  # fmt: skip
        if any(line is None for line in lines):
            tally.skip(1, other_shape)
            return
        left = grid_a.digests[np.ix_(*[line.a for line in lines if line is not None])]
        right = grid_b.digests[np.ix_(*[line.b for line in lines if line is not None])]
        wrong = left != right
        positions = [line.positions if line is not None else None for line in lines]
        axis = next((i for i, along in enumerate(positions) if along is not None), None)
        if axis is None or not wrong.size:
            continue
        by_position = wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis))
        tally.compared += len(by_position)
        if by_position.any():
            along = positions[axis]
            assert along is not None
            tally.differing += int(np.count_nonzero(by_position))
            position = along[int(np.argmax(by_position))]
            tally.differ(Difference(a.index, b.index, -1, sample_a, position))


def _over_the_same(a: Pass, b: Pass) -> tuple[DigestGrid, DigestGrid] | None:
    """Both grids over the same dimensions: one has size 1 in those that it lacks; else None."""
    grid_a, grid_b = _grid(a), _grid(b)
    dims = tuple(sorted({*grid_a.dims, *grid_b.dims}))
    if len(a.shape) != len(b.shape):
        return None
    if any(of.shape[d] != 1 for of, grid in ((a, grid_a), (b, grid_b)) for d in dims if d not in grid.dims):
        return None
    wide_a, wide_b = (
        DigestGrid(dims, grid.digests.reshape([of.shape[d] for d in dims]))
        for of, grid in ((a, grid_a), (b, grid_b))
    )
    return wide_a, wide_b


def _places(of: Pass, columns: Columns, d: int, sample: int, *, one: bool) -> dict[int, int] | int | None:
    """The index of a sample's tokens by position along a dimension of a grid; or the sample's one row; None for neither.

    Args:
        of, columns: the pass, and where its run's tokens are.
        d: the dimension.
        sample: of that run.
        one: whether the other run's value has size 1 there: a dimension of size 1 is a token's, the only one of a call,
            where the other is not.
    """
    size = of.shape[d]
    if size == 1 and (one or d == 0):
        return 0
    if d == 0 and (row := columns.row(of.call, size, sample)) is not None:
        return row
    return columns.of((of.op, of.call), size).get(sample)


def _line(x: dict[int, int] | int | None, y: dict[int, int] | int | None) -> Line | None:
    if isinstance(x, int) and isinstance(y, int):
        return Line(None, np.asarray([x]), np.asarray([y]))
    if not isinstance(x, dict) or not isinstance(y, dict):
        return None
    return along_both(x, y)
