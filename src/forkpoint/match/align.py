"""Which element of one run's value is which element of the other's.

The join compares digests. Where the values themselves are at hand (a fetched op, a result of the model), their elements are
paired here, one by one, by their coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.coordinates import NONE
from forkpoint.capture.labels import Label, spread
from forkpoint.match.distance import compare, readable
from forkpoint.match.numbering import WHOLE_NUMBER, Shared
from forkpoint.match.pairs import Pairs
from forkpoint.support.arrays import tensor_of
from forkpoint.support.readable import why_unreadable

Ints = NDArray[np.int64]
Shape = tuple[int, ...]


MAX_CELLS = 1 << 14
"""Cells, and elements of a cell, up to which pairs are kept for the next values with the same labels."""
MAX_WORKED_OUT = 1 << 10
"""How many such pairs are kept."""


def pair_elements(
    a: Tensor, label_a: Label | None, b: Tensor, label_b: Label | None, shared: Shared, *, rest: bool = False
) -> Pairs:
    """Pair the elements of two values that have the same coordinate.

    Args:
        a, b: the values. Where neither has a label and the shapes are equal, all elements are paired.
        label_a, label_b: their labels.
        shared: the coordinates that both runs have.
        rest: whether to pair elements without a coordinate, too, where both values have them in the same places. Inside a
            model these may be memory that was never written.

    Returns:
        The pairs; none, with the reason, where nothing can be paired or a value's memory can't be read.
    """
    unreadable = why_unreadable(a) or why_unreadable(b)
    if unreadable:
        return Pairs.none(unreadable)
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return Pairs.none(f"{a.layout} in A, {b.layout} in B".replace("torch.", ""))
    if label_a is None or label_b is None:
        if a.shape != b.shape:
            return Pairs.none(
                f"shape {list(a.shape)} in A, {list(b.shape)} in B, and no token dimension known"
            )
        return Pairs.whole(a.numel())
    if (label_a.k is None) != (label_b.k is None):
        return Pairs.none("attention weights of another form in the other run")
    rest = rest and _same_rest(a, label_a, b, label_b)
    key = "pairs", label_a, a.shape, label_b, b.shape, rest
    cache = shared.worked_out
    pairs = cache.get(key)
    if pairs is None:
        pairs = _pair_labelled(a, label_a, b, label_b, shared, rest)
        if len(pairs.first_a) + len(pairs.inner_a) <= MAX_CELLS and len(cache) < MAX_WORKED_OUT:
            cache[key] = pairs
    return pairs


def _same_rest(a: Tensor, label_a: Label, b: Tensor, label_b: Label) -> bool:
    """Whether two values have elements that no token has a part in, and in the same places."""
    if label_a.k is not None or a.shape != b.shape or label_a.q.shape != label_b.q.shape:
        return False
    rest = label_a.q == NONE
    return bool(rest.any()) and np.array_equal(rest, label_b.q == NONE)


def _pair_labelled(a: Tensor, label_a: Label, b: Tensor, label_b: Label, shared: Shared, rest: bool) -> Pairs:
    """`pair_elements` of two values with labels; depends on labels and shapes alone, so that it can be kept."""
    a_of, b_of = _keys(label_a, shared, "a"), _keys(label_b, shared, "b")
    if rest:
        a_of, b_of = (
            np.where(label.q == NONE, WHOLE_NUMBER, of) for label, of in ((label_a, a_of), (label_b, b_of))
        )
    pairs = pair_cells(a_of, tuple(a.shape), b_of, tuple(b.shape), len(shared.names))
    if not len(pairs) and label_a.k is None:
        by_sample = _pair_by_sample(a, label_a, b, label_b, shared)
        if by_sample is not None:
            return by_sample
    return pairs


def _keys(label: Label, shared: Shared, run: str) -> Ints:
    """For each cell of a label the shared number of its coordinate, -1 if only this run has it; compressed as the label is.

    For attention weights it is one number for the pair of query and key.
    """
    numbers = shared.a if run == "a" else shared.b
    query = numbers[label.q]
    if label.k is None:
        return query
    key = numbers[label.k]
    samples = shared.samples
    mine = (query >= 0) & (key >= 0) & (samples[query] == samples[key])
    return np.where(mine, query * len(shared.names) + key, -1)


def pair_cells(a_of: Ints, shape_a: Shape, b_of: Ints, shape_b: Shape, names: int) -> Pairs:
    """Pair the elements of two values by the keys of their cells: in ascending order of keys, then of elements."""
    pairs = _cell_by_cell(a_of, shape_a, b_of, shape_b, names)
    if pairs is None:
        return pair_flat(spread(a_of, shape_a).reshape(-1), spread(b_of, shape_b).reshape(-1), names)
    return pairs


def _cell_by_cell(a_of: Ints, shape_a: Shape, b_of: Ints, shape_b: Shape, names: int) -> Pairs | None:
    """As `pair_flat`, but cell by cell, which is faster; None where several cells have a key that both values have."""
    cells_a, inner_a = _offsets(a_of.shape, shape_a)
    cells_b, inner_b = _offsets(b_of.shape, shape_b)
    common, in_a, in_b = np.intersect1d(a_of, b_of, return_indices=True)
    is_shared = common >= 0
    common, in_a, in_b = common[is_shared], in_a[is_shared], in_b[is_shared]
    if not len(common):
        return Pairs.none("the runs share no coordinate of it")
    if any(np.isin(keys, common).sum() > len(common) for keys in (a_of, b_of)):
        return None
    if not len(inner_a) and not len(inner_b):
        return Pairs.none("it has no elements")
    if len(inner_a) != len(inner_b):
        return Pairs.none("other sizes a coordinate")
    coordinates = _coordinates(common, names)
    return Pairs(cells_a[in_a], cells_b[in_b], coordinates, inner_a=inner_a, inner_b=inner_b)


def _offsets(cells: Shape, shape: Shape) -> tuple[Ints, Ints]:
    """Flat indices of the first element of each cell, and of a cell's elements from there; both ascending."""
    first, inner = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for d, size in enumerate(shape):
        steps = math.prod(shape[d + 1 :]) * np.arange(size, dtype=np.int64)
        if cells[d] == 1:
            inner = (inner[:, None] + steps).reshape(-1)
        else:
            first = (first[:, None] + steps).reshape(-1)
    return first, inner


