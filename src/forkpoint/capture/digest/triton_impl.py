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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.digest import definition, torch_impl
from forkpoint.capture.digest.backend import Table
from forkpoint.capture.digest.plan import LANES, Kind, check, find, kind, merged, packed

try:
    import triton
    import triton.language as tl
except ImportError:  # doctest reads this module where there is no Triton; `backend` never does
    triton: Any = None
    tl: Any = None

_jit: Any = triton.jit if triton else lambda function: function
_constant: Any = tl.constexpr if triton else int

INDEX_FACTOR = _constant(definition.INDEX_FACTOR)
INDEX_OFFSET = _constant(definition.INDEX_OFFSET)
POSITION_FACTOR1 = _constant(definition.POSITION_FACTORS[0])
POSITION_FACTOR2 = _constant(definition.POSITION_FACTORS[1])
MIX_FACTOR1 = _constant(definition.MIX_FACTORS[0])
MIX_FACTOR2 = _constant(definition.MIX_FACTORS[1])
MIX_FACTOR3 = _constant(definition.MIX_FACTORS[2])
_LANES = np.array([[lanes.sign, lanes.above, lanes.shift] for lanes in LANES], dtype=np.int64)
INFINITY_HIGH = _constant(definition.LARGEST_NUMBER[torch.float64] >> 32)

BLOCK = 1024
"""Words that a block of threads reads in one step."""
WARPS = 4
GROUP = 16
"""Blocks per line of the table of groups."""
_LONG_ROW = 1 << 16
"""Words above which a row is shared by several blocks, if there are few rows."""
_CELLS = 256
_COLUMNS = 20
TABLE_COLUMNS = _constant(_COLUMNS)


@_jit
def _mix(word, key):
    """`definition.mix`."""
    keyed = (word ^ (word >> 13)) * MIX_FACTOR1 + key
    middle = keyed ^ (keyed >> 15)
    lane1 = middle * MIX_FACTOR2
    lane2 = (middle ^ key) * MIX_FACTOR3
    return lane1 ^ (lane1 >> 15), lane2 ^ (lane2 >> 16)


@_jit
def _canonical(word, sign, above, shift):
    """`definition.canonical` of all elements in a word; see `plan.Lanes`."""
    unsigned = sign ^ 0xFFFFFFFF  # `~` overflows in the interpreter
    magnitude = word & unsigned
    nan = (magnitude + above) & sign
    word = word & ((magnitude + unsigned) | unsigned)
    return (word & (nan ^ 0xFFFFFFFF)) | (nan - (nan >> shift))


@_jit
def _canonical_pair(low, high):
    """`definition.canonical` of a float64 in two words."""
    magnitude = high & 0x7FFFFFFF
    nan = (magnitude > INFINITY_HIGH) | ((magnitude == INFINITY_HIGH) & (low != 0))
    zero = (magnitude | low) == 0
    high = tl.where(nan, 0x7FFFFFFF, tl.where(zero, 0, high))
    return tl.where(nan, 0xFFFFFFFF, low), high


