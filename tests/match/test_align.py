"""Pairs of elements, and the gap between them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.joined import joined, noise, padded

from forkpoint import Layout
from forkpoint.match import align
from forkpoint.match.align import Gap, gap, index_of, pair_cells, pair_elements, pair_flat, rows, scalar
from forkpoint.match.pairs import Pairs


def every(a: torch.Tensor) -> Pairs:
    return Pairs.whole(a.numel())


# --- Gaps -----------------------------------------------------------------------------------------------


def test_a_gap_names_the_worst_and_counts_all():
    a, b = torch.tensor([[1.0, 2.0, -4.0, 3.0]]), torch.tensor([[1.0, 2.5, -4.0, 2.0]])
    found = gap(a, b, every(a))
    assert (found.differing, found.compared, found.first) == (2, 4, 1)
    assert (found.max_abs, found.max_rel) == (1.0, 0.25)
    assert found.largest.tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("beyond", [0.0, 1.0])
def test_a_gap_of_few_elements_is_that_of_many(dtype, beyond, monkeypatch):
    drawn = np.random.default_rng(0)
    odd = [math.nan, math.inf, -math.inf, -0.0, 0.5, 1e31]
    for width in (1, 3):
        for _ in range(40):
            a, b = (torch.from_numpy(drawn.integers(-2, 3, 30).astype(np.float64)) for _ in range(2))
            b = torch.where(torch.from_numpy(drawn.random(30) < 0.7), a, b)
            if dtype.is_floating_point:
                for value in (a, b):
                    value[torch.from_numpy(drawn.integers(0, 30, 3))] = float(drawn.choice(odd))
            a, b = a.to(dtype), b.to(dtype)
            cells = drawn.permutation(30 // width)[:6] * width
            in_turn = np.arange(6) * width
            pairs = Pairs(cells, in_turn, drawn.integers(0, 3, 6), inner_a=np.arange(width), inner_b=np.arange(width))  # fmt: skip
            at_once = gap(a, b, pairs, beyond)
            with monkeypatch.context() as patched:
                patched.setitem(align._CHUNK, "cpu", 1)
                in_chunks = gap(a, b, pairs, beyond)
            for field in dataclasses.fields(Gap):
                one, other = getattr(at_once, field.name), getattr(in_chunks, field.name)
                assert np.array_equal(one, other), (field.name, one, other)


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


EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize(
    "dtype", [*EIGHT_BITS, torch.float8_e8m0fnu, torch.uint16, torch.uint32, torch.uint64]
)
def test_dtypes_for_which_torch_has_little_arithmetic(dtype):
    a, b = torch.tensor([1.0, 2.0, 4.0]).to(dtype), torch.tensor([1.0, 8.0, 4.0]).to(dtype)
    assert gap(a, a, every(a)).differing == 0
    found = gap(a, b, every(a))
    assert (found.differing, found.first, found.max_abs, found.max_rel) == (1, 1, 6.0, 1.5)


def test_packed_numbers_are_compared_as_bytes():
    a = torch.tensor([0x12, 0x34], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    b = torch.tensor([0x12, 0x35], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    found = gap(a, b, every(a))
    assert (found.differing, found.first, scalar(b, 1)) == (1, 1, 0x35)


def test_integers_beyond_what_float64_holds():
    a, b = torch.tensor([2**53, 2**53 + 1]), torch.tensor([2**53, 2**53])
    found = gap(a, b, every(a))
    assert (found.differing, found.first, found.max_abs) == (1, 1, 1.0)


def test_nan_in_one_alone():
    a, nan = torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])
    for x, y in ((a, nan), (nan, a), (a.long(), nan), (a * 1j, nan * 1j)):
        assert gap(x, y, every(x)).nan_in_one
    assert not gap(nan, nan * 2, every(nan)).nan_in_one


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


def test_pairs_are_worked_out_once_for_the_same_labels_and_anew_for_other_shapes():
    x = noise(2, 3, 7)
    b, layout = padded(x, left=1)
    a, label_a, b, label_b, shared = labelled(
        lambda x, **_: x + 1, {"x": x}, {"x": b}, Layout.from_mask(torch.ones(2, 3)), layout
    )
    pairs = pair_elements(a, label_a, b, label_b, shared)
    assert pair_elements(a * 2, label_a, b.neg(), label_b, shared) is pairs
    narrow = pair_elements(a[..., :2], label_a, b[..., :2], label_b, shared)
    assert (len(pairs), len(narrow)) == (2 * 3 * 7, 2 * 3 * 2)
    assert narrow.b.tolist() == [8 * s + 2 * c + i for s in range(2) for c in range(1, 4) for i in range(2)]
    within = pair_elements(b, label_b, b, label_b, shared.within("b"))
    assert within.a.tolist() == within.b.tolist() == pairs.b.tolist()


def test_pairs_of_very_many_cells_are_not_kept(monkeypatch):
    monkeypatch.setattr("forkpoint.match.align.MAX_CELLS", 5)
    values = labelled(lambda x, **_: x + 1, {"x": noise(1, 3, 7)}, {"x": noise(1, 3, 7)})
    assert pair_elements(*values) is not pair_elements(*values)


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


# --- Fast against slow -----------------------------------------------------------------------------------


@st.composite
def keyed_shapes(draw):
    """A shape, and keys for the cells over some of its dimensions: now and then one comes twice."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    cells = tuple(size if draw(st.booleans()) else 1 for size in shape)
    return shape, cells


