"""What a digest is: slow, obvious, and the judge of every faster implementation.

A slice of a tensor is a sequence of 4-byte words: its elements in row-major order, as raw little-endian
bytes, cut every four bytes and filled up with zeros at the end. So two bfloat16 values share a word, four
bools do, and a float64 gives two words. The digest of a slice holds two lanes of 32 bits, packed as
``lane1 | lane2 << 32`` into a signed 64-bit integer. Each lane is the sum, modulo 2**32, of the mixed words::

    slice  = w0 w1 w2 ...
    lane i = mix_i(w0, key 0) + mix_i(w1, key 1) + mix_i(w2, key 2) + ...

Why this shape:

- A sum lets digests of the parts of a slice be added lane by lane, in any order and on any device.
- The key of a word depends on its index, so a permutation inside a slice changes the digest.
- For a fixed key both mixers are bijections of the word: one changed word is always noticed.
- Both mixers are far from linear, so that two changes which cancel in a sum don't cancel here; and the
  second lane is mixed from the middle of the first, not from its end: mixed from its end, it collided in
  one of 2**18 of the slices whose first lanes collided, where chance is one in 2**32.
- All arithmetic is on 32 bits, which is what GPUs and SIMD units multiply fast.

Two values that count as equal have one digest: before it is hashed, -0.0 becomes +0.0 and every NaN becomes
one NaN, whose bits are all set but the sign (what NVIDIA's GPUs return for an invalid operation). This holds
for float16, bfloat16, float32, float64, complex types, and the 8-bit floats with signed zeros
(``float8_e4m3fn``, ``float8_e5m2``). The other 8-bit floats have one NaN and one zero: nothing to do.
Packed 4-bit floats are taken as raw bytes, so -0.0 differs from 0.0 there.

>>> import torch
>>> hex(rows(torch.tensor([[1.0, -0.0], [1.0, 0.0]]), (0,))[0])
'0x1a104cd576bb6f91'
>>> digests = rows(torch.tensor([[1.0, -0.0], [1.0, 0.0], [0.0, 1.0]]), (0,))
>>> digests[0] == digests[1], digests[0] == digests[2]
(True, False)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch

MASK = 0xFFFFFFFF

INDEX_FACTOR = 0x9E3779B1
INDEX_OFFSET = 0x68E31DA4
POSITION_FACTORS = (0x85EBCA77, 0xC2B2AE3D)
MIX_FACTORS = (0x21F0AAAD, 0xD35A2D97, 0xB5297A4D)
"""Odd, hence invertible modulo 2**32. The two of the first lane are those of the mixer "lowbias32"
(Chris Wellons, hash-prospector, 2018), the index factor is the golden ratio's."""

LARGEST_NUMBER: dict[torch.dtype, int] = {
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F80_0000,
    torch.float64: 0x7FF0_0000_0000_0000,
    torch.float8_e4m3fn: 0x7E,
    torch.float8_e5m2: 0x7C,
}
"""Per dtype with a sign bit: the largest magnitude, as bits, that is a number. What lies above is NaN."""


def mix(word: int, key: int) -> tuple[int, int]:
    """The two lanes' contributions of one word."""
    first, second, third = MIX_FACTORS
    word ^= word >> 13  # by 16, the sign flips of both halves of a word would cancel: bfloat16 loses 18 bits
    keyed = (word * first + key) & MASK
    middle = keyed ^ (keyed >> 15)
    lane1 = (middle * second) & MASK
    lane2 = ((middle ^ key) * third) & MASK
    return lane1 ^ (lane1 >> 15), lane2 ^ (lane2 >> 16)


def index_key(index: int) -> int:
    """The key of the word at an index of its slice."""
    return (index * INDEX_FACTOR + INDEX_OFFSET) & MASK


def position_key(position: int) -> int:
    """What a position (say, of the key token of an attention weight) adds to the key of a word."""
    spread = (position * POSITION_FACTORS[0]) & MASK
    spread ^= spread >> 15
    return (spread * POSITION_FACTORS[1]) & MASK


