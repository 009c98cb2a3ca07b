"""Which element of one run's value is which element of the other's: the slow, obvious way.

The join compares digests; whenever a value itself is at hand (a fetched op, a result of the model),
its elements are paired here, one by one, by their coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.labels import Label, spread
from forkpoint.match import Shared
from forkpoint.pairs import Pairs

Ints = NDArray[np.int64]


def pair_elements(
    a: Tensor, label_a: Label | None, b: Tensor, label_b: Label | None, shared: Shared
) -> Pairs:
    """Pair the elements of two values by their labels; whole, where neither has one."""
    if label_a is None or label_b is None:
        if a.shape != b.shape:
            return Pairs.none(
                f"shape {list(a.shape)} in A, {list(b.shape)} in B, and no token dimension known"
            )
        every = np.arange(a.numel())
        return Pairs(every, every, np.zeros(len(every), dtype=np.int64))
    if (label_a.k is None) != (label_b.k is None):
        return Pairs.none("attention weights of another form in the other run")
    keys_a, keys_b = _keys(a, label_a, shared, "a"), _keys(b, label_b, shared, "b")
    pairs = _pair(keys_a, keys_b, len(shared.names))
    if not len(pairs) and label_a.k is None:
        by_sample = _pair_by_sample(a, label_a, b, label_b, shared)
        if by_sample is not None:
            return by_sample
    return pairs


def _keys(value: Tensor, label: Label, shared: Shared, run: str) -> Ints:
    """For each element one number that says its coordinate (and its key's); -1 if only this run has it."""
    numbers = shared.a if run == "a" else shared.b
    shape = tuple(value.shape)
    query = spread(numbers[label.q], shape).reshape(-1)
    if label.k is None:
        return query
    key = spread(numbers[label.k], shape).reshape(-1)
    samples = shared.samples
    mine = (query >= 0) & (key >= 0) & (samples[query] == samples[key])
    return np.where(mine, query * len(shared.names) + key, -1)


def _pair(keys_a: Ints, keys_b: Ints, names: int) -> Pairs:
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
    numbers = sorted_a[keep_a]
    return Pairs(index_a, index_b, numbers if numbers.max(initial=0) < names else numbers // names)


def _pair_by_sample(a: Tensor, label_a: Label, b: Tensor, label_b: Label, shared: Shared) -> Pairs | None:
    """Values that hold one vector a sample are that sample's, whichever column it was taken from."""
    rows_a, rows_b = shared.sample_rows_a[label_a.q], shared.sample_rows_b[label_b.q]
    for rows, label in ((rows_a, label_a), (rows_b, label_b)):
        used = rows[rows >= 0]
        if len(np.unique(used)) != len(np.unique(label.q[rows >= 0])):
            return None
    pairs = _pair(
        spread(rows_a, tuple(a.shape)).reshape(-1), spread(rows_b, tuple(b.shape)).reshape(-1), 1 << 40
    )
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
        per_number: [(number, largest absolute difference)].
    """

    differing: int
    compared: int
    first: int
    max_abs: float
    max_rel: float
    absolute: NDArray[np.float64]


_MASKED = 1e30
"""Magnitudes from here on are masks (the least number of a dtype), not values to measure a gap by."""


def gap(a: Tensor, b: Tensor, pairs: Pairs) -> Gap:
    """Compare paired elements by value: NaN equals NaN, and -0.0 equals 0.0."""
    left, right = _flat(a, pairs.a), _flat(b, pairs.b)
    if left.dtype.is_complex or right.dtype.is_complex:
        difference = (left.to(torch.complex128) - right.to(torch.complex128)).abs()
        same = (left == right) | (torch.isnan(left) & torch.isnan(right))
        magnitude = left.abs().double()
    elif left.dtype.is_floating_point or right.dtype.is_floating_point:
        left, right = left.double(), right.double()
        same = (left == right) | (torch.isnan(left) & torch.isnan(right))
        difference, magnitude = (left - right).abs(), left.abs()
    else:
        same = left == right
        difference = (left.double() - right.double()).abs()
        magnitude = left.abs().double() if left.dtype != torch.bool else left.double()
    difference = torch.where(same, 0.0, torch.nan_to_num(difference, nan=float("inf"), posinf=float("inf")))
    wrong = (~same).numpy()
    places = np.flatnonzero(wrong)
    # The first token that differs, and within it the first element; numbers follow the order of the tokens.
    order = np.lexsort((pairs.a[places], pairs.numbers[places]))
    first = int(places[order[0]]) if len(places) else -1
    absolute = difference.numpy()
    largest = float(absolute.max(initial=0.0))
    finite = magnitude[magnitude < _MASKED]
    scale = float(finite.max()) if finite.numel() else 0.0
    relative = largest / scale if scale > 0 else (0.0 if largest == 0 else float("inf"))
    return Gap(int(wrong.sum()), len(pairs), first, largest, relative, absolute)


def _flat(value: Tensor, index: Ints) -> Tensor:
    return value.detach().cpu().reshape(-1)[torch.from_numpy(np.ascontiguousarray(index))]


def ulps(a: float, b: float, dtype_a: torch.dtype, dtype_b: torch.dtype) -> float | None:
    """Distance of two values in units in the last place of the narrower of two dtypes.

    The unit is the spacing of the dtype's numbers at the larger of the two magnitudes; None for
    integers, complex numbers and values that are not finite.

    >>> ulps(1.0, 1.0 + 2**-23, torch.float32, torch.float32)
    1.0
    """
    if not (dtype_a.is_floating_point and dtype_b.is_floating_point):
        return None
    values = torch.tensor([a, b], dtype=torch.float64)
    if not bool(torch.isfinite(values).all()):
        return None
    narrow = max((dtype_a, dtype_b), key=lambda d: torch.finfo(d).eps)
    info = torch.finfo(narrow)
    magnitude = max(abs(a), abs(b), info.tiny)
    exponent = np.floor(np.log2(magnitude))
    if narrow == torch.float64 and dtype_a == dtype_b:
        return abs(_ordered(a) - _ordered(b))
    return abs(a - b) / (info.eps * float(2.0**exponent))


def _ordered(value: float) -> int:
    """The place of a float64 among all float64 numbers."""
    bits = int(np.asarray(value, dtype=np.float64).view(np.int64))
    return bits if bits >= 0 else -(bits & ((1 << 63) - 1))


def index_of(flat: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The full index of a flat position."""
    return tuple(int(i) for i in np.unravel_index(flat, shape)) if shape else ()


def scalar(value: Tensor, flat: int) -> Any:
    """One element as a Python number, in full precision."""
    return value.detach().reshape(-1)[flat].cpu().item()
