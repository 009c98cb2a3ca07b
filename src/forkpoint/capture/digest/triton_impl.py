"""Digests on CUDA: many tensors in one launch, each word read once, no waiting and no allocation per tensor.

A block of threads digests one row, or a few short ones, in steps of ``BLOCK`` words. Which rows it has is read
from two tables that go to the device with one copy: a line per tensor, and a line per group of ``GROUP`` blocks
which says the tensor and the first block in it, so that the table stays short and is found by a division
instead of a search.

Two habits of Triton's compiler decide the speed, both seen in its axis analysis: loads of 16 bytes need
addresses that are multiples of 16 by construction, so the tables count 4-byte words in units of 4 from an
aligned pointer (``anchor``) wherever the tensor allows it; and an integer division per word is slower than
the digest itself, so runs are found by a multiplication with a precomputed reciprocal, once per 4 words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.digest import torch_impl
from forkpoint.capture.digest.backend import Table
from forkpoint.capture.digest.plan import LANES, Kind, check, find, kind, merged, packed
from forkpoint.capture.digest.triton_kernels import COLUMNS, digest_grid, digest_rows

BLOCK = 1024
"""Words that a block of threads reads in one step."""
WARPS = 4
GROUP = 16
"""Blocks per line of the table of groups."""
REPEAT = 4
"""Rows, or sets of short ones, that a block of threads digests one after the other; divides ``GROUP``."""
_LONG_ROW = 1 << 16
"""Words above which a row is shared by several blocks."""
_CELLS = 256
"""Cells of a grid per block."""
_ROWS_PER_BLOCK = np.array([1, 4, 16])
_COLUMNS: int = getattr(COLUMNS, "value", COLUMNS)
_LANES = np.array([[lanes.sign, lanes.above, lanes.shift] for lanes in LANES], dtype=np.int64)


def rows(x: Tensor, row_dims: Sequence[int], first_word: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.rows`."""
    plan = find(x, row_dims)
    if not plan.direct or x.data_ptr() % 4 or x.is_neg():
        x, plan = torch_impl.pack_rows(x, row_dims), packed(plan)
    starts = first_word.to(x.device, torch.int32).contiguous() if first_word is not None else None
    entry = (x.data_ptr(), 0, starts.data_ptr() if starts is not None else 0, *plan.fields)
    return digest_table(np.array([entry], dtype=np.int64), x.device)


