"""NaN and infinities among paired elements: how many there are, and how far apart the others are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forkpoint.match.align import rows
from forkpoint.match.pairs import Pairs


@dataclass(frozen=True)
class FinitePart:
    """Paired elements, those that are NaN or infinite counted and left out of the gap.

    Attributes:
        elements: pairs in all.
        nonfinite_a, nonfinite_b: elements that are NaN or infinite in each run.
        apart: pairs that are not the same and of which at least one is NaN or infinite.
        max_abs: largest absolute difference of pairs that are finite in both.
        max_rel: `max_abs` over the largest magnitude among A's elements of those pairs.
    """

    elements: int = 0
    nonfinite_a: int = 0
    nonfinite_b: int = 0
    apart: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0

    def __add__(self, other: FinitePart) -> FinitePart:
        return FinitePart(
            self.elements + other.elements,
            self.nonfinite_a + other.nonfinite_a,
            self.nonfinite_b + other.nonfinite_b,
            self.apart + other.apart,
            max(self.max_abs, other.max_abs),
            max(self.max_rel, other.max_rel),
        )


def all_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite; integers never are."""
    return not (value.is_floating_point() or value.is_complex()) or bool(is_finite(_stored(value)).all())


def _stored(value: Tensor) -> Tensor:
    """The elements that a tensor of any layout holds; those that a sparse one leaves out are zero."""
    if value.layout is torch.strided:
        return value
    if value.layout is torch.sparse_coo:
        return value.coalesce().values()
    return value.to_dense()


def is_finite(value: Tensor) -> Tensor:
    """Which elements are neither NaN nor infinite, of any dtype; torch knows no such function for float8."""
    return torch.isfinite(value.float() if value.dtype.itemsize == 1 and value.is_floating_point() else value)


def finite_part(a: Tensor, b: Tensor, pairs: Pairs) -> FinitePart:
    """Count the NaN and infinities of paired elements, and measure the gap of the others.

    >>> import numpy as np
    >>> a, b = torch.tensor([1.0, 2.0, float("nan")]), torch.tensor([1.5, float("inf"), float("nan")])
    >>> part = finite_part(a, b, Pairs(np.arange(3), np.arange(3), np.zeros(3, dtype=int)))
    >>> part.nonfinite_a, part.nonfinite_b, part.apart, part.max_abs
    (1, 2, 1, 0.5)
    """
    count_a = count_b = apart = 0
    most = scale = 0.0
    for _, one, other in rows(a, b, pairs):
        left, right = (v if v.is_complex() else v.double() for v in (one, other))
        finite_a, finite_b = torch.isfinite(left), torch.isfinite(right)
        both = finite_a & finite_b
        same = (left == right) | (torch.isnan(left) & torch.isnan(right))
        count_a += int((~finite_a).sum())
        count_b += int((~finite_b).sum())
        apart += int((~both & ~same).sum())
        if bool(both.any()):
            most = max(most, float((left[both] - right[both]).abs().max()))
            scale = max(scale, float(left[both].abs().max()))
    relative = most / scale if scale > 0 else (0.0 if most == 0 else float("inf"))
    return FinitePart(len(pairs), count_a, count_b, apart, most, relative)
