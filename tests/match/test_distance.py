"""How far apart two values are, held against what the formats of numbers say."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.match.distance import compare, spacing, ulps, unit_at

# --- Units in the last place -------------------------------------------------------------------------------

FORMATS = {
    torch.float16: (5, 10, 15, "ieee"),
    torch.bfloat16: (8, 7, 127, "ieee"),
    torch.float8_e5m2: (5, 2, 15, "ieee"),
    torch.float8_e4m3fn: (4, 3, 7, "all ones are NaN"),
    torch.float8_e4m3fnuz: (4, 3, 8, "no NaN but -0"),
    torch.float8_e5m2fnuz: (5, 2, 16, "no NaN but -0"),
}
"""Bits of exponent and of mantissa, the bias, and what is no number."""
WIDE = [torch.float32, torch.float64]


@functools.cache
def magnitudes(dtype: torch.dtype) -> list[Fraction]:
    """Every finite number from 0 up, worked out from its bits."""
    exponent_bits, mantissa_bits, bias, special = FORMATS[dtype]
    found: list[Fraction] = []
    for exponent in range(1 << exponent_bits):
        for mantissa in range(1 << mantissa_bits):
            last = exponent == (1 << exponent_bits) - 1
            if last and (
                special == "ieee" or (special == "all ones are NaN" and mantissa == (1 << mantissa_bits) - 1)
            ):
                continue
            whole = mantissa + ((1 << mantissa_bits) if exponent else 0)
            found.append(Fraction(whole) * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits))
    return found


def any_of(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Any finite number that is not negative."""
    numbers = magnitudes(dtype)
    return st.integers(0, len(numbers) - 1).map(lambda at: float(numbers[at]))


def next_after(magnitude: float, dtype: torch.dtype) -> Fraction:
    """The number of float32 or float64 that follows one of its own, by the bits; beyond the last one, as if it went on."""
    letters = "<f", "<I"
    if dtype == torch.float64:
        letters = "<d", "<Q"
    [bits] = struct.unpack(letters[1], struct.pack(letters[0], magnitude))
    [above] = struct.unpack(letters[0], struct.pack(letters[1], bits + 1))
    [below] = struct.unpack(letters[0], struct.pack(letters[1], bits - 1)) if bits else [0.0]
    here = Fraction(magnitude)
    return here + (here - Fraction(below)) if math.isinf(above) else Fraction(above)


def expected(a: float, b: float, dtype: torch.dtype) -> Fraction:
    """The distance in the spacing of the numbers from the larger magnitude upwards."""
    larger = max(abs(a), abs(b))
    if dtype in WIDE:
        return abs(Fraction(a) - Fraction(b)) / (next_after(larger, dtype) - Fraction(larger))
    numbers = magnitudes(dtype)
    at = min(bisect.bisect_right(numbers, Fraction(larger)), len(numbers) - 1)
    return abs(Fraction(a) - Fraction(b)) / (numbers[at] - numbers[at - 1])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_torch_has_the_numbers_of_the_format(dtype):
    """Else the expectations below would be of another format."""
    bits = torch.arange(1 << (8 * dtype.itemsize - 1), dtype=torch.int32)
    bits = bits.to({1: torch.uint8, 2: torch.int16}[dtype.itemsize])
    values = bits.view(dtype).double()
    assert [Fraction(v) for v in values[values.isfinite()].tolist()] == magnitudes(dtype)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_neighbours_are_one_unit_apart(dtype):
    """All of them, subnormal ones too; where the unit doubles, the smaller number is half a unit away."""
    numbers = magnitudes(dtype)
    for a, b in itertools.pairwise(numbers):
        distance = ulps(float(a), float(b), dtype, dtype)
        assert distance in (1, 0.5)
        assert distance == expected(float(a), float(b), dtype)