def pair_flat(keys_a: Ints, keys_b: Ints, names: int) -> Pairs:
    """Pair elements by one key for each, in the order in which they come; negative keys have no partner."""
    order_a, order_b = np.argsort(keys_a, kind="stable"), np.argsort(keys_b, kind="stable")
    sorted_a, sorted_b = keys_a[order_a], keys_b[order_b]
    unique_a, count_a = np.unique(sorted_a, return_counts=True)
    unique_b, count_b = np.unique(sorted_b, return_counts=True)
    common, in_a, in_b = np.intersect1d(unique_a, unique_b, return_indices=True)
    usable = (common >= 0) & (count_a[in_a] == count_b[in_b])
    keep_a, keep_b = np.isin(sorted_a, common[usable]), np.isin(sorted_b, common[usable])
    index_a, index_b = order_a[keep_a], order_b[keep_b]
    if not len(index_a):
        return Pairs.none(
            "the runs share no coordinate of it" if not (common >= 0).any() else "other sizes a coordinate"
        )
    return Pairs(index_a, index_b, _coordinates(sorted_a[keep_a], names))


def _coordinates(keys: Ints, names: int) -> Ints:
    """The shared number of the query, or of the one coordinate, in each number that `_keys` made."""
    return keys if keys.max(initial=0) < names else keys // names


def _pair_by_sample(a: Tensor, label_a: Label, b: Tensor, label_b: Label, shared: Shared) -> Pairs | None:
    """Pair values that hold one vector for each sample by the samples, whichever column the vector was taken from; else None."""
    rows_a, rows_b = shared.stands_for_a[label_a.q], shared.stands_for_b[label_b.q]
    for rows, label in ((rows_a, label_a), (rows_b, label_b)):
        used = rows[rows >= 0]
        if len(np.unique(used)) != len(np.unique(label.q[rows >= 0])):
            return None
    pairs = pair_cells(rows_a, tuple(a.shape), rows_b, tuple(b.shape), 1 << 40)
    return replace(pairs, by_sample=True) if len(pairs) else None