def keys_for(draw, cells, once):
    count = math.prod(cells)
    if once:
        return np.array(draw(st.permutations(range(-1, count + 3)))[:count], dtype=np.int64).reshape(cells)
    keys = draw(st.lists(st.integers(-1, 5), min_size=count, max_size=count))
    return np.array(keys, dtype=np.int64).reshape(cells)


@given(st.data(), st.booleans())
def test_pairing_cells_is_pairing_their_elements(data, once):
    (shape_a, cells_a), (shape_b, cells_b) = data.draw(keyed_shapes()), data.draw(keyed_shapes())
    keys_a, keys_b = (keys_for(data.draw, cells, once) for cells in (cells_a, cells_b))
    names = data.draw(st.sampled_from([3, 100]))
    fast = pair_cells(keys_a, shape_a, keys_b, shape_b, names)
    flat_a, flat_b = (
        np.broadcast_to(keys, shape).reshape(-1) for keys, shape in ((keys_a, shape_a), (keys_b, shape_b))
    )
    slow = pair_flat(flat_a, flat_b, names)
    assert (fast.a.tolist(), fast.b.tolist(), fast.reason) == (slow.a.tolist(), slow.b.tolist(), slow.reason)
    assert [fast.coordinate_of(i) for i in range(len(fast))] == slow.coordinates.tolist()
    assert [fast.at(i) for i in range(len(fast))] == list(zip(slow.a.tolist(), slow.b.tolist(), strict=True))
    assert fast.distinct.tolist() == sorted(set(slow.coordinates.tolist()))


SPECIAL = st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1.0, 1.0000001, -3.5, 1e31])


@given(st.data(), st.sampled_from([1, 4, 1 << 20]))
def test_the_gap_in_chunks_is_the_gap_of_every_pair(data, chunk):
    width = data.draw(st.integers(1, 3))
    cells = data.draw(st.integers(1, 4))
    size = width * cells
    a, b = (
        torch.tensor(data.draw(st.lists(SPECIAL, min_size=size, max_size=size)), dtype=torch.float64)
        for _ in range(2)
    )
    dense, apart = np.arange(width), np.arange(width) * cells
    inner = data.draw(st.sampled_from([dense, apart]))
    first = np.array(
        data.draw(
            st.permutations((np.arange(cells) * width if inner is dense else np.arange(cells)).tolist())
        )
    )
    coordinates = np.array(data.draw(st.lists(st.integers(0, 2), min_size=cells, max_size=cells)))
    pairs = Pairs(first, first, coordinates, inner_a=inner, inner_b=inner)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forkpoint.match.align._CHUNK", {"cpu": chunk})
        found = gap(a, b, pairs)
    x, y = a.numpy()[pairs.a], b.numpy()[pairs.b]
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    with np.errstate(invalid="ignore"):
        apart_by = np.where(same, 0.0, np.nan_to_num(np.abs(x - y), nan=np.inf, posinf=np.inf))
    order = sorted((int(coordinates[i // width]), int(pairs.a[i]), i) for i in np.flatnonzero(~same))
    assert (found.differing, found.compared) == (int((~same).sum()), size)
    assert found.first == (order[0][2] if order else -1)
    assert found.max_abs == apart_by.max()
    assert found.largest.tolist() == apart_by.reshape(cells, width).max(1).tolist()
    assert found.nan_in_one == bool((np.isnan(x) != np.isnan(y)).any())
    known = np.abs(x)[np.abs(x) < 1e30]
    scale = known.max(initial=0.0)
    assert found.max_rel == (apart_by.max() / scale if scale else (math.inf if apart_by.max() else 0.0))


@pytest.mark.parametrize("width", [1, 4, 6, 12, 24])
def test_no_chunk_breaks_up_what_belongs_together(width, monkeypatch):
    monkeypatch.setattr("forkpoint.match.align._CHUNK", {"cpu": 7})
    values = torch.arange(24.0)
    inner = np.arange(width)
    first = np.arange(24 // width) * width
    pairs = Pairs(first, first, np.zeros(len(first), dtype=np.int64), inner_a=inner, inner_b=inner)
    chunks = list(rows(values, values, pairs, together=4))
    assert all(left.numel() % 4 == 0 for _, left, _ in chunks)
    assert torch.equal(torch.cat([left.reshape(-1) for _, left, _ in chunks]), values)
    assert [start * width for start, *_ in chunks] == [
        sum(left.numel() for _, left, _ in chunks[:i]) for i in range(len(chunks))
    ]


def test_an_index_and_an_element():
    assert index_of(7, (2, 3, 4)) == (0, 1, 3)
    assert index_of(0, ()) == ()
    assert scalar(torch.tensor([[1.0, 0.1]]), 1) == float(torch.tensor(0.1))
    assert scalar(torch.tensor(True), 0) is True