@pytest.mark.parametrize("dtype", [*FORMATS, *WIDE], ids=str)
@given(st.data())
def test_any_two_numbers(dtype, data):
    if dtype in WIDE:
        numbers = st.floats(width=8 * dtype.itemsize, allow_nan=False, allow_infinity=False)
    else:
        numbers = st.builds(lambda m, s: s * m, any_of(dtype), st.sampled_from([1, -1]))
    a = data.draw(numbers)
    b = data.draw(st.one_of(numbers, st.just(-a)))
    distance = ulps(a, b, dtype, dtype)
    assert distance == (float(expected(a, b, dtype)) if a != b else 0)
    assert distance == ulps(b, a, dtype, dtype) == ulps(-a, -b, dtype, dtype)
    assert (distance == 0) == (a == b)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_next_float64_is_one_unit_away_or_half_a_larger_one(a):
    assert ulps(a, math.nextafter(a, math.inf), torch.float64, torch.float64) in (1, 0.5, None)


@pytest.mark.parametrize("narrow", FORMATS, ids=str)
@given(st.data())
def test_the_unit_is_that_of_the_narrower_dtype(narrow, data):
    limit = float(magnitudes(narrow)[-1])
    a = data.draw(any_of(narrow))
    b = data.draw(st.floats(-limit, limit))
    for wide in WIDE:
        found = ulps(a, b, narrow, wide)
        assert found == ulps(b, a, wide, narrow)
        assert found == pytest.approx(float(expected(a, b, narrow)), rel=1e-15)


def test_powers_of_two_alone():
    """The format of scales, float8_e8m0fnu: the next number above 2**n is 2**(n + 1), and there is no zero."""
    dtype = torch.float8_e8m0fnu
    values = torch.arange(255, dtype=torch.uint8).view(dtype).double().tolist()
    assert values == [2.0 ** (n - 127) for n in range(255)]
    for a, b in itertools.product(values[::9], values[::7]):
        larger = max(a, b)
        assert ulps(a, b, dtype, dtype) == float(abs(Fraction(a) - Fraction(b)) / Fraction(larger))
        assert (
            ulps(a, b, dtype, torch.float32) == ulps(a, b, torch.bfloat16, dtype) == ulps(a, b, dtype, dtype)
        )


@pytest.mark.parametrize("dtype", [*FORMATS, *WIDE], ids=str)
def test_zeros_of_either_sign_and_the_smallest_numbers(dtype):
    least = (
        float(magnitudes(dtype)[1])
        if dtype in FORMATS
        else math.ulp(0.0)
        if dtype == torch.float64
        else 2.0**-149
    )
    assert ulps(0.0, -0.0, dtype, dtype) == 0
    assert ulps(least, -0.0, dtype, dtype) == ulps(-least, 0.0, dtype, dtype) == 1
    assert ulps(least, -least, dtype, dtype) == 2
    assert ulps(3 * least, -least, dtype, dtype) == 4
    for odd in (math.nan, math.inf, -math.inf):
        assert (
            ulps(odd, least, dtype, dtype)
            is ulps(least, odd, dtype, dtype)
            is ulps(odd, odd, dtype, dtype)
            is None
        )


def test_there_is_no_unit_without_finite_floats():
    assert ulps(1.0, math.nan, torch.float32, torch.float32) is None
    assert ulps(1.0, math.inf, torch.float32, torch.float32) is None
    assert ulps(1, 2, torch.int64, torch.float32) is None
    assert ulps(1 + 1j, 2j, torch.complex64, torch.complex64) is None


@pytest.mark.parametrize("dtype", [*FORMATS, *WIDE], ids=str)
def test_units_at_many_magnitudes_are_those_of_one(dtype):
    relative, least = spacing(dtype)
    values = [0.0, least, least / relative, 1.0, math.nextafter(1.0, 0.0), math.nextafter(2.0, 0.0), 3.0]
    found = unit_at(torch.tensor(values, dtype=torch.float64), dtype).tolist()
    assert found == [least, least, least, relative, relative / 2, relative, relative * 2]