# ---------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Gap:
    """How paired elements differ.

    Attributes:
        differing, compared: counts of elements.
        first: index into the pairs of the first that differs, by token and then by element of A; -1 for none.
        max_abs: largest absolute difference; infinite where one alone is NaN or infinite.
        max_rel: `max_abs` over the largest finite magnitude in A.
        largest: [cells of the pairs], float64, largest absolute difference in each.
        nan_in_one: whether an element is NaN in one alone.
    """

    differing: int
    compared: int
    first: int
    max_abs: float
    max_rel: float
    largest: NDArray[np.float64]
    nan_in_one: bool = False


_MASKED = 1e30
"""Magnitudes from here on are masks (the least number of a dtype), not values to measure a gap by."""
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements that are compared at a time: as many as a processor's cache holds, or as a GPU has memory to spare."""


def gap(a: Tensor, b: Tensor, pairs: Pairs, beyond: float = 0.0) -> Gap:
    """Compare paired elements by value: NaN equals NaN, and -0.0 equals 0.0.

    Args:
        beyond: how far two elements may be apart and not count as different.
    """
    of_a_kind = a.dtype.is_floating_point == b.dtype.is_floating_point
    if of_a_kind and _on_host(a) and _on_host(b) and len(pairs) <= _CHUNK["cpu"]:
        on_host = _gap_on_host(a, b, pairs, beyond)
        if on_host is not None:
            return on_host
    largest = np.zeros(len(pairs.first_a))
    differing, nan, first = 0, False, _First(pairs)
    for start, left, right in rows(a, b, pairs):
        if _equal(left, right):
            continue
        same, apart, nan_in_one = compare(left, right)
        same = same | (apart <= beyond) if beyond else same
        wrong = (~same).sum(1)
        differing += int(wrong.sum())
        nan = nan or bool(nan_in_one.any())
        largest[start : start + len(left)] = apart.amax(1).cpu().numpy()
        first.among(
            start,
            np.flatnonzero(wrong.cpu().numpy()),
            lambda cells, same=same: same[tensor_of(cells).to(same.device)].cpu().numpy(),
        )
    most = float(largest.max(initial=0.0))
    scale = 0.0
    if most:
        scale = max(_scale(left) for _, left, _ in rows(a, b, pairs))
    relative = most / scale if scale > 0 else (0.0 if most == 0 else float("inf"))
    return Gap(differing, len(pairs), first.pair, most, relative, largest, nan)


_SIMPLE = frozenset({torch.float64, torch.float32, torch.int64, torch.int32, torch.bool})
"""Dtypes that numpy has, and compares as torch does."""


def _on_host(value: Tensor) -> bool:
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and value.device.type == "cpu"
        and value.dtype in _SIMPLE
        and value.layout is torch.strided
        and not value.is_neg()
    )


def _gap_on_host(a: Tensor, b: Tensor, pairs: Pairs, beyond: float) -> Gap | None:
    """As `gap`, of few elements on the host, where numpy's calls are the cheaper ones; None for integers that differ."""
    cells, width = len(pairs.first_a), len(pairs.inner_a)
    left, right = (
        value.detach().reshape(-1).numpy()[place].reshape(cells, width)
        for value, place in ((a, pairs.rows_a), (b, pairs.rows_b))
    )
    same = left == right
    if same.all():
        return Gap(0, len(pairs), -1, 0.0, 0.0, np.zeros(cells))
    if not (a.dtype.is_floating_point and b.dtype.is_floating_point):
        return None
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        left, right = left.astype(np.float64, copy=False), right.astype(np.float64, copy=False)
    nan_a, nan_b = np.isnan(left), np.isnan(right)
    same |= nan_a & nan_b
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(left - right)
    apart[~np.isfinite(apart)] = np.inf
    apart[same] = 0.0
    if beyond:
        same |= apart <= beyond
    wrong, largest = ~same, apart.max(1)
    first = _First(pairs)
    first.among(0, np.flatnonzero(wrong.any(1)), lambda cells: same[cells])
    most, scale = float(largest.max()), 0.0
    if most:
        magnitude = np.abs(left)
        scale = float(magnitude[magnitude < _MASKED].max(initial=0.0))
    relative = most / scale if scale > 0 else (0.0 if most == 0 else math.inf)
    return Gap(
        int(wrong.sum()), len(pairs), first.pair, most, relative, largest, bool((nan_a != nan_b).any())
    )