@_jit
def _offsets(vector, walk, PIECES: tl.constexpr, UNIT: tl.constexpr):
    """Where the words of some vectors lie from the start of their row, as [VECTORS, 4], in words.

    Of unit 4, a vector is in one run, which a reciprocal finds; of unit 1, each word is looked for.
    """
    run, run_reciprocal, b_size, b_reciprocal, a_stride, b_stride = walk
    inside = tl.arange(0, 4)[None, :]
    if not PIECES:
        offsets = (vector * 4)[:, None] + inside
    elif UNIT == 4:
        piece = tl.umulhi(vector.to(tl.uint32), run_reciprocal)
        a = tl.umulhi(piece, b_reciprocal).to(tl.int32)
        b = piece.to(tl.int32) - a * b_size
        start = a * a_stride.to(tl.int32) + b * b_stride.to(tl.int32)
        offsets = ((start + vector - piece.to(tl.int32) * run) * 4)[:, None] + inside
    else:
        word = (vector * 4)[:, None] + inside
        piece = word // run
        offsets = (piece // b_size) * a_stride + (piece % b_size) * b_stride + (word - piece * run)
    return offsets


@_jit
def _step(
    row_pointers,
    row_keys,
    walk,
    lanes,
    step,
    words,
    MASKED: tl.constexpr,
    PIECES: tl.constexpr,
    UNIT: tl.constexpr,
    FLOAT64: tl.constexpr,
    ROWS: tl.constexpr,
    VECTORS: tl.constexpr,
):
    """The mixed words of one step, as two times [ROWS, VECTORS, 4]."""
    vector = step * VECTORS + tl.arange(0, VECTORS)
    index = (vector * 4)[:, None] + tl.arange(0, 4)[None, :]
    pointers = row_pointers[:, None, None] + _offsets(vector, walk, PIECES, UNIT)[None, :, :]
    if UNIT == 4:  # a mask per vector, since one per word would split the load
        there = (vector < words // 4)[None, :, None]
    else:
        there = (index < words)[None, :, :]
    there = tl.broadcast_to(there, [ROWS, VECTORS, 4])
    if MASKED:
        word = tl.load(pointers, mask=there, other=0).to(tl.uint32, bitcast=True)
    else:
        word = tl.load(pointers).to(tl.uint32, bitcast=True)
    if FLOAT64:
        low, high = tl.split(tl.reshape(word, [ROWS, VECTORS, 2, 2]))
        low, high = _canonical_pair(low, high)
        word = tl.reshape(tl.join(low, high), [ROWS, VECTORS, 4])
    else:
        sign, above, shift = lanes
        word = _canonical(word, sign, above, shift)
    key = (index.to(tl.uint32) * INDEX_FACTOR)[None, :, :] + row_keys[:, None, None]
    lane1, lane2 = _mix(word, key)
    if MASKED:
        lane1, lane2 = tl.where(there, lane1, 0), tl.where(there, lane2, 0)
    return lane1, lane2


@_jit
def _digest_rows(
    anchor,
    out,
    table,
    groups,
    first_group,
    PIECES: tl.constexpr,
    UNIT: tl.constexpr,
    FLOAT64: tl.constexpr,
    STARTS: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    VECTORS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One block of threads: ``ROWS`` rows of one tensor, or a part of their words if they are split."""
    group = groups + 2 * (first_group + tl.program_id(0) // GROUP)
    line = table + tl.load(group) * TABLE_COLUMNS
    block = tl.load(group + 1).to(tl.int32) + tl.program_id(0) % GROUP
    n_rows, words = tl.load(line + 3).to(tl.int32), tl.load(line + 4).to(tl.int32)
    full = words // (4 * VECTORS)
    first, last = 0, full
    tail = full * (4 * VECTORS) < words
    if SPLIT:
        parts, steps = tl.load(line + 17).to(tl.int32), tl.load(line + 18).to(tl.int32)
        first = block % parts * steps
        block = block // parts
        last = tl.minimum(first + steps, full)
        tail = tail & (first + steps > full)
    if block * ROWS >= n_rows:
        return

    rows = tl.minimum(block * ROWS + tl.arange(0, ROWS), n_rows - 1)  # what is read twice is not stored
    inner = tl.load(line + 8).to(tl.int32)
    place = tl.load(line) + (rows // inner) * tl.load(line + 9) + (rows % inner) * tl.load(line + 10)
    pointers = anchor + place * UNIT
    keys = tl.full([ROWS], INDEX_OFFSET, tl.uint32)
    if STARTS:
        starts = tl.load(anchor + tl.load(line + 2) + rows).to(tl.uint32, bitcast=True)
        keys += starts * INDEX_FACTOR
    # Loads stay where they are written: in the loop, they would be repeated.
    lanes = (
        tl.load(line + 5).to(tl.uint32),
        tl.load(line + 6).to(tl.uint32),
        tl.load(line + 7).to(tl.uint32),
    )
    walk = (
        tl.load(line + 11).to(tl.int32),
        tl.load(line + 12).to(tl.uint32),
        tl.load(line + 13).to(tl.int32),
        tl.load(line + 14).to(tl.uint32),
        tl.load(line + 15),
        tl.load(line + 16),
    )
    lanes1 = tl.zeros([ROWS, VECTORS, 4], tl.uint32)
    lanes2 = tl.zeros([ROWS, VECTORS, 4], tl.uint32)
    for step in range(first, last):
        lane1, lane2 = _step(
            pointers, keys, walk, lanes, step, words, False, PIECES, UNIT, FLOAT64, ROWS, VECTORS
        )
        lanes1 += lane1
        lanes2 += lane2
    if tail:
        lane1, lane2 = _step(
            pointers, keys, walk, lanes, full, words, True, PIECES, UNIT, FLOAT64, ROWS, VECTORS
        )
        lanes1 += lane1
        lanes2 += lane2

    sum1 = tl.sum(tl.sum(lanes1.to(tl.int32, bitcast=True), 2), 1)
    sum2 = tl.sum(tl.sum(lanes2.to(tl.int32, bitcast=True), 2), 1)
    stored = block * ROWS + tl.arange(0, ROWS) < n_rows
    target = out + 2 * (tl.load(line + 1) + rows)
    if SPLIT:
        tl.atomic_add(target, sum1, mask=stored, sem="relaxed")
        tl.atomic_add(target + 1, sum2, mask=stored, sem="relaxed")
    else:
        tl.store(target, sum1, mask=stored)
        tl.store(target + 1, sum2, mask=stored)


@_jit
def _digest_grid(
    x,
    positions,
    out,
    walk,
    KEYS: tl.constexpr,
    ITEM: tl.constexpr,
    FLOAT64: tl.constexpr,
    CELLS: tl.constexpr,
):
    """One block of threads: up to ``CELLS`` cells of one line of a grid, all their elements one by one."""
    n_inner, line = tl.load(walk + 1).to(tl.int32), tl.load(walk + 2).to(tl.int32)
    outer, inner = tl.program_id(0) // n_inner, tl.program_id(0) % n_inner
    cells = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    there = cells < line
    pointers = x + outer * tl.load(walk + 5) + inner * tl.load(walk + 6) + cells * tl.load(walk + 7)
    keys = tl.full([CELLS], INDEX_OFFSET, tl.uint32)
    if KEYS:
        places = outer * tl.load(walk + 10) + inner * tl.load(walk + 11) + cells * tl.load(walk + 12)
        spread = (
            tl.load(positions + places, mask=there, other=0).to(tl.uint32, bitcast=True) * POSITION_FACTOR1
        )
        keys += (spread ^ (spread >> 15)) * POSITION_FACTOR2

    n_outer_elements, n_inner_elements = tl.load(walk + 3).to(tl.int32), tl.load(walk + 4).to(tl.int32)
    outer_stride, inner_stride = tl.load(walk + 8), tl.load(walk + 9)
    sign, above = tl.load(walk + 13).to(tl.uint32), tl.load(walk + 14).to(tl.uint32)
    shift = tl.load(walk + 15).to(tl.uint32)
    lanes1 = tl.zeros([CELLS], tl.uint32)
    lanes2 = tl.zeros([CELLS], tl.uint32)
    for f in range(n_outer_elements * n_inner_elements):
        place = (f // n_inner_elements) * outer_stride + (f % n_inner_elements) * inner_stride
        value = tl.load(pointers + place, mask=there, other=0)
        if ITEM == 8:
            low, high = value.to(tl.uint32), (value >> 32).to(tl.uint32)
            if FLOAT64:
                low, high = _canonical_pair(low, high)
            lane1, lane2 = _mix(low, keys)
            lanes1 += lane1
            lanes2 += lane2
            keys += INDEX_FACTOR
            lane1, lane2 = _mix(high, keys)
        else:
            word = value.to(tl.uint32) & (0xFFFFFFFF >> (32 - 8 * ITEM))
            lane1, lane2 = _mix(_canonical(word, sign, above, shift), keys)
        lanes1 += lane1
        lanes2 += lane2
        keys += INDEX_FACTOR
    target = out + tl.program_id(0).to(tl.int64) * line + cells
    tl.store(target, (lanes2.to(tl.int64) << 32) | lanes1.to(tl.int64), mask=there)


# --- Host ---------------------------------------------------------------------------------------------


def rows(x: Tensor, row_dims: Sequence[int], first_word: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.rows`."""
    plan = find(x, row_dims)
    if not plan.direct or x.data_ptr() % 4 or x.is_neg():
        x, plan = torch_impl.pack_rows(x, row_dims), packed(plan)
    starts = first_word.to(x.device, torch.int32).contiguous() if first_word is not None else None
    entry = (x.data_ptr(), 0, starts.data_ptr() if starts is not None else 0, *plan.fields)
    return digest_table(np.array([entry], dtype=np.int64), x.device)


def digest_table(table: Table, device: torch.device, block: int = 0, warps: int = 0) -> Tensor:
    """The digests of all entries of a table, computed on the current stream."""
    n_rows = int(table[:, 3].sum())
    out = torch.zeros(n_rows, dtype=torch.int64, device=device)
    block = block or BLOCK
    variants = _variants(table, block)
    groups, launches = _groups(table, variants)
    lines = np.zeros((len(table), _COLUMNS), dtype=np.int64)
    staged = torch.empty(lines.size + groups.size, dtype=torch.int64, device=device)
    _fill(lines, table, variants, staged.data_ptr())
    _copy(np.concatenate([lines.ravel(), groups.ravel()]), staged)
    anchor, out_words, staged_groups = staged.view(torch.int32), out.view(torch.int32), staged[lines.size :]
    for variant, first, count in launches:
        _digest_rows[(count * GROUP,)](
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
            num_warps=warps or WARPS,
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

    choices = np.array([1, 4, 16])[:, None]
    width = block // choices
    used = words / np.maximum(1, -(-words // width) * width)
    rows = choices[
        np.argmax(np.minimum(used, 0.95), axis=0), 0
    ]  # the first that is good enough, else the best
    split = words > _LONG_ROW
    rows = np.where(split, 1, rows)
    steps = np.where(split, _LONG_ROW // block, -(-words // (block // rows)))
    parts = np.where(split, -(-words // _LONG_ROW), 1)
    return _Variants(
        np.stack([rows, unit, pieces, kinds == Kind.FLOAT64, starts != 0, split], axis=1), steps, parts
    )


def _groups(table: Table, variants: _Variants) -> tuple[Table, list[tuple[_Variant, int, int]]]:
    """The table of groups; and for each variant in use, the first of its groups and how many there are."""
    blocks = -(-table[:, 3] // variants.fields[:, 0]) * variants.parts * (table[:, 4] > 0)
    counts = -(-blocks // GROUP)
    kinds, variant = np.unique(variants.fields, axis=0, return_inverse=True)
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
    _digest_grid[(int(walk[0] * walk[1]), -(-int(walk[2]) // _CELLS))](
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
    """What `_digest_grid` reads: the sizes of three grid dimensions and of two dimensions of a cell's elements,
    their strides, the keys' strides, and the lanes of a word. None if there are more dimensions.
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