# --- Differences -------------------------------------------------------------------------------------------

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64,
    torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu, torch.float16, torch.bfloat16, torch.float32, torch.float64,
]  # fmt: skip


def numbers_of(dtype: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    """One value, of any bits."""
    if dtype == torch.bool:
        return st.booleans().map(lambda bit: torch.tensor([bit]))
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info = torch.iinfo(bits)
    edges = [info.min, info.min + 1, -1, 0, 1, 2**53, 2**53 + 1, info.max, 0x7C00, 0x7F800000, 0x7FF << 52]
    raw = st.one_of(
        st.sampled_from([edge for edge in edges if info.min <= edge <= info.max]),
        st.integers(max(info.min, -3), 3),
        st.integers(info.min, info.max),
    )
    return raw.map(lambda n: torch.tensor([n], dtype=bits).view(dtype))


@given(st.data())
def test_any_two_values_of_any_dtypes(data):
    """By exact arithmetic: the same where the numbers are, and apart by their difference, rounded once or twice."""
    dtype_a, dtype_b = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(DTYPES))
    a, b = data.draw(numbers_of(dtype_a)), data.draw(numbers_of(dtype_b))
    x, y = a.item(), b.item()
    for left, right, found in ((x, y, compare(a, b)), (y, x, compare(b, a))):
        nans = [isinstance(v, float) and math.isnan(v) for v in (left, right)]
        assert bool(found.nan_in_one) == (nans[0] != nans[1])
        assert bool(found.same) == (all(nans) or left == right)
        if found.same:
            assert found.apart.item() == 0
        elif all(map(math.isfinite, (left, right))):
            exact = abs(Fraction(left) - Fraction(right))
            assert found.apart.item() == pytest.approx(rounded(exact), rel=2**-52, abs=0)
        else:
            assert found.apart.item() == math.inf


def rounded(exact: Fraction) -> float:
    try:
        return float(exact)
    except OverflowError:
        return math.inf


def test_integers_beyond_what_float64_holds():
    a = torch.tensor([2**53, 2**53 + 1, -(2**63), 2**63 - 1, -(2**53) - 1])
    b = torch.tensor([2**53, 2**53, 2**63 - 1, 2**63 - 1, -(2**53)])
    found = compare(a, b)
    assert found.same.tolist() == [True, False, False, True, False]
    assert found.apart.tolist() == [0, 1, 2.0**64, 0, 1]
    unsigned = torch.tensor([2**64 - 1, 2**64 - 2], dtype=torch.uint64)
    assert compare(unsigned, torch.tensor([2**64 - 2, 2**64 - 1], dtype=torch.uint64)).apart.tolist() == [
        1,
        1,
    ]
    assert compare(unsigned, torch.tensor([-1, -2])).apart.tolist() == [2.0**64, 2.0**64]
    assert compare(
        torch.tensor([2**53 + 1]), torch.tensor([2.0**53], dtype=torch.float64)
    ).apart.tolist() == [1]


@pytest.mark.filterwarnings("ignore:ComplexHalf support")
def test_complex_numbers_of_half_precision():
    assert compare(torch.tensor([2], dtype=torch.complex32), torch.tensor([5.0])).apart.tolist() == [3]


def test_complex_numbers_are_compared_part_by_part():
    nan = math.nan
    a = torch.tensor([complex(nan, 1), complex(nan, 1), complex(1, 1), complex(0.0, -0.0), complex(1, nan)])
    b = torch.tensor([complex(nan, 1), complex(nan, 4), complex(4, 5), complex(-0.0, 0.0), complex(1, 2)])
    found = compare(a, b)
    assert found.same.tolist() == [True, False, False, True, False]
    assert found.apart.tolist() == [0, 3, 5, 0, math.inf]
    assert found.nan_in_one.tolist() == [False, False, False, False, True]
    assert compare(a.conj(), b.conj()).apart.tolist() == [0, 3, 5, 0, math.inf]
    assert compare(a[2:3], torch.tensor([1])).apart.tolist() == [1]
