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

import functools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.digest import torch_impl
from forkpoint.capture.digest.backend import Table
from forkpoint.capture.digest.plan import LANES, Kind, check, find, kind, merged, packed
from forkpoint.capture.digest.triton_kernels import digest_grid, digest_rows

BLOCK = 256
"""Words that a block of threads reads in one step."""
WARPS = 1
GROUP = 16
"""Blocks per line of the table of groups."""
REPEAT = 8
"""Sets of short rows that a block of threads digests one after the other, since what it reads from the tables takes as
long to arrive as one of them; divides ``GROUP``. Long rows have a block each."""
_LONG_ROW = 1 << 16
"""Words above which a row is shared by several blocks."""
_CELLS = 256
"""Cells of a grid per block."""
_ROWS_PER_BLOCK = (1, 4, 16)
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
        return _digest_table(table, device, block or BLOCK, warps or WARPS, repeat)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever its arguments' device is."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _digest_table(table: Table, device: torch.device, block: int, warps: int, repeat: int) -> Tensor:
    aligned, starts = table[:, 0] % 16 == 0, table[:, 2] != 0
    known = _template(table[:, 3:].tobytes(), aligned.tobytes(), starts.tobytes(), block)
    out = torch.zeros(known.rows, dtype=torch.int64, device=device)
    lines, groups = known.lines.copy(), known.groups_on(device)
    staged = torch.empty(lines.size, dtype=torch.int64, device=device)
    anchor = staged.data_ptr()
    lines[:, 0] = (table[:, 0] - anchor) // 4 // known.units
    lines[:, 1] = table[:, 1]
    lines[:, 2] = (table[:, 2] - anchor) // 4
    _copy(lines, staged)
    words, out_words = staged.view(torch.int32), out.view(torch.int32)
    for variant, first, count in known.launches:
        times = repeat or (1 if variant.rows == 1 else REPEAT)
        digest_rows[(count * GROUP // times,)](
            words,
            out_words,
            staged,
            groups,
            first,
            PIECES=variant.pieces,
            UNIT=variant.unit,
            FLOAT64=variant.float64,
            STARTS=variant.starts,
            SPLIT=variant.split,
            ROWS=variant.rows,
            VECTORS=block // variant.rows // 4,
            GROUP=GROUP,
            REPEAT=times,
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


class _Line(NamedTuple):
    """A line of the table of tensors, without what differs from tensor to tensor, and how it is launched."""

    line: Table
    variant: int
    """Its number in `_variants`."""
    unit: int
    groups: int
    """How many groups of blocks it takes."""


@dataclass(frozen=True)
class _Template:
    """All of a table but what depends on where things lie, for all flushes of like tensors: a layer is as the next."""

    lines: Table
    units: Table
    """Of each line, see `_Line`."""
    rows: int
    groups: Table
    launches: list[tuple[_Variant, int, int]]
    """For each variant in use, the first of its groups and how many there are."""
    _on: dict[tuple[torch.device, int], Tensor] = field(
        default_factory=dict[tuple[torch.device, int], Tensor]
    )

    def groups_on(self, device: torch.device) -> Tensor:
        """The table of groups on a device, where it stays for the next time on the same stream."""
        key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        found = self._on.get(key)
        if found is None:
            found = self._on[key] = torch.empty(self.groups.size, dtype=torch.int64, device=device)
            _copy(self.groups, found)
        return found


_variants: dict[_Variant, int] = {}
"""The variants in use, which are few, and their numbers."""


@functools.lru_cache(maxsize=64)
def _template(plans: bytes, aligned: bytes, starts: bytes, block: int) -> _Template:
    """The table of tensors as the kernel reads it, and what is launched for it."""
    fields = np.frombuffer(plans, dtype=np.int64).reshape(len(aligned), -1)
    found = [
        _line(plan.tobytes(), bool(whole), bool(first), block)
        for plan, whole, first in zip(fields, aligned, starts, strict=True)
    ]
    variants, units, counts = np.array([line[1:] for line in found], dtype=np.int64).reshape(-1, 3).T
    groups, launches = _groups(variants, counts)
    return _Template(
        np.array([line.line for line in found]), units, int(fields[:, 0].sum()), groups, launches
    )


@functools.lru_cache(maxsize=1 << 14)
def _line(plan: bytes, aligned: bool, starts: bool, block: int) -> _Line:
    fields = np.frombuffer(plan, dtype=np.int64).tolist()
    n_rows, words, kind, inner, outer_stride, inner_stride, a_size, b_size, a_stride, b_stride, run = fields
    pieces = a_size * b_size > 1
    whole = aligned and all(stride % 4 == 0 for stride in (run, outer_stride, inner_stride))
    reach = a_size * a_stride + b_size * b_stride + run
    simple = run >= 8 and words * run < 1 << 32 and reach < 1 << 31
    simple = simple and a_stride % 4 == 0 and b_stride % 4 == 0
    unit = 4 if whole and (simple or not pieces) else 1

    split = words > _LONG_ROW
    rows = 1 if split else _rows_per_block(words, block)
    steps = _LONG_ROW // block if split else -(-words // (block // rows))
    parts = -(-words // _LONG_ROW) if split else 1
    blocks = -(-n_rows // rows) * parts if words else 0
    variant = _Variant(rows, unit, pieces, kind == Kind.FLOAT64, starts, split)
    line = np.array(
        [
            0, 0, 0, n_rows, words, *_LANES[kind], inner, outer_stride // unit, inner_stride // unit,
            run // unit, _reciprocal(run // unit), b_size, _reciprocal(b_size) if a_size > 1 else 0,
            a_stride // unit, b_stride // unit, parts, steps, 0,
        ],
        dtype=np.int64,
    )  # fmt: skip
    return _Line(line, _variants.setdefault(variant, len(_variants)), unit, -(-blocks // GROUP))


def _rows_per_block(words: int, block: int) -> int:
    """As few as leave little of a block idle: 95% is good enough."""
    used = [
        words / max(1, -(-words // width) * width) for width in (block // rows for rows in _ROWS_PER_BLOCK)
    ]
    best = max(min(share, 0.95) for share in used)
    return next(rows for rows, share in zip(_ROWS_PER_BLOCK, used, strict=True) if min(share, 0.95) == best)


def _groups(variants: Table, counts: Table) -> tuple[Table, list[tuple[_Variant, int, int]]]:
    """The table of groups; and for each variant in use, the first of its groups and how many there are."""
    order = np.argsort(variants, kind="stable")
    sorted_counts = counts[order]
    ends = np.cumsum(sorted_counts)
    groups = np.empty((int(ends[-1]), 2), dtype=np.int64)
    groups[:, 0] = np.repeat(order, sorted_counts)
    groups[:, 1] = (np.arange(len(groups)) - np.repeat(ends - sorted_counts, sorted_counts)) * GROUP
    numbers = list(_variants)
    launches: list[tuple[_Variant, int, int]] = []
    first = 0
    for number, count in enumerate(np.bincount(variants, weights=counts).astype(np.int64).tolist()):
        if count:
            launches.append((numbers[number], first, count))
        first += count
    return groups, launches


def _reciprocal(divisor: int) -> int:
    """What to multiply with and take the upper 32 bits of, instead of dividing; exact below 2**32 / divisor."""
    return -(-(1 << 32) // max(divisor, 1))


def _copy(table: Table, target: Tensor) -> None:
    """Copies to the device without waiting for it: through pinned memory, which torch keeps until it is read."""
    values = table.reshape(-1)
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
