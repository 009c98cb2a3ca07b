"""Numbers can be read back exactly, and two that differ never look alike."""

from __future__ import annotations

import math
import struct

from hypothesis import assume, given
from hypothesis import strategies as st

from forkpoint.report.numbers import common_prefix, exact, pair, share, size, times, ulps

floats = st.floats(allow_nan=False, allow_infinity=False)


@given(floats)
def test_an_exact_text_reads_back_to_the_same_bits(value: float) -> None:
    assert struct.pack("d", float(exact(value))) == struct.pack("d", value)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_neighbours_in_float32_have_other_texts(value: float) -> None:
    bits = struct.unpack("<i", struct.pack("<f", value))[0]
    neighbour = struct.unpack("<f", struct.pack("<i", bits + 1))[0]
    assume(math.isfinite(neighbour))
    assert exact(value) != exact(neighbour)


def test_what_is_no_real_number_is_shown_too() -> None:
    assert exact(float("inf")) == "inf"
    assert exact(1 + 2j) == "(1+2j)"
    assert exact(True) == "True"
    assert ulps(float("inf")) == "inf"
    assert size(float("nan")) == "nan"


@given(floats, floats)
def test_a_pair_that_differs_looks_different(a: float, b: float) -> None:
    texts = pair(a, b)
    assert (texts[0] == texts[1]) == (a == b)


@given(floats)
def test_a_pair_of_neighbours_looks_different(a: float) -> None:
    b = math.nextafter(a, math.inf)
    assume(math.isfinite(b))
    texts = pair(a, b)
    assert texts[0] != texts[1]


@given(st.integers(1, 10**12), st.integers(1, 10**12))
def test_a_share_is_0_or_100_percent_only_if_it_is(part: int, more: int) -> None:
    assert share(part, part + more)[:-2] not in {"0", "100"}


@given(st.floats(1e-30, 1e30))
def test_times_keeps_three_digits(factor: float) -> None:
    assert math.isclose(float(times(factor).replace(",", "")), factor, rel_tol=5.001e-3)


@given(st.text(), st.text(), st.text())
def test_the_common_prefix_is_common_and_longest(start: str, a: str, b: str) -> None:
    left, right = start + a, start + b
    shared = common_prefix(left, right)
    assert left[:shared] == right[:shared]
    assert shared == min(len(left), len(right)) or left[shared] != right[shared]
