"""Digests of grids on the CPU, compiled by numba; see `numba_impl`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from forkpoint.capture.digest import definition, torch_impl
from forkpoint.capture.digest.numba_words import (
    INDEX_FACTOR,
    INDEX_OFFSET,
    LANES_OF_KIND,
    U32,
    WORK_SIZE,
    add,
    bytes_at,
    canonical_float64,
    canonical_lanes,
    claim,
    doubles_at,
    halves_at,
    integer,
    integers_at,
    jit,
    mix,
    multiply,
    pack,
    run,
    signed_words_at,
    words_at,
    work,
)
from forkpoint.capture.digest.plan import ElementType, check, kind, merged
from forkpoint.support.arrays import tensor_of

_CELLS = 1024
"""Cells whose sums stay in the nearest cache."""
_FLOAT64 = int(ElementType.FLOAT64)
_POSITION_FACTORS = (U32(definition.POSITION_FACTORS[0]), U32(definition.POSITION_FACTORS[1]))


@jit
def _spread(positions: Any, spread: Any) -> None:
    """`definition.position_key` of each."""
    for i in range(positions.size):
        key = multiply(U32(positions[i]), _POSITION_FACTORS[0])
        spread[i] = multiply(key ^ (key >> U32(15)), _POSITION_FACTORS[1])


@jit
def _cells_narrow(cells: Any, kind: int, index: int, spread: Any, lane1: Any, lane2: Any) -> None:
    """Adds one element to each of some cells."""
    sign, above, shift = LANES_OF_KIND[kind, 0], LANES_OF_KIND[kind, 1], LANES_OF_KIND[kind, 2]
    key = add(multiply(U32(index), INDEX_FACTOR), INDEX_OFFSET)
    for i in range(cells.size):
        word = canonical_lanes(U32(cells[i]), sign, above, shift)
        a, b = mix(word, add(key, spread[i]))
        lane1[i], lane2[i] = add(lane1[i], a), add(lane2[i], b)


@jit
def _cells_wide(cells: Any, kind: int, index: int, spread: Any, lane1: Any, lane2: Any) -> None:
    low = add(multiply(U32(2 * index), INDEX_FACTOR), INDEX_OFFSET)
    high = add(low, INDEX_FACTOR)
    for i in range(cells.size):
        value = canonical_float64(cells[i]) if kind == _FLOAT64 else cells[i]
        a, b = mix(U32(value), add(low, spread[i]))
        c, d = mix(U32(value >> np.uint64(32)), add(high, spread[i]))
        lane1[i], lane2[i] = add(lane1[i], add(a, c)), add(lane2[i], add(b, d))


@jit
def _digest_grid(
    address: int, item: int, kind: int, walk: Any, positions: Any, out: Any, begin: int, end: int
) -> None:
    """The digests of the blocks ``begin`` to before ``end`` of a grid: up to `_CELLS` neighbours in memory.

    ``walk`` holds sizes and strides in bytes of the grid's three dimensions (the last one is called a line, its
    cells lie side by side) and of the two dimensions of a cell's elements.
    """
    line = walk[0, 2]
    blocks = (line + _CELLS - 1) // _CELLS
    lane1, lane2 = np.empty(_CELLS, dtype=np.uint32), np.empty(_CELLS, dtype=np.uint32)
    spread = np.zeros(_CELLS, dtype=np.uint32)
    for block in range(begin, end):
        at, start = block // blocks, block % blocks * _CELLS
        size = min(_CELLS, line - start)
        first = at * line + start
        base = address + at // walk[0, 1] * walk[1, 0] + at % walk[0, 1] * walk[1, 1] + start * item
        lane1[:size] = 0
        lane2[:size] = 0
        if positions.size:
            _spread(positions[first : first + size], spread)
        for f in range(walk[0, 3] * walk[0, 4]):
            here = base + f // walk[0, 4] * walk[1, 3] + f % walk[0, 4] * walk[1, 4]
            if item == 1:
                _cells_narrow(carray(bytes_at(here), size), kind, f, spread, lane1, lane2)
            elif item == 2:
                _cells_narrow(carray(halves_at(here), size), kind, f, spread, lane1, lane2)
            elif item == 4:
                _cells_narrow(carray(words_at(here), size), kind, f, spread, lane1, lane2)
            else:
                _cells_wide(carray(doubles_at(here), size), kind, f, spread, lane1, lane2)
        for i in range(size):
            out[first + i] = pack(lane1[i], lane2[i])


@work
def _grid_work(address: Any) -> None:
    """Digests blocks of a grid, in pieces of so many elements, until none is left."""
    data = carray(integers_at(integer(address)), WORK_SIZE)
    size, total, pointer, item, kind = data[1], data[2], data[3], data[4], data[5]
    walk = carray(integers_at(data[6]), (2, 5))
    positions = carray(signed_words_at(data[7]), data[8])
    out = carray(integers_at(data[9]), data[10])
    blocks = data[11]
    begin = claim(integer(address)) * size
    while begin < total:
        first, last = begin * blocks // total, min(begin + size, total) * blocks // total
        _digest_grid(pointer, item, kind, walk, positions, out, first, last)
        begin = claim(integer(address)) * size


def grid(x: Tensor, grid_dims: Sequence[int], keys: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.grid`."""
    check(x, grid_dims)
    sizes = [x.shape[dim] for dim in grid_dims]
    x = torch_impl.real(x)
    cell_dims = [dim for dim in range(x.dim()) if dim not in grid_dims]
    walk = _grid_walk(x, grid_dims, cell_dims)
    if walk is None:
        x = x.permute(*cell_dims, *grid_dims).contiguous()
        walk = _grid_walk(x, range(len(cell_dims), x.dim()), range(len(cell_dims)))
    if walk is None:  # more dimensions than the kernel walks, whatever their order
        return torch_impl.grid(x, range(len(cell_dims), x.dim()), keys)
    positions = torch.empty(0, dtype=torch.int32)
    if keys is not None:
        positions = keys.to(torch.int32).expand(sizes).reshape(-1).contiguous()
    out = np.zeros(int(np.prod(walk[0, :3])), dtype=np.int64)
    blocks = int(walk[0, 0] * walk[0, 1] * -(-walk[0, 2] // _CELLS))
    numbers = positions.numpy()
    tensor = (x.data_ptr(), x.dtype.itemsize, int(kind(x.dtype)), walk)
    run(_grid_work, x.numel(), *tensor, numbers, len(numbers), out, len(out), blocks)
    return tensor_of(out)


def _grid_walk(x: Tensor, grid_dims: Sequence[int], cell_dims: Sequence[int]) -> np.ndarray[Any, Any] | None:
    """Sizes and strides as `_digest_grid` wants them, or None if it can't read the tensor in place."""
    size, strides = x.dtype.itemsize, x.stride()
    cells = merged([(x.shape[dim], strides[dim] * size) for dim in grid_dims])
    inner = merged([(x.shape[dim], strides[dim] * size) for dim in cell_dims])
    if not cells:
        cells = [(1, size)]
    if cells[-1][1] != size or len(cells) > 3 or len(inner) > 2 or x.data_ptr() % min(size, 4):
        return None
    walk = [(1, 0)] * (3 - len(cells)) + cells + [(1, 0)] * (2 - len(inner)) + inner
    return np.array(walk, dtype=np.int64).T.copy()
