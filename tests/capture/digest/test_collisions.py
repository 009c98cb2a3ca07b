"""Changes that a digest must notice, by the million."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forkpoint.capture import digest

GENERATOR = torch.Generator().manual_seed(20)
PAIRS = 1 << 20


def lanes(digests: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return digests & 0xFFFFFFFF, digests >> 32 & 0xFFFFFFFF


def noticed(a: torch.Tensor, b: torch.Tensor) -> None:
    """No two rows have one digest, and each lane alone collides no more often than chance has it."""
    changed = (a.view(torch.int32) != b.view(torch.int32)).any(1)
    one, other = digest.rows(a, (0,))[changed], digest.rows(b, (0,))[changed]
    assert len(one) > 0.9 * len(a)
    assert not (one == other).any()
    for lane, other_lane in zip(lanes(one), lanes(other), strict=True):
        assert int((lane == other_lane).sum()) <= 3  # 2**20 pairs, 2**32 values: 0.0002 expected


def normal(width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(PAIRS, width, generator=GENERATOR).to(dtype)


def positions(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two different columns for every row."""
    first = torch.randint(0, width, (PAIRS, 1), generator=GENERATOR)
    return first, (first + torch.randint(1, width, (PAIRS, 1), generator=GENERATOR)) % width


def changed_at(x: torch.Tensor, column: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return x.scatter(1, column, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_ulp(dtype):
    x = normal(8, dtype)
    integers = x.view(torch.int32 if dtype is torch.float32 else torch.int16)
    column, _ = positions(8)
    stepped = changed_at(integers, column, integers.gather(1, column) + 1)
    noticed(x, stepped.view(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sign_flips(dtype):
    x = normal(8, dtype)
    first, second = positions(8)
    one = changed_at(x, first, -x.gather(1, first))
    noticed(x, one)
    noticed(x, changed_at(one, second, -one.gather(1, second)))
    noticed(x, -x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_swaps_and_rotations(dtype):
    x = normal(8, dtype)
    first, second = positions(8)
    swapped = changed_at(x, first, x.gather(1, second))
    noticed(x, changed_at(swapped, second, x.gather(1, first)))
    noticed(x, x.roll(1, 1))
    noticed(x, x.flip(1))


def test_changes_that_cancel():
    x = normal(8)
    integers = x.view(torch.int32)
    first, second = positions(8)
    step = torch.randint(1, 1 << 20, (PAIRS, 1), generator=GENERATOR, dtype=torch.int32)
    up = changed_at(integers, first, integers.gather(1, first) + step)
    both = changed_at(up, second, integers.gather(1, second) - step)
    noticed(x, both.view(torch.float32))
    flipped = changed_at(integers, first, integers.gather(1, first) ^ step)
    both = changed_at(flipped, second, integers.gather(1, second) ^ step)
    noticed(x, both.view(torch.float32))


def test_small_integers():
    x = torch.randint(0, 2, (PAIRS, 64), generator=GENERATOR, dtype=torch.int32)
    noticed(x, x.roll(1, 1))
    noticed(x, 1 - x)
    ids = torch.randint(0, 50_000, (PAIRS, 4), generator=GENERATOR, dtype=torch.int32)
    noticed(ids, ids + 1)
    noticed(ids, ids.roll(1, 1))


def test_nan_against_a_number_and_against_another_nan():
    x = normal(8)
    column, _ = positions(8)
    nan = changed_at(x, column, torch.full((PAIRS, 1), torch.nan))
    noticed(x, nan)
    payload = nan.clone().view(torch.int32)
    other_nan = torch.where(nan.isnan(), payload ^ torch.tensor(-(1 << 31) + 77, dtype=torch.int32), payload)
    assert other_nan.view(torch.float32).isnan().any(1).all()
    assert torch.equal(digest.rows(nan, (0,)), digest.rows(other_nan.view(torch.float32), (0,)))


def test_zeros_of_both_signs_are_one():
    x = torch.zeros(100, 8)
    assert torch.equal(digest.rows(x, (0,)), digest.rows(-x, (0,)))


@pytest.mark.parametrize("n", [1 << 20, pytest.param(1 << 22, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", ["cancelling", "two small changes", "random"])
def test_collisions_are_as_rare_as_chance_has_it(family, n):
    """Among n slices, 32 bits collide about n**2 / 2**33 times; where one lane does, the other is free."""
    i = torch.arange(n, dtype=torch.int32)
    a, b = np.float32(0.7312).view(np.int32).item(), np.float32(-1.2215).view(np.int32).item()
    if family == "cancelling":
        words = torch.stack([a + i, b - i], 1)
    elif family == "two small changes":
        words = torch.stack([a + (i & 0x7FF), b + (i >> 11)], 1)
    else:
        words = torch.randint(-(1 << 31), 1 << 31, (n, 2), generator=GENERATOR, dtype=torch.int64).int()
    lane1, lane2 = (lane.numpy() for lane in lanes(digest.rows(words, (0,))))
    expected = n * n / 2**33  # 128, or 2,048
    for one, other in ((lane1, lane2), (lane2, lane1)):
        order = np.argsort(one, kind="stable")
        same = np.diff(one[order]) == 0
        assert 0.5 * expected < same.sum() < 1.5 * expected
        distance = np.diff(other[order])[same].astype(np.int32)
        assert (np.abs(distance.astype(np.int64)) < 1 << 20).sum() <= 8  # 1 expected of 2,048
        assert ((distance & 0xFF) == 0).sum() <= 30  # 8 expected of 2,048


def test_avalanche():
    """Each bit of a word flips each bit of the digest about every second time."""
    x = torch.randint(-(1 << 31), 1 << 31, (1 << 14, 3), generator=GENERATOR, dtype=torch.int64).int()
    before = digest.rows(x, (0,)).numpy()
    for bit in range(32):
        y = x.clone()
        y[:, 1] ^= 1 << bit if bit < 31 else -(1 << 31)
        flipped = before ^ digest.rows(y, (0,)).numpy()
        shares = [(flipped >> place & 1).mean() for place in range(64)]
        assert min(shares) > 0.2
        assert max(shares) < 0.8


def test_keys_of_a_grid_tell_positions_and_heads_apart():
    """No element of one (head, key) has the key of another: 64 heads times 4,096 positions."""
    ones = torch.ones(64, 4096)
    positions = torch.arange(4096, dtype=torch.int32)
    per_cell = torch.stack([digest.grid(head[None], (1,), positions) for head in ones])
    assert torch.equal(per_cell[0], per_cell[1])  # one head each: the same index
    both = digest.grid(torch.rand(2, 4096, generator=GENERATOR), (1,), positions)
    assert both.unique().numel() == 4096
    cells = digest.grid(ones[:1].expand(1, 4096), (1,), positions)
    assert cells.unique().numel() == 4096
