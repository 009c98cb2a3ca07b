"""How far apart two values are: exactly the same or not, the gap, and the distance in units in the last place."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forkpoint.support.readable import bare

_LONG = frozenset([torch.int64, torch.uint64])
"""Integers that float64 does not hold, beyond 2**53."""
_PACKED = getattr(torch, "float4_e2m1fn_x2", None)
"""Two numbers a byte, for which torch has no arithmetic: compared as bytes."""


class Compared(NamedTuple):
    """How two tensors differ, element by element."""

    same: Tensor
    """Bool: equal by value, whatever the dtypes; NaN equals NaN, and -0.0 equals 0.0."""
    apart: Tensor
    """float64: the absolute difference; infinite where one alone is NaN or infinite."""
    nan_in_one: Tensor
    """Bool: whether one alone is NaN."""


def compare(left: Tensor, right: Tensor) -> Compared:
    """Compare two tensors of one shape, of any dtypes.

    >>> compare(torch.tensor([2**53 + 1, 4]), torch.tensor([2**53, 7])).apart.tolist()
    [1.0, 3.0]
    """
    if left.is_complex() or right.is_complex():
        parts = compare(_parts(left), _parts(right))
        apart = torch.hypot(*parts.apart.unbind(-1))
        return Compared(parts.same.all(-1), apart, parts.nan_in_one.any(-1))
    left, right = readable(left), readable(right)
    if left.dtype in _LONG or right.dtype in _LONG:
        (high_a, low_a), (high_b, low_b) = _halves(left), _halves(right)
        same = (high_a == high_b) & (low_a == low_b)
        apart = ((high_a - high_b) * 2.0**32 + (low_a - low_b)).abs_()
        nan_a, nan_b = low_a.isnan(), low_b.isnan()
    else:
        left, right = left.double(), right.double()
        same = left == right
        apart = (left - right).abs_()
        nan_a, nan_b = left.isnan(), right.isnan()
    same |= nan_a & nan_b
    apart = torch.where(same, 0.0, apart.nan_to_num_(nan=math.inf, posinf=math.inf))
    return Compared(same, apart, nan_a != nan_b)


def readable(value: Tensor) -> Tensor:
    """The value as a plain tensor, or its bytes where torch has no arithmetic for its dtype."""
    plain = bare(value)
    return plain.view(torch.uint8) if plain.dtype == _PACKED else plain


def _parts(value: Tensor) -> Tensor:
    """Real and imaginary parts as float64, in a last dimension of size 2."""
    return torch.view_as_real(value.to(torch.complex128).resolve_conj().resolve_neg())


def _halves(value: Tensor) -> tuple[Tensor, Tensor]:
    """Each number as high * 2**32 + low, both float64 of the sign of the number, and both exact.

    A number has one such pair only, so numbers are equal where their pairs are. Both halves of what is infinite are.
    """
    if value.dtype == torch.uint64:
        value = value.view(torch.int64)
        return ((value >> 32) & 0xFFFF_FFFF).double(), (value & 0xFFFF_FFFF).double()
    if value.dtype == torch.int64:
        high = torch.div(value, 1 << 32, rounding_mode="trunc")
        return high.double(), (value - (high << 32)).double()
    value = value.double()
    high = (value * 2.0**-32).trunc()
    return high, torch.where(value.isinf(), value, value - high * 2.0**32)


# ---------------------------------------------------------------------- units in the last place


def ulps(a: Any, b: Any, dtype_a: torch.dtype, dtype_b: torch.dtype) -> float | None:
    """Distance of two values in units in the last place of the narrower of two dtypes.

    The unit is the spacing of the dtype's numbers at the larger of the two magnitudes; None for
    integers, complex numbers and values that are not finite.

    >>> ulps(1.0, 1.0 + 2**-23, torch.float32, torch.float32)
    1.0
    """
    if not (dtype_a.is_floating_point and dtype_b.is_floating_point):
        return None
    if _PACKED in (dtype_a, dtype_b) or not (math.isfinite(a) and math.isfinite(b)):
        return None
    if a == b:
        return 0.0
    relative, least = max(map(spacing, (dtype_a, dtype_b)))
    _, exponent = math.frexp(max(abs(a), abs(b)))
    unit = max(Fraction(relative) * Fraction(2) ** (exponent - 1), Fraction(least))
    return float(abs(Fraction(a) - Fraction(b)) / unit)


def unit_at(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of a floating dtype's numbers at each magnitude; both float64.

    >>> unit_at(torch.tensor([1.0, 3.0], dtype=torch.float64), torch.bfloat16).tolist()
    [0.0078125, 0.015625]
    """
    relative, least = spacing(dtype)
    _, exponent = torch.frexp(magnitude.clamp(min=least / relative))
    return torch.ldexp(torch.full_like(magnitude, relative), exponent - 1)


@cache
def spacing(dtype: torch.dtype) -> tuple[float, float]:
    """How far apart the numbers of a floating dtype are: from 1.0 to the next, and where they are closest.

    It is read off the bits: what `torch.finfo` says of `float8_e5m2fnuz` is wrong.

    >>> spacing(torch.float16) == (2.0**-10, 2.0**-24)
    True
    """
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    one = torch.ones(1).to(dtype).view(bits)
    after_one, least = torch.cat([one + 1, torch.ones_like(one)]).view(dtype).double().tolist()
    return after_one - 1.0, least
