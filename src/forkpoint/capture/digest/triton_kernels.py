# ruff: noqa: ANN001, ANN201, ANN202, N803
# pyright: reportInvalidTypeForm=false, reportMissingParameterType=false, reportMissingImports=false
"""What runs on the GPU: the kernels that `triton_impl` launches, in Triton's Python.

Names in capitals are known when a kernel is compiled, all others when it runs. The numbers of the tables'
columns are those that `triton_impl` writes.
"""

from __future__ import annotations

from typing import Any

import torch

from forkpoint.capture.digest import definition

try:
    import triton
    import triton.language as tl
except ImportError:  # doctest reads this module where there is no Triton; `backend` never does
    triton: Any = None
    tl: Any = None

_jit: Any = triton.jit if triton else lambda function: function
_jit_rows: Any = triton.jit(do_not_specialize=["first_group"]) if triton else _jit
"""Else Triton compiles anew for a first group of 1, or of a multiple of 16."""
_constant: Any = tl.constexpr if triton else int

COLUMNS = _constant(18)
"""Of the table of tensors."""
INDEX_FACTOR = _constant(definition.INDEX_FACTOR)
INDEX_OFFSET = _constant(definition.INDEX_OFFSET)
POSITION_FACTOR1 = _constant(definition.POSITION_FACTORS[0])
POSITION_FACTOR2 = _constant(definition.POSITION_FACTORS[1])
MIX_FACTOR1 = _constant(definition.MIX_FACTORS[0])
MIX_FACTOR2 = _constant(definition.MIX_FACTORS[1])
MIX_FACTOR3 = _constant(definition.MIX_FACTORS[2])
INFINITY_HIGH = _constant(definition.LARGEST_NUMBER[torch.float64] >> 32)


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
def _there(step, words, UNIT: tl.constexpr, ROWS: tl.constexpr, VECTORS: tl.constexpr):
    """Which words of a step the rows have."""
    vector = step * VECTORS + tl.arange(0, VECTORS)
    if UNIT == 4:
        there = (vector < words // 4)[None, :, None]
    else:
        there = ((vector * 4)[:, None] + tl.arange(0, 4)[None, :] < words)[None, :, :]
    return tl.broadcast_to(there, [ROWS, VECTORS, 4])


@_jit
def _load(
    row_pointers,
    walk,
    step,
    words,
    PIECES: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    VECTORS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The words of one step, [ROWS, VECTORS, 4]."""
    vector = step * VECTORS + tl.arange(0, VECTORS)
    pointers = row_pointers[:, None, None] + _offsets(vector, walk, PIECES, UNIT)[None, :, :]
    if MASKED:
        return tl.load(pointers, mask=_there(step, words, UNIT, ROWS, VECTORS), other=0)
    return tl.load(pointers)


@_jit
def _mixed(
    word,
    row_keys,
    lanes,
    step,
    words,
    UNIT: tl.constexpr,
    FLOAT64: tl.constexpr,
    ROWS: tl.constexpr,
    VECTORS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """The words of one step mixed, as two times [ROWS, VECTORS, 4]."""
    word = word.to(tl.uint32, bitcast=True)
    vector = step * VECTORS + tl.arange(0, VECTORS)
    index = (vector * 4)[:, None] + tl.arange(0, 4)[None, :]
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
        there = _there(step, words, UNIT, ROWS, VECTORS)
        lane1, lane2 = tl.where(there, lane1, 0), tl.where(there, lane2, 0)
    return lane1, lane2


@_jit
def _digest(
    pointers,
    keys,
    walk,
    lanes,
    first,
    last,
    tail,
    words,
    PIECES: tl.constexpr,
    UNIT: tl.constexpr,
    FLOAT64: tl.constexpr,
    ROWS: tl.constexpr,
    VECTORS: tl.constexpr,
):
    """The mixed words of some steps, added up, and those of what is left if there is a tail.

    Each step is loaded while the one before it is mixed.
    """
    full = words // (4 * VECTORS)
    lanes1 = tl.zeros([ROWS, VECTORS, 4], tl.uint32)
    lanes2 = tl.zeros([ROWS, VECTORS, 4], tl.uint32)
    if first < last:
        word = _load(pointers, walk, first, words, PIECES, UNIT, ROWS, VECTORS, MASKED=False)
        for step in range(first + 1, last):
            ahead = _load(pointers, walk, step, words, PIECES, UNIT, ROWS, VECTORS, MASKED=False)
            lane1, lane2 = _mixed(
                word, keys, lanes, step - 1, words, UNIT, FLOAT64, ROWS, VECTORS, MASKED=False
            )
            lanes1 += lane1
            lanes2 += lane2
            word = ahead
        lane1, lane2 = _mixed(word, keys, lanes, last - 1, words, UNIT, FLOAT64, ROWS, VECTORS, MASKED=False)
        lanes1 += lane1
        lanes2 += lane2
    if tail:
        word = _load(pointers, walk, full, words, PIECES, UNIT, ROWS, VECTORS, MASKED=True)
        lane1, lane2 = _mixed(word, keys, lanes, full, words, UNIT, FLOAT64, ROWS, VECTORS, MASKED=True)
        lanes1 += lane1
        lanes2 += lane2
    return lanes1, lanes2


@_jit_rows
def digest_rows(
    anchor,
    out,
    places,
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
    REPEAT: tl.constexpr,
):
    """One block of threads: ``REPEAT`` times ``ROWS`` rows of one tensor, or parts of their words if they are split.

    What it reads from the tables takes as long to arrive as a row, so it is read once for all of them.
    """
    group = groups + 2 * (first_group + tl.program_id(0) // (GROUP // REPEAT))
    entry = tl.load(group)
    line = table + entry * COLUMNS
    first_block = tl.load(group + 1).to(tl.int32) + tl.program_id(0) % (GROUP // REPEAT) * REPEAT
    n_rows, words = tl.load(line + 1).to(tl.int32), tl.load(line + 2).to(tl.int32)
    base, starts = tl.load(places + 2 * entry), tl.load(places + 2 * entry + 1)
    inner = tl.load(line + 6).to(tl.int32)
    outer_stride, inner_stride = tl.load(line + 7), tl.load(line + 8)
    target = tl.load(line)
    # Loads stay where they are written: in the loop, they would be repeated.
    lanes = (
        tl.load(line + 3).to(tl.uint32),
        tl.load(line + 4).to(tl.uint32),
        tl.load(line + 5).to(tl.uint32),
    )
    walk = (
        tl.load(line + 9).to(tl.int32),
        tl.load(line + 10).to(tl.uint32),
        tl.load(line + 11).to(tl.int32),
        tl.load(line + 12).to(tl.uint32),
        tl.load(line + 13),
        tl.load(line + 14),
    )
    parts, steps = tl.load(line + 15).to(tl.int32), tl.load(line + 16).to(tl.int32)
    full = words // (4 * VECTORS)
    for block in range(first_block, first_block + REPEAT):
        first, last = 0, full
        tail = full * (4 * VECTORS) < words
        at = block
        if SPLIT:
            first = block % parts * steps
            at = block // parts
            last = tl.minimum(first + steps, full)
            tail = tail & (first + steps > full)
        if at * ROWS < n_rows:
            row = at * ROWS + tl.arange(0, ROWS)
            rows = tl.minimum(row, n_rows - 1)  # what is read twice is not stored
            place = base + (rows // inner) * outer_stride + (rows % inner) * inner_stride
            pointers = anchor + place * UNIT
            keys = tl.full([ROWS], INDEX_OFFSET, tl.uint32)
            if STARTS:
                keys += tl.load(anchor + starts + rows).to(tl.uint32, bitcast=True) * INDEX_FACTOR
            lanes1, lanes2 = _digest(
                pointers, keys, walk, lanes, first, last, tail, words, PIECES, UNIT, FLOAT64, ROWS, VECTORS
            )
            sum1 = tl.sum(tl.sum(lanes1.to(tl.int32, bitcast=True), 2), 1)
            sum2 = tl.sum(tl.sum(lanes2.to(tl.int32, bitcast=True), 2), 1)
            there = row < n_rows
            to = out + 2 * (target + rows)
            if SPLIT:
                tl.atomic_add(to, sum1, mask=there, sem="relaxed")
                tl.atomic_add(to + 1, sum2, mask=there, sem="relaxed")
            else:
                tl.store(to, sum1, mask=there)
                tl.store(to + 1, sum2, mask=there)


@_jit
def digest_grid(
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
