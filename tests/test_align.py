"""Pairs of elements, and the gap between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.joined import joined, noise, padded

from forkpoint import Layout
from forkpoint.align import gap, index_of, pair_elements, scalar, ulps
from forkpoint.pairs import Pairs

FLOATS = st.floats(-1e300, 1e300)


def every(a: torch.Tensor) -> Pairs:
    index = np.arange(a.numel())
    return Pairs(index, index, np.zeros(len(index), dtype=np.int64))


# --- ULP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [1.0, 1.5, 0.75, 1e-3, 100.0, -3.0])
def test_the_next_number_is_one_unit_away(dtype, value):
    here = torch.tensor(value, dtype=dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    there = (here.view(bits) + 1).view(dtype)
    assert ulps(float(here), float(there), dtype, dtype) == 1


@given(FLOATS, FLOATS)
def test_units_of_float64_are_counted_exactly(a, b):
    count = ulps(a, b, torch.float64, torch.float64)
    assert count is not None
    assert (count == 0) == (a == b)
    assert ulps(b, a, torch.float64, torch.float64) == count
    assert ulps(a, math.nextafter(a, math.inf), torch.float64, torch.float64) in (1, 0)


def test_the_unit_is_that_of_the_narrower_dtype():
    assert ulps(1.0, 1.0 + 2**-7, torch.float32, torch.bfloat16) == 1
    assert ulps(1.0, 1.0 + 2**-10, torch.float32, torch.float16) == 1


def test_there_is_no_unit_without_finite_floats():
    assert ulps(1.0, math.nan, torch.float32, torch.float32) is None
    assert ulps(1.0, math.inf, torch.float32, torch.float32) is None
    assert ulps(1, 2, torch.int64, torch.float32) is None


# --- Gaps -----------------------------------------------------------------------------------------------


def test_a_gap_names_the_worst_and_counts_all():
    a, b = torch.tensor([[1.0, 2.0, -4.0, 3.0]]), torch.tensor([[1.0, 2.5, -4.0, 2.0]])
    found = gap(a, b, every(a))
    assert (found.differing, found.compared, found.first) == (2, 4, 1)
    assert (found.max_abs, found.max_rel) == (1.0, 0.25)
    assert found.absolute.tolist() == [0, 0.5, 0, 1]


def test_what_counts_as_equal():
    a = torch.tensor([float("nan"), 0.0, float("inf"), float("-inf")])
    b = torch.tensor([float("nan"), -0.0, float("inf"), float("-inf")])
    assert gap(a, b, every(a)).differing == 0
    assert gap(a, b, every(a)).max_abs == 0


@pytest.mark.parametrize("other", [float("nan"), float("inf")])
def test_one_value_alone_that_is_not_finite_is_infinitely_far(other):
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([other, 2.0])
    for x, y in ((a, b), (b, a)):
        found = gap(x, y, every(x))
        assert (found.differing, found.max_abs) == (1, math.inf)


def test_integers_bools_and_complex_numbers_have_gaps_too():
    a, b = torch.tensor([1, 5]), torch.tensor([1, 2])
    assert (gap(a, b, every(a)).max_abs, gap(a, b, every(a)).max_rel) == (3.0, 0.6)
    assert gap(a > 1, b > 2, every(a)).differing == 1
    z = torch.tensor([1 + 1j, 2 + 0j])
    assert gap(z, z.conj().resolve_conj(), every(z)).max_abs == 2
    assert gap(z, z, every(z)).differing == 0


def test_dtypes_are_compared_by_value():
    a = torch.tensor([1.0, 0.1])
    found = gap(a, a.bfloat16(), every(a))
    assert found.differing == 1
    assert found.max_abs == abs(float(a[1]) - float(a.bfloat16()[1]))


def test_a_gap_against_nothing_is_infinite_in_proportion():
    a, b = torch.zeros(2), torch.tensor([0.0, 1.0])
    assert gap(a, b, every(a)).max_rel == math.inf
    assert gap(a, a, every(a)).max_rel == 0


# --- Pairs -----------------------------------------------------------------------------------------------


def labelled(function, a, b, layout_a=None, layout_b=None):
    """The last values of both runs with their labels."""
    values = [[], []]

    def keep(which):
        def run(**inputs):
            value = function(**inputs)
            values[which].append(value)
            return value

        return run

    run = iter([keep(0), keep(1)])
    functions = {}

    def once(key, **inputs):
        if key not in functions:
            functions[key] = next(run)
        return functions[key](**inputs)

    found = joined(once, {"key": 0, **a}, {"key": 1, **b}, layout_a, layout_b)
    (left,), (right,) = values
    return (
        left, found.a.recorder.label_of(left), right, found.b.recorder.label_of(right), found.shared,
    )  # fmt: skip


def test_elements_are_paired_by_their_tokens():
    x = noise(2, 3, 7)
    b, layout = padded(x.flip(0), left=1)
    a, label_a, b, label_b, shared = labelled(
        lambda x, **_: x.mT.contiguous(), {"x": x}, {"x": b}, Layout.from_mask(torch.ones(2, 3)), layout
    )  # fmt: skip
    pairs = pair_elements(a, label_a, b, label_b, shared)
    assert len(pairs) == a.numel()
    assert gap(a, b, pairs).differing == 0
    places = {shared.place(pairs, i) for i in range(len(pairs))}
    assert places == {(s, p) for s in range(2) for p in range(3)}


def test_elements_of_weights_are_paired_by_query_and_key():
    x = noise(1, 3, 7)
    b, layout = padded(x, left=2)
    values = labelled(lambda x, **_: (x @ x.mT)[:, None].expand(1, 2, -1, -1).contiguous(), {"x": x}, {"x": b},
                      Layout.from_mask(torch.ones(1, 3)), layout)  # fmt: skip
    pairs = pair_elements(*values)
    assert len(pairs) == 18
    assert torch.allclose(values[0].reshape(-1)[pairs.a], values[2].reshape(-1)[pairs.b])


def test_what_has_no_token_is_paired_whole_or_not_at_all():
    a = noise(2, 3)
    found = joined(lambda x: x, {"x": noise(1, 3, 5)}, {"x": noise(1, 3, 5)})
    assert len(pair_elements(a, None, a, None, found.shared)) == 6
    other = pair_elements(a, None, noise(2, 4), None, found.shared)
    assert (len(other), other.reason) == (0, "shape [2, 3] in A, [2, 4] in B, and no token dimension known")


def test_other_sizes_at_one_token_are_not_paired():
    values = labelled(lambda x, n, **_: torch.cat([x] * n, -1), {"x": noise(1, 3, 5), "n": 1},
                      {"x": noise(1, 3, 5), "n": 2})  # fmt: skip
    pairs = pair_elements(*values)
    assert (len(pairs), pairs.reason) == (0, "other sizes a coordinate")


def test_one_vector_a_sample_is_paired_by_sample():
    x = noise(2, 3, 7)
    b, layout = padded(x, right=1)
    values = labelled(
        lambda x, **_: x[:, -1].clone(), {"x": x}, {"x": b}, Layout.from_mask(torch.ones(2, 3)), layout
    )
    pairs = pair_elements(*values)
    assert pairs.by_sample
    assert [values[4].place(pairs, i) for i in (0, 7)] == [(0, None), (1, None)]


def test_an_index_and_an_element():
    assert index_of(7, (2, 3, 4)) == (0, 1, 3)
    assert index_of(0, ()) == ()
    assert scalar(torch.tensor([[1.0, 0.1]]), 1) == float(torch.tensor(0.1))
    assert scalar(torch.tensor(True), 0) is True
