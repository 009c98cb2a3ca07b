"""Digests in plain torch, for any device: the fallback where neither numba nor Triton serves.

Works on int32 tensors, whose multiplications wrap, in chunks that stay in the cache of a CPU and within a
bounded memory on other devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from forkpoint.capture.digest import definition
from forkpoint.capture.digest.plan import LANES, ElementType, check, kind

_CHUNK_WORDS = {"cpu": 1 << 15}
_CHUNK_WORDS_ELSEWHERE = 1 << 24


def _signed(value: int) -> int:
    """A 32-bit pattern as the int32 of the same bits."""
    return value - (1 << 32) if value >> 31 else value


_INDEX_FACTOR, _INDEX_OFFSET = _signed(definition.INDEX_FACTOR), _signed(definition.INDEX_OFFSET)
_MIX = tuple(map(_signed, definition.MIX_FACTORS))
_POSITION = tuple(map(_signed, definition.POSITION_FACTORS))


@torch.no_grad()
def rows(x: Tensor, row_dims: Sequence[int], first_word: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.rows`."""
    check(x, row_dims)
    words = pack_rows(x, row_dims)
    first = first_word.to(words.device, torch.int32).reshape(-1) if first_word is not None else None
    return digest_packed(words, kind(x.dtype), first)


@torch.no_grad()
def grid(x: Tensor, grid_dims: Sequence[int], keys: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.grid`."""
    check(x, grid_dims)
    cells, dtype = cell_words(x, grid_dims)
    positions = None
    if keys is not None:
        sizes = [x.shape[dim] for dim in grid_dims]
        positions = keys.to(x.device, torch.int32).expand(sizes).reshape(-1)
    n_cells, n_words = cells.shape
    out = torch.zeros(n_cells, dtype=torch.int64, device=x.device)
    if n_words == 0:
        return out
    step = max(1, _chunk(x.device) // max(1, n_words))
    index = _index_keys(n_words, x.device)
    for start in range(0, n_cells, step):
        words = _canonical(cells[start : start + step], kind(dtype))
        key = index
        if positions is not None:
            spread = positions[start : start + step, None] * _POSITION[0]
            spread = _xorshift(spread, 15) * _POSITION[1]
            key = index + spread
        out[start : start + step] = _sum(words, key)
    return out


@torch.no_grad()
def accumulate(digests: Tensor, index: Tensor, size: int) -> Tensor:
    """See `forkpoint.capture.digest.accumulate`."""
    cell = (
        index.to(digests.device, torch.int64).reshape(-1).clamp(min=-1) + 1
    )  # what is dropped meets in cell 0
    digests = digests.reshape(-1)
    lanes = torch.zeros(2, size + 1, dtype=torch.int64, device=digests.device)
    lanes[0].index_add_(0, cell, digests & definition.MASK)
    lanes[1].index_add_(0, cell, digests >> 32 & definition.MASK)
    return _pack(lanes[0, 1:], lanes[1, 1:])


def real(x: Tensor) -> Tensor:
    """The tensor with its values as they lie in memory: complex parts as a last dimension, no lazy negation."""
    x = x.detach()
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    return x.resolve_neg()


def pack_rows(x: Tensor, row_dims: Sequence[int]) -> Tensor:
    """The words of every slice as int32[rows, words], contiguous, each row filled up with zero bytes.

    A copy, except where the rows lie like this already.
    """
    n_rows = math.prod(x.shape[dim] for dim in row_dims)
    if x.dtype is torch.bool and x.numel() == n_rows > 0:  # a mask: its rows are its elements, in order
        return x.view(torch.uint8).to(torch.int32, memory_format=torch.contiguous_format).view(n_rows, 1)
    x = real(x)
    dims = [*row_dims, *(dim for dim in range(x.dim()) if dim not in row_dims)]
    n_elements = math.prod(x.shape[dim] for dim in dims[len(row_dims) :])
    if n_rows == 0 or n_elements == 0:
        return torch.zeros(n_rows, 0, dtype=torch.int32, device=x.device)
    flat = x.permute(dims).reshape(-1)
    n_bytes = n_elements * x.dtype.itemsize
    if n_bytes % 4 == 0:
        return _viewed(flat, torch.int32).view(n_rows, -1)
    octets = _viewed(flat, torch.uint8).view(n_rows, n_bytes)
    return torch.constant_pad_nd(octets, (0, -n_bytes % 4)).view(torch.int32)


def cell_words(x: Tensor, grid_dims: Sequence[int]) -> tuple[Tensor, torch.dtype]:
    """The elements of every cell as int32[cells, words], one word or two each; and the elements' dtype."""
    n_cells = math.prod(x.shape[dim] for dim in grid_dims)
    x = real(x)
    dims = [*grid_dims, *(dim for dim in range(x.dim()) if dim not in grid_dims)]
    n_elements = math.prod(x.shape[dim] for dim in dims[len(grid_dims) :])
    if n_cells == 0 or n_elements == 0:
        return torch.zeros(n_cells, 0, dtype=torch.int32, device=x.device), x.dtype
    flat = x.permute(dims).reshape(-1)
    if x.dtype.itemsize >= 4:
        return _viewed(flat, torch.int32).view(n_cells, -1), x.dtype
    narrow = {1: torch.uint8, 2: torch.int16}[x.dtype.itemsize]
    words = _viewed(flat, narrow).to(torch.int32) & ((1 << 8 * x.dtype.itemsize) - 1)
    return words.view(n_cells, -1), x.dtype


def _viewed(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """The bytes of a tensor of one dimension as another dtype; a copy where its address or stride is odd."""
    aligned = (
        flat.storage_offset() * flat.dtype.itemsize % dtype.itemsize == 0 == flat.data_ptr() % dtype.itemsize
    )
    if not aligned or flat.stride() != (1,):
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).view(dtype)


def digest_packed(words: Tensor, kind: ElementType, first_word: Tensor | None = None) -> Tensor:
    """The digests of int32[rows, words]."""
    n_rows, n_words = words.shape
    out = torch.zeros(n_rows, dtype=torch.int64, device=words.device)
    chunk = _chunk(words.device)
    width = min(max(1, n_words), chunk)
    height = max(1, chunk // width)
    for left in range(0, n_words, width):
        block = words[:, left : left + width]
        keys = _index_keys(block.shape[1], words.device, left)
        for top in range(0, n_rows, height):
            piece, key = _canonical(block[top : top + height], kind), keys
            if first_word is not None:
                key = keys + first_word[top : top + height, None] * _INDEX_FACTOR
            part = _sum(piece, key)
            out[top : top + height] = part if left == 0 else _add(out[top : top + height], part)
    return out


def _chunk(device: torch.device) -> int:
    return _CHUNK_WORDS.get(device.type, _CHUNK_WORDS_ELSEWHERE)


def _index_keys(count: int, device: torch.device, start: int = 0) -> Tensor:
    index = torch.arange(start, start + count, dtype=torch.int32, device=device)
    return index * _INDEX_FACTOR + _INDEX_OFFSET


def _canonical(words: Tensor, kind: ElementType) -> Tensor:
    if kind is ElementType.RAW:
        return words
    if kind is ElementType.FLOAT64:
        return _canonical_pairs(words)
    sign, above, shift = _signed(LANES[kind].sign), LANES[kind].above, LANES[kind].shift
    ones = LANES[kind].sign >> shift
    magnitude = words & ~sign
    nan = magnitude + above & sign
    words = words & (magnitude + ~sign | ~sign)
    return words & ~nan | nan - (nan >> shift & ones)


def _canonical_pairs(words: Tensor) -> Tensor:
    values = words.reshape(-1).view(torch.int64)
    magnitude = values & 0x7FFF_FFFF_FFFF_FFFF
    values = torch.where(magnitude == 0, 0, values)
    nan = magnitude > definition.LARGEST_NUMBER[torch.float64]
    return torch.where(nan, 0x7FFF_FFFF_FFFF_FFFF, values).view(torch.int32).view(words.shape)


def _xorshift(x: Tensor, shift: int) -> Tensor:
    """``x ^ x >> shift`` with zeros shifted in, which int32 doesn't do by itself."""
    return x ^ (x >> shift & (1 << 32 - shift) - 1)


def _sum(words: Tensor, keys: Tensor) -> Tensor:
    """The digests of int32[rows, words] whose keys broadcast to the same shape."""
    middle = _xorshift(_xorshift(words, 13) * _MIX[0] + keys, 15)
    lane1 = _xorshift(middle * _MIX[1], 15).sum(1, dtype=torch.int64)
    lane2 = _xorshift((middle ^ keys) * _MIX[2], 16).sum(1, dtype=torch.int64)
    return _pack(lane1, lane2)


def _pack(lane1: Tensor, lane2: Tensor) -> Tensor:
    return lane1 & definition.MASK | lane2 << 32


def _add(a: Tensor, b: Tensor) -> Tensor:
    return _pack((a & definition.MASK) + (b & definition.MASK), (a >> 32) + (b >> 32))