def digest(keyed_words: Iterable[tuple[int, int]]) -> int:
    """The digest of words, each given with its key."""
    lane1 = lane2 = 0
    for word, key in keyed_words:
        mixed = mix(word, key)
        lane1 += mixed[0]
        lane2 += mixed[1]
    return pack(lane1, lane2)


def pack(lane1: int, lane2: int) -> int:
    """Two lanes, reduced modulo 2**32, as one signed 64-bit integer."""
    packed = (lane1 & MASK) | (lane2 & MASK) << 32
    return packed - (1 << 64) if packed >> 63 else packed


def canonical(bits: int, dtype: torch.dtype) -> int:
    """The bits of an element with -0.0 replaced by +0.0 and any NaN by the one NaN."""
    if dtype not in LARGEST_NUMBER:
        return bits
    sign = 1 << (8 * dtype.itemsize - 1)
    magnitude = bits & (sign - 1)
    if magnitude > LARGEST_NUMBER[dtype]:
        return sign - 1
    return bits if magnitude else 0


def elements(x: torch.Tensor) -> list[int]:
    """The canonical bits of all elements, in row-major order; a complex element counts as two."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    copy = x.resolve_neg().detach().cpu().clone(memory_format=torch.contiguous_format)
    raw = bytes(copy.flatten().view(torch.uint8).tolist())
    size = x.dtype.itemsize
    chunks = (raw[start : start + size] for start in range(0, len(raw), size))
    return [canonical(int.from_bytes(chunk, "little"), x.dtype) for chunk in chunks]


def words(x: torch.Tensor) -> list[int]:
    """The words of a slice."""
    size = x.dtype.itemsize // (2 if x.is_complex() else 1)
    raw = b"".join(bits.to_bytes(size, "little") for bits in elements(x))
    return [int.from_bytes(raw[start : start + 4], "little") for start in range(0, len(raw), 4)]


def rows(x: torch.Tensor, row_dims: Sequence[int], first_word: torch.Tensor | None = None) -> list[int]:
    """One digest per index of ``row_dims``, of the slice over all other dimensions."""
    digests = []
    for row, index in enumerate(itertools.product(*(range(x.shape[dim]) for dim in row_dims))):
        start = int(first_word[row]) if first_word is not None else 0
        at = dict(zip(row_dims, index, strict=True))
        piece = x[tuple(at.get(dim, slice(None)) for dim in range(x.dim()))]
        digests.append(digest((word, index_key(start + i)) for i, word in enumerate(words(piece))))
    return digests


def grid(x: torch.Tensor, grid_dims: Sequence[int], keys: torch.Tensor | None = None) -> list[int]:
    """One digest per index of ``grid_dims``, whose words are single elements, not packed.

    An element of up to four bytes is one word, filled up with zeros; a longer one gives two words or, if
    complex, four. The key of a word comes from its index among the words of its cell and from the cell's
    entry in ``keys``.
    """
    sizes = [x.shape[dim] for dim in grid_dims]
    positions = keys.expand(sizes).flatten().tolist() if keys is not None else None
    digests = []
    for cell, index in enumerate(itertools.product(*(range(size) for size in sizes))):
        extra = position_key(positions[cell]) if positions is not None else 0
        at = dict(zip(grid_dims, index, strict=True))
        piece = x[tuple(at.get(dim, slice(None)) for dim in range(x.dim()))]
        size = x.dtype.itemsize // (2 if x.is_complex() else 1)
        cell_words: list[int] = []
        for bits in elements(piece):
            cell_words += [bits & MASK] if size <= 4 else [bits & MASK, bits >> 32]
        digests.append(digest((word, (index_key(i) + extra) & MASK) for i, word in enumerate(cell_words)))
    return digests


def accumulate(digests: Sequence[int], index: Sequence[int], size: int) -> list[int]:
    """Lane-wise sums of the digests that share an index; those with index -1 are dropped."""
    lanes = [[0, 0] for _ in range(size)]
    for value, cell in zip(digests, index, strict=True):
        if cell >= 0:
            lanes[cell][0] += value & MASK
            lanes[cell][1] += (value >> 32) & MASK
    return [pack(lane1, lane2) for lane1, lane2 in lanes]