def digest_table(
    table: Table, device: torch.device, block: int = 0, warps: int = 0, repeat: int = 0
) -> Tensor:
    """The digests of all entries of a table, computed on the current stream."""
    with _on(device):
        return _digest_table(table, device, block or BLOCK, warps or WARPS, repeat or REPEAT)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever its arguments' device is."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _digest_table(table: Table, device: torch.device, block: int, warps: int, repeat: int) -> Tensor:
    n_rows = int(table[:, 3].sum())
    out = torch.zeros(n_rows, dtype=torch.int64, device=device)
    variants = _variants(table, block)
    groups, launches = _groups(table, variants)
    lines = np.zeros((len(table), _COLUMNS), dtype=np.int64)
    staged = torch.empty(lines.size + groups.size, dtype=torch.int64, device=device)
    _fill(lines, table, variants, staged.data_ptr())
    _copy(np.concatenate([lines.ravel(), groups.ravel()]), staged)
    anchor, out_words, staged_groups = staged.view(torch.int32), out.view(torch.int32), staged[lines.size :]
    for variant, first, count in launches:
        digest_rows[(count * GROUP // repeat,)](
            anchor,
            out_words,
            staged,
            staged_groups,
            first,
            PIECES=variant.pieces,
            UNIT=variant.unit,
            FLOAT64=variant.float64,
            STARTS=variant.starts,
            SPLIT=variant.split,
            ROWS=variant.rows,
            VECTORS=block // variant.rows // 4,
            GROUP=GROUP,
            REPEAT=repeat,
            num_warps=warps,
        )
    return out


class _Variant(NamedTuple):
    """What a variant of the kernel is compiled for."""

    rows: int
    """Rows per block of threads, so that short rows fill it."""
    unit: int
    """4 if all vectors of 4 words lie in one run and at multiples of 16 bytes, else 1."""
    pieces: bool
    """Whether a row is more than one run."""
    float64: bool
    starts: bool
    """Whether rows have first words."""
    split: bool
    """Whether blocks share a row."""


class _Variants(NamedTuple):
    """The fields of `_Variant` for every line of a table, and what follows from them."""

    fields: Table
    steps: Table
    """Steps in one part of a row."""
    parts: Table
    """Blocks that share a row."""


def _variants(table: Table, block: int) -> _Variants:
    address, _, starts, _, words, kinds, _, *strides, run = table.T
    outer_stride, inner_stride, a_size, b_size, a_stride, b_stride = strides
    pieces = a_size * b_size > 1
    aligned = (address % 16 == 0) & (np.stack([run, outer_stride, inner_stride]) % 4 == 0).all(0)
    reach = a_size * a_stride + b_size * b_stride + run
    simple = (run >= 8) & (words * run < 1 << 32) & (reach < 1 << 31)
    simple &= (a_stride % 4 == 0) & (b_stride % 4 == 0)
    unit = np.where(aligned & (simple | ~pieces), 4, 1)

    # As few rows per block as leave little of it idle: 95% is good enough.
    width = block // _ROWS_PER_BLOCK[:, None]
    used = words / np.maximum(1, -(-words // width) * width)
    rows = _ROWS_PER_BLOCK[np.argmax(np.minimum(used, 0.95), axis=0)]
    split = words > _LONG_ROW
    rows = np.where(split, 1, rows)
    steps = np.where(split, _LONG_ROW // block, -(-words // (block // rows)))
    parts = np.where(split, -(-words // _LONG_ROW), 1)
    fields = np.stack([rows, unit, pieces, kinds == Kind.FLOAT64, starts != 0, split], axis=1)
    return _Variants(fields, steps, parts)


def _groups(table: Table, variants: _Variants) -> tuple[Table, list[tuple[_Variant, int, int]]]:
    """The table of groups; and for each variant in use, the first of its groups and how many there are."""
    blocks = -(-table[:, 3] // variants.fields[:, 0]) * variants.parts * (table[:, 4] > 0)
    counts = -(-blocks // GROUP)
    kinds, variant = np.unique(variants.fields, axis=0, return_inverse=True)
    variant = variant.reshape(-1)  # numpy 2.0 keeps an axis here
    order = np.argsort(variant, kind="stable")
    ends = np.cumsum(counts[order])
    groups = np.empty((int(counts.sum()), 2), dtype=np.int64)
    groups[:, 0] = np.repeat(order, counts[order])
    groups[:, 1] = (np.arange(len(groups)) - np.repeat(ends - counts[order], counts[order])) * GROUP
    per_variant = np.bincount(variant, weights=counts, minlength=len(kinds)).astype(np.int64)
    starts = np.cumsum(per_variant) - per_variant
    launches = [
        (_Variant(rows, unit, bool(pieces), bool(float64), bool(first), bool(split)), start, count)
        for (rows, unit, pieces, float64, first, split), start, count in zip(
            kinds.tolist(), starts.tolist(), per_variant.tolist(), strict=True
        )
        if count
    ]
    return groups, launches


def _fill(lines: Table, table: Table, variants: _Variants, anchor: int) -> None:
    """Writes the table of tensors as the kernel reads it."""
    address, target, starts, n_rows, words, kinds, inner, *strides, run = table.T
    outer_stride, inner_stride, a_size, b_size, a_stride, b_stride = strides
    unit = variants.fields[:, 1]
    lines[:, 0] = (address - anchor) // 4 // unit
    lines[:, 1], lines[:, 2] = target, (starts - anchor) // 4
    lines[:, 3], lines[:, 4] = n_rows, words
    lines[:, 5:8] = _LANES[kinds]
    lines[:, 8], lines[:, 9], lines[:, 10] = inner, outer_stride // unit, inner_stride // unit
    lines[:, 11], lines[:, 12] = run // unit, _reciprocal(run // unit)
    lines[:, 13], lines[:, 14] = b_size, np.where(a_size > 1, _reciprocal(b_size), 0)
    lines[:, 15], lines[:, 16] = a_stride // unit, b_stride // unit
    lines[:, 17], lines[:, 18] = variants.parts, variants.steps


def _reciprocal(divisor: Table) -> Table:
    """What to multiply with and take the upper 32 bits of, instead of dividing; exact below 2**32 / divisor."""
    return -(-(1 << 32) // np.maximum(divisor, 1))


def _copy(values: Table, target: Tensor) -> None:
    """Copies to the device without waiting for it: through pinned memory, which torch keeps until it is read."""
    if target.device.type == "cpu":  # Triton's interpreter
        target.copy_(torch.from_numpy(values))
        return
    pinned = torch.empty(len(values), dtype=torch.int64, pin_memory=True)
    pinned.numpy()[:] = values
    target.copy_(pinned, non_blocking=True)


def grid(x: Tensor, grid_dims: Sequence[int], keys: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.grid`."""
    check(x, grid_dims)
    sizes = [x.shape[dim] for dim in grid_dims]
    x = torch_impl.real(x)
    if keys is not None:
        keys = keys.to(x.device, torch.int32).expand(sizes)
    walk = _walk(x, grid_dims, keys)
    if walk is None or x.numel() == 0:
        return torch_impl.grid(x, grid_dims, keys)
    item = x.dtype.itemsize
    raw = x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[item])
    out = torch.zeros(math.prod(sizes), dtype=torch.int64, device=x.device)
    staged = torch.empty(len(walk), dtype=torch.int64, device=x.device)
    _copy(walk, staged)
    with _on(x.device):
        digest_grid[(int(walk[0] * walk[1]), -(-int(walk[2]) // _CELLS))](
            raw,
            keys if keys is not None else staged,
            out,
            staged,
            KEYS=keys is not None,
            ITEM=item,
            FLOAT64=x.dtype == torch.float64,
            CELLS=_CELLS,
            num_warps=WARPS,
        )
    return out


def _walk(x: Tensor, grid_dims: Sequence[int], keys: Tensor | None) -> Table | None:
    """What `digest_grid` reads, or None if there are more dimensions than it walks.

    The sizes of three grid dimensions and of two dimensions of a cell's elements, their strides, the keys'
    strides, and the lanes of a word.
    """
    sizes, strides = x.shape, x.stride()
    wide = [i for i, dim in enumerate(grid_dims) if sizes[dim] > 1]
    inner = merged([(sizes[dim], strides[dim]) for dim in range(x.dim()) if dim not in grid_dims])
    if len(wide) > 3 or len(inner) > 2:
        return None
    cells = [
        (sizes[grid_dims[i]], strides[grid_dims[i]], keys.stride()[i] if keys is not None else 0)
        for i in wide
    ]
    cells = [(1, 0, 0)] * (3 - len(cells)) + cells
    inner = [(1, 0)] * (2 - len(inner)) + inner
    walk = [size for size, *_ in cells] + [size for size, _ in inner]
    walk += [stride for _, stride, _ in cells] + [stride for _, stride in inner]
    walk += [*(stride for *_, stride in cells), *_LANES[kind(x.dtype)].tolist()]
    return np.array(walk, dtype=np.int64)


accumulate = torch_impl.accumulate
