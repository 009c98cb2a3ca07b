"""The definition keeps its promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.capture.digest.tensors import filled

from forkpoint.capture.digest import definition

words = st.integers(0, definition.MASK)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
)
def test_every_pattern_of_a_narrow_float_has_the_right_class(dtype):
    bits = 8 * dtype.itemsize
    patterns = torch.arange(1 << bits, dtype=torch.int32).to(torch.int16 if bits == 16 else torch.uint8)
    values = patterns.view(dtype).float()
    canonical = [definition.canonical(pattern, dtype) for pattern in range(1 << bits)]
    one_nan = (1 << (bits - 1)) - 1
    for pattern, (value, result) in enumerate(zip(values.tolist(), canonical, strict=True)):
        if value != value:
            assert result == one_nan
        else:
            assert result == (pattern if value else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wide_floats(dtype):
    x = filled((2000,), dtype, 0)
    integers = x.view(torch.int32 if dtype is torch.float32 else torch.int64)
    bits = 8 * dtype.itemsize
    for value, pattern in zip(x.tolist(), integers.tolist(), strict=True):
        result = definition.canonical(pattern % (1 << bits), dtype)
        if value != value:
            assert result == (1 << (bits - 1)) - 1
        else:
            assert result == (pattern % (1 << bits) if value else 0)


def test_integers_and_floats_without_signed_zeros_keep_their_bits():
    for dtype in (torch.int32, torch.bool, torch.uint8, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz):
        assert definition.canonical(0x80, dtype) == 0x80


@given(a=words, b=words, key=words)
def test_one_changed_word_changes_both_lanes(a, b, key):
    first, second = definition.mix(a, key), definition.mix(b, key)
    assert (first[0] == second[0]) == (a == b)
    assert (first[1] == second[1]) == (a == b)


def test_packing():
    assert definition.pack(1, 0) == 1
    assert definition.pack(0, 1) == 1 << 32
    assert definition.pack(definition.MASK, definition.MASK) == -1
    assert definition.pack(1 << 32, 1 << 33) == 0


def test_words_are_little_endian_and_filled_with_zeros():
    assert definition.words(torch.tensor([1, 2, 3, 4, 5], dtype=torch.uint8)) == [0x04030201, 5]
    assert definition.words(torch.tensor([1.0, -2.0, 1.0], dtype=torch.bfloat16)) == [0xC0003F80, 0x3F80]
    assert definition.words(torch.tensor([1, -1])) == [1, 0, definition.MASK, definition.MASK]
    assert definition.words(torch.tensor([1 + 2j], dtype=torch.complex64)) == [0x3F800000, 0x40000000]


def test_parts_add_up():
    x = filled((60,), torch.float32, 5)
    whole = definition.rows(x, ())
    first_word = torch.tensor([0, 20, 40])
    parts = definition.rows(x.view(3, 20), (0,), first_word)
    assert definition.accumulate(parts, [0, 0, 0], 1) == whole
    assert definition.accumulate(reversed(parts), [0, -1, 0], 1) != whole


def test_the_digest_of_nothing_is_zero_and_of_zeros_is_not():
    assert definition.rows(torch.empty(2, 0), (0,)) == [0, 0]
    assert len({*definition.rows(torch.zeros(1, 1), (0,)), *definition.rows(torch.zeros(1, 2), (0,)), 0}) == 3


def test_a_grid_does_not_depend_on_where_its_cells_are():
    """The same weights with the key tokens at other columns give the same sums per query."""
    weights = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([4, 0, 3, 1, 5, 2], dtype=torch.int32)
    cells = definition.grid(weights, (0, 2, 3), positions)
    order = positions.argsort()
    moved = definition.grid(weights[..., order], (0, 2, 3), positions[order])
    query = [row for row in range(4) for _ in range(6)]
    assert definition.accumulate(cells, query, 4) == definition.accumulate(moved, query, 4)
    kept = definition.grid(weights[..., order], (0, 2, 3), positions)
    assert definition.accumulate(cells, query, 4) != definition.accumulate(kept, query, 4)


def test_gold():
    """Saved traces hold digests: a change of these numbers is a change of their format."""
    x = torch.arange(7.0)
    assert definition.rows(x, ()) == [GOLD["float32"]]
    assert definition.rows(x.bfloat16(), ()) == [GOLD["bfloat16"]]
    assert definition.rows(x.long(), ()) == [GOLD["int64"]]
    assert definition.grid(x, (), torch.tensor(3, dtype=torch.int32)) == [GOLD["grid"]]


GOLD = {
    "float32": -7651870399003615748,
    "bfloat16": 3586056705367228865,
    "int64": 265471134454691391,
    "grid": 5349643418162701277,
}
