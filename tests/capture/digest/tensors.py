"""Small tensors of every dtype and layout, with more special values than chance would give."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
    torch.complex64,
    torch.complex128,
]

# Per width in bytes: zeros of both signs, infinities, NaNs of several payloads, denormals, one.
SPECIAL = {
    1: [0x00, 0x80, 0x7F, 0xFF, 0x7C, 0x7E, 0x7D, 0xFD, 0x01, 0x81],
    2: [
        0x0000,
        0x8000,
        0x7F80,
        0xFF80,
        0x7FC0,
        0x7F81,
        0xFFFF,
        0x7C00,
        0x7C01,
        0xFE00,
        0x0001,
        0x8001,
        0x3F80,
    ],
    4: [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0xFFC12345, 1, 0x80000001],
    8: [
        0,
        1 << 63,
        0x7FF0000000000000,
        0xFFF0000000000000,
        0x7FF8000000000000,
        0x7FF0000000000001,
        0x7FF0000100000000,
        0xFFFFFFFFFFFFFFFF,
        1,
        (1 << 63) + 1,
        1 << 32,
    ],
}


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int, special: float = 0.3) -> Tensor:
    """Random bits, of which a share is special."""
    generator = torch.Generator().manual_seed(seed)
    count = math.prod(shape)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    width = dtype.itemsize // (2 if dtype.is_complex else 1)
    count *= 2 if dtype.is_complex else 1
    raw = torch.randint(0, 256, (count, width), generator=generator, dtype=torch.uint8)
    patterns = [list(value.to_bytes(width, "little")) for value in SPECIAL[width]]
    chosen = torch.tensor(patterns, dtype=torch.uint8)[
        torch.randint(0, len(patterns), (count,), generator=generator)
    ]
    raw = torch.where(torch.rand(count, 1, generator=generator) < special, chosen, raw)
    return raw.flatten().view(dtype).reshape(shape)


@st.composite
def tensors(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES, most: int = 400) -> Tensor:
    """A tensor, possibly empty, transposed, strided, expanded, or beginning at an odd address."""
    shape = draw(st.lists(st.integers(0, 9) | st.sampled_from([1, 2, 4, 8]), max_size=4).map(tuple))
    while math.prod(shape) > most:
        shape = shape[1:]
    x = filled(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 1 << 30)))
    if x.dim() and draw(st.booleans()):
        x = x.permute(draw(st.permutations(range(x.dim()))))
    if x.dim() and draw(st.booleans()):
        dim = draw(st.integers(0, x.dim() - 1))
        start, step = draw(st.integers(0, 2)), draw(st.integers(1, 3))
        x = x[(*[slice(None)] * dim, slice(start, None, step))]
    if x.numel() * 3 <= most and draw(st.booleans()):
        at = draw(st.integers(0, x.dim()))
        x = x.unsqueeze(at).expand(*x.shape[:at], draw(st.integers(1, 3)), *x.shape[at:])
    if x.is_complex() and draw(st.booleans()):
        x = x.conj()
    return x


@st.composite
def tensors_and_dims(draw: st.DrawFn, **options: Any) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor and ascending dimensions of it."""
    x = draw(tensors(**options))
    dims = draw(st.sets(st.integers(0, x.dim() - 1))) if x.dim() else set()
    return x, tuple(sorted(dims))


def rows_of(x: Tensor, dims: tuple[int, ...]) -> int:
    return math.prod(x.shape[dim] for dim in dims)
