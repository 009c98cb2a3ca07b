"""Pairs the elements of tables without labels by their sizes, as `tables` and `grids` do for digests."""

from __future__ import annotations

import numpy as np

from forkpoint.match.columns import Columns, Maker, along_both
from forkpoint.match.numbering import Ints
from forkpoint.match.pairs import Pairs

Shape = tuple[int, ...]


def pair_open(
    samples: list[tuple[int, int]], columns_a: Columns, columns_b: Columns, makers: tuple[Maker, Maker],
    shapes: tuple[Shape, Shape],
) -> Pairs:  # fmt: skip
    """Pair the elements of two values whose token dimensions only the join could line up.

    Args:
        samples: of A and B, by whose columns they are lined up, one pair after the other.
        columns_a, columns_b: where the tokens of each run are.
        makers: of each value, the op that made it, and the call.
        shapes: of the values.
    """
    shape_a, shape_b = shapes
    if len(shape_a) != len(shape_b):
        return Pairs.none(f"shape {list(shape_a)} in A, {list(shape_b)} in B")
    if 0 in shape_a or 0 in shape_b:  # beside a size of 0 another may be beyond all bounds
        return Pairs.none("no elements")
    flat_a: list[Ints] = []
    flat_b: list[Ints] = []
    for pair in samples:
        take_a, take_b = _take(pair, columns_a, columns_b, makers, shapes)
        flat_a.append(np.ravel_multi_index(np.ix_(*take_a), shape_a).reshape(-1))
        flat_b.append(np.ravel_multi_index(np.ix_(*take_b), shape_b).reshape(-1))
    if not flat_a or not sum(map(len, flat_a)):
        return Pairs.none("no token dimension known")
    index_a, index_b = np.concatenate(flat_a), np.concatenate(flat_b)
    return Pairs(index_a, index_b, np.zeros(len(index_a), dtype=np.int64))


def _take(
    samples: tuple[int, int], columns_a: Columns, columns_b: Columns, makers: tuple[Maker, Maker],
    shapes: tuple[Shape, Shape],
) -> tuple[list[Ints], list[Ints]]:  # fmt: skip
    """The indices along each dimension that belong to a pair of samples."""
    (sample_a, sample_b), (maker_a, maker_b), (shape_a, shape_b) = samples, makers, shapes
    by_position_a = [columns_a.of(maker_a, size).get(sample_a, {}) for size in shape_a]
    by_position_b = [columns_b.of(maker_b, size).get(sample_b, {}) for size in shape_b]
    row_a = columns_a.row_if_any(maker_a[1], shape_a[0], sample_a) if shape_a else None
    row_b = columns_b.row_if_any(maker_b[1], shape_b[0], sample_b) if shape_b else None
    behind = any(x and y for x, y in zip(by_position_a[1:], by_position_b[1:], strict=True))
    take_a: list[Ints] = []
    take_b: list[Ints] = []
    for d, (size_a, size_b) in enumerate(zip(shape_a, shape_b, strict=True)):
        if size_a == size_b:
            take_a.append(np.arange(size_a))
            take_b.append(np.arange(size_b))
        elif d == 0 and behind and row_a is not None and row_b is not None:
            take_a.append(np.asarray([row_a]))
            take_b.append(np.asarray([row_b]))
        else:
            both = along_both(by_position_a[d], by_position_b[d])
            take_a.append(both.a)
            take_b.append(both.b)
    return take_a, take_b
