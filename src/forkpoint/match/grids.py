"""Tables over queries and keys (a mask, a position bias) whose tokens are not known in every dimension."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from forkpoint.capture.trace import WHOLE
from forkpoint.match.columns import Columns, Line, along_both
from forkpoint.match.joined import Difference, Pass, Tally
from forkpoint.match.numbering import Ints


class Grid(NamedTuple):
    """The digests of a value over all dimensions along which it has cells.

    Attributes:
        dims: of the value, ascending.
        digests: [size of each of `dims`].
    """

    dims: tuple[int, ...]
    digests: Ints


def has_grid(of: Pass) -> bool:
    """Whether the digests of a pass lie on a grid over dimensions of its value."""
    cells = of.cells
    return cells.kind != "pair" and math.prod(of.shape[d] for d in cells.row_dims) == len(cells.ids)


def _grid(of: Pass) -> Grid:
    given = (*of.cells.row_dims, *of.cells.open_dims)
    dims = tuple(sorted(given))
    digests = of.digests.reshape([of.shape[d] for d in given])
    return Grid(dims, digests.transpose([given.index(d) for d in dims]))


def compare_grids(
    a: Pass, b: Pass, columns_a: Columns, columns_b: Columns, pairs: tuple[tuple[int, int], ...], tally: Tally
) -> None:
    """Line up rows and columns, for each pair of samples, by where the sample's tokens are."""
    other_shape = f"shape {list(a.shape)} in A, {list(b.shape)} in B"
    grids = _over_the_same(a, b)
    if grids is None:
        tally.skip(1, other_shape)
        return
    grid_a, grid_b = grids
    for sample_a, sample_b in pairs:
        places = zip(
            _places(a, columns_a, grid_a.dims, sample_a), _places(b, columns_b, grid_b.dims, sample_b), strict=True
        )  # fmt: skip
        lines = [_line(x, y) for x, y in places]
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


def _over_the_same(a: Pass, b: Pass) -> tuple[Grid, Grid] | None:
    """Both grids over the same dimensions: one without tokens has size 1 in those that it lacks; else None."""
    grid_a, grid_b = _grid(a), _grid(b)
    if grid_a.dims == grid_b.dims and len(a.shape) == len(b.shape):
        return grid_a, grid_b
    a_is_whole = a.cells.ids[0] == WHOLE
    (whole, held), other = ((grid_a, a), grid_b) if a_is_whole else ((grid_b, b), grid_a)
    lacking = [d for d in other.dims if d not in whole.dims]
    if any(d not in other.dims for d in whole.dims):
        return None
    if any(d >= len(held.shape) or held.shape[d] != 1 for d in lacking):
        return None
    widened = Grid(other.dims, whole.digests.reshape([held.shape[d] for d in other.dims]))
    return (widened, other) if a_is_whole else (other, widened)


def _places(
    of: Pass, columns: Columns, dims: tuple[int, ...], sample: int
) -> list[dict[int, int] | int | None]:
    """For each dimension of a grid where the sample's tokens are; or the one row that is the sample's."""
    places: list[dict[int, int] | int | None] = []
    for d in dims:
        size = of.shape[d]
        if size == 1:
            places.append(0)
        elif d == 0 and (row := columns.row(of.call, size, sample)) is not None:
            places.append(row)
        else:
            places.append(columns.of((of.op, of.call), size).get(sample))
    return places


def _line(x: dict[int, int] | int | None, y: dict[int, int] | int | None) -> Line | None:
    if isinstance(x, int) and isinstance(y, int):
        return Line(None, np.asarray([x]), np.asarray([y]))
    if not isinstance(x, dict) or not isinstance(y, dict):
        return None
    return along_both(x, y)