def largest_pair(a: Tensor, b: Tensor, pairs: Pairs, difference: Gap) -> int:
    """Index of the pair with the largest absolute difference (the first of them), where some differ.

    Args:
        a, b: the values.
        pairs: of their elements.
        difference: what `gap` gave for them.
    """
    cell = int(difference.largest.argmax())
    one = replace(
        pairs, first_a=pairs.first_a[[cell]], first_b=pairs.first_b[[cell]], coordinates=pairs.coordinates[[cell]]
    )  # fmt: skip
    _, left, right = next(rows(a, b, one))
    return cell * len(pairs.inner_a) + int(compare(left, right).apart.argmax())


def rows(a: Tensor, b: Tensor, pairs: Pairs, together: int = 1) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The paired elements in chunks: index of the first cell, then A's and B's as [cells, elements of a cell].

    They are views where they can be, and on the device of the values if it is one.

    Args:
        together: how many pairs in turn no chunk may break up.
    """
    device = a.device if a.device == b.device and a.device.type in _CHUNK else torch.device("cpu")
    rows_a = _CellRows(a, device, pairs.first_a, pairs.inner_a)
    rows_b = _CellRows(b, device, pairs.first_b, pairs.inner_b)
    if not len(pairs):
        return
    width = len(pairs.inner_a)
    least = together // math.gcd(together, width)
    step = max(_CHUNK[device.type] // width // least, 1) * least
    for start in range(0, len(pairs.first_a), step):
        yield start, rows_a[start : start + step], rows_b[start : start + step]


class _First:
    """Finds the first pair that differs: of the first token, and of its elements the first of A."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.pair = pairs, -1
        self._earliest: tuple[int, int] | None = None

    def among(self, start: int, cells: Ints, same: Callable[[Ints], NDArray[np.bool_]]) -> None:
        """Look at the cells of a chunk that have a difference; the chunk begins with the cell `start`.

        Args:
            same: gives, for some cells of the chunk, which of their elements are the same.
        """
        if not len(cells):
            return
        coordinates = self.pairs.coordinates[start + cells]
        cells = cells[coordinates == coordinates.min()]
        places = same(cells).argmin(1)
        elements = self.pairs.first_a[start + cells] + self.pairs.inner_a[places]
        best = int(elements.argmin())
        candidate = int(coordinates.min()), int(elements[best])
        if self._earliest is None or candidate < self._earliest:
            self._earliest = candidate
            self.pair = int(start + cells[best]) * len(self.pairs.inner_a) + int(places[best])


class _CellRows:
    """The elements of each cell of a value as a row, [cells, elements of a cell]; a view where they lie so."""

    def __init__(self, value: Tensor, device: torch.device, first: Ints, inner: Ints) -> None:
        self.flat = readable(value).to(device).reshape(-1)
        self.first, self.inner = first, inner
        self.dense = len(inner) > 0 and int(inner[-1]) == len(inner) - 1

    def __getitem__(self, cells: slice) -> Tensor:
        first, width = self.first[cells], len(self.inner)
        if self.dense and len(first) and (np.diff(first) == width).all():
            start = int(first[0])
            return self.flat[start : start + width * len(first)].view(-1, width)
        starts, offsets = (tensor_of(part).to(self.flat.device) for part in (first, self.inner))
        return self.flat[starts[:, None] + offsets]


def _equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal, asked of `torch.equal` alone; False where that can't compare their dtypes."""
    lacking = left.dtype == torch.complex32 or (left.is_floating_point() and left.dtype.itemsize == 1)
    return left.dtype == right.dtype and not lacking and torch.equal(left, right)


def _scale(values: Tensor) -> float:
    """The largest finite magnitude that is no mask."""
    if not values.numel():
        return 0.0
    magnitude = (values.to(torch.complex128) if values.is_complex() else values.double()).abs()
    return float(torch.where(magnitude < _MASKED, magnitude, 0.0).max())


def index_of(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The full index of a flat position."""
    return tuple(int(i) for i in np.unravel_index(flat, shape)) if shape else ()


def scalar(value: Tensor, flat: int) -> Any:
    """One element as a Python number, in full precision."""
    return readable(value).reshape(-1)[flat].cpu().item()
