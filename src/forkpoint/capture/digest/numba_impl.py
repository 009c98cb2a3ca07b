"""Digests on the CPU at the speed of its memory: compiled by numba, on all cores that torch uses.

Importing this module compiles for some seconds, once per machine: the code is cached on disk, where that can be
written. A change of `definition`, `plan` or `numba_words` alone leaves that cache stale, which `backend` would
notice and report.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray
from numba.np.unsafe.ndarray import to_fixed_tuple
from torch import Tensor

from forkpoint.capture.digest import torch_impl
from forkpoint.capture.digest.backend import TensorTable
from forkpoint.capture.digest.numba_words import (
    INDEX_FACTOR,
    INDEX_OFFSET,
    LANES_OF_KIND,
    U32,
    WORK_SIZE,
    Word,
    add,
    canonical_float32,
    canonical_float64,
    canonical_lanes,
    claim,
    copy,
    doubles_at,
    integer,
    integers_at,
    jit,
    mix,
    multiply,
    pack,
    run,
    words_at,
    work,
)
from forkpoint.capture.digest.plan import ElementType, find, packed
from forkpoint.support.arrays import tensor_of

_CPU = torch.device("cpu")
_LINES = "numba lines"
_unpacked: Any = to_fixed_tuple
_RAW, _FLOAT32, _FLOAT64 = int(ElementType.RAW), int(ElementType.FLOAT32), int(ElementType.FLOAT64)
_SHORT_RUN, _SCRATCH_WORDS = 256, 1 << 13
_MASK = 0xFFFF_FFFF


@jit
def _run_raw(words: Any, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    for i in range(words.size):
        a, b = mix(words[i], key)
        lane1, lane2, key = add(lane1, a), add(lane2, b), add(key, INDEX_FACTOR)
    return lane1, lane2


@jit
def _run_float32(words: Any, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    for i in range(words.size):
        a, b = mix(canonical_float32(words[i]), key)
        lane1, lane2, key = add(lane1, a), add(lane2, b), add(key, INDEX_FACTOR)
    return lane1, lane2


@jit
def _run_lanes(words: Any, kind: int, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    sign, above, shift = LANES_OF_KIND[kind, 0], LANES_OF_KIND[kind, 1], LANES_OF_KIND[kind, 2]
    for i in range(words.size):
        a, b = mix(canonical_lanes(words[i], sign, above, shift), key)
        lane1, lane2, key = add(lane1, a), add(lane2, b), add(key, INDEX_FACTOR)
    return lane1, lane2


@jit
def _run_float64(values: Any, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    for i in range(values.size):
        value = canonical_float64(values[i])
        a, b = mix(U32(value), key)
        lane1, lane2, key = add(lane1, a), add(lane2, b), add(key, INDEX_FACTOR)
        a, b = mix(U32(value >> np.uint64(32)), key)
        lane1, lane2, key = add(lane1, a), add(lane2, b), add(key, INDEX_FACTOR)
    return lane1, lane2


@jit
def _digest_run(address: int, size: int, kind: int, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    """Adds a run of words that lie side by side to the lanes."""
    if kind == _RAW:
        return _run_raw(carray(words_at(address), size), key, lane1, lane2)
    if kind == _FLOAT32:
        return _run_float32(carray(words_at(address), size), key, lane1, lane2)
    if kind == _FLOAT64:
        return _run_float64(carray(doubles_at(address), size // 2), key, lane1, lane2)
    return _run_lanes(carray(words_at(address), size), kind, key, lane1, lane2)


@jit
def _digest_row(address: int, index: Word, piece: Any, kind: int, scratch: int) -> Any:
    """The digest of a row of runs, the first of which begins at an address and has an index."""
    words, a_size, b_size, a_stride, b_stride, run = piece
    key = add(multiply(index, INDEX_FACTOR), INDEX_OFFSET)
    lane1, lane2 = U32(0), U32(0)
    gather = run < words <= _SCRATCH_WORDS and run < _SHORT_RUN  # to start a run costs as much as 50 words
    for a in range(a_size):
        for b in range(b_size):
            here = address + 4 * (a * a_stride + b * b_stride)
            if gather:
                copy(scratch + 4 * run * (a * b_size + b), here, 4 * run)
            else:
                lane1, lane2 = _digest_run(here, run, kind, key, lane1, lane2)
                key = add(key, multiply(U32(run), INDEX_FACTOR))
    if gather:
        lane1, lane2 = _digest_run(scratch, words, kind, key, lane1, lane2)
    return pack(lane1, lane2)


@jit
def _digest_rows(table: Any, ends: Any, out: Any, begin: int, end: int) -> None:
    """The rows that begin at one of the words ``begin`` to before ``end`` of all tensors laid side by side.

    A line of the table is a tensor: its address, where its digests begin in ``out``, the address of its rows' first
    words or 0, and the fields of its plan. ``ends`` says where each tensor ends.
    """
    scratch = np.empty(_SCRATCH_WORDS, dtype=np.uint32)
    for entry in range(np.searchsorted(ends, begin, side="right"), len(ends)):
        line = _unpacked(table[entry], 14)
        address, target, starts, rows, words, kind, inner, outer_stride, inner_stride = line[:9]
        start = ends[entry] - rows * words
        if start >= end:
            break
        if words == 0:
            continue
        piece = (words, *line[9:])
        first_words = carray(words_at(starts), rows if starts else 0)
        first = max(0, (begin - start + words - 1) // words)
        for row in range(first, min(rows, (end - start + words - 1) // words)):
            base = address + 4 * (row // inner * outer_stride + row % inner * inner_stride)
            index = first_words[row] if starts else U32(0)
            out[target + row] = _digest_row(base, index, piece, kind, scratch.ctypes.data)


@work
def _rows_work(address: Any) -> None:
    """Digests pieces of the words of all tensors until none is left."""
    data = carray(integers_at(integer(address)), WORK_SIZE)
    size, total, entries, table, ends, rows, out = _unpacked(data, WORK_SIZE)[1:8]
    lines, line_ends = carray(integers_at(table), (entries, 14)), carray(integers_at(ends), entries)
    digests = carray(integers_at(out), rows)
    begin = claim(integer(address)) * size
    while begin < total:
        _digest_rows(lines, line_ends, digests, begin, min(begin + size, total))
        begin = claim(integer(address)) * size


def rows(x: Tensor, row_dims: Sequence[int], first_word: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.rows`."""
    plan = find(x, row_dims)
    if not plan.direct or x.data_ptr() % 4 or x.is_neg():
        x, plan = torch_impl.pack_rows(x, row_dims), packed(plan)
    starts = first_word.to(torch.int32).contiguous() if first_word is not None else None
    return digest_table(TensorTable.of_one(x, plan.fields, starts))


def digest_table(table: TensorTable, _device: torch.device = _CPU) -> Tensor:
    """The digests of all entries of a table."""
    table_plan = table.table_plan
    if _LINES not in table_plan.cache:
        lines = np.zeros((len(table_plan.fields), 14), dtype=np.int64)
        lines[:, 1], lines[:, 3:] = table_plan.targets, table_plan.fields
        table_plan.cache[_LINES] = lines, np.cumsum(lines[:, 3] * lines[:, 4])
    lines, ends = table_plan.cache[_LINES]
    lines = lines.copy()
    lines[:, 0] = table.addresses
    if table.starts is not None:
        lines[:, 2] = table.starts
    out = np.zeros(table_plan.rows, dtype=np.int64)
    run(_rows_work, int(ends[-1]), len(lines), lines, ends, len(out), out)
    return tensor_of(out)


def grid(x: Tensor, grid_dims: Sequence[int], keys: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.grid`."""
    from forkpoint.capture.digest import numba_grid  # compiled when the first grid comes

    return numba_grid.grid(x, grid_dims, keys)


@jit
def _accumulate(digests: Any, index: Any, out: Any) -> None:
    for i in range(digests.size):
        cell = index[i]
        if cell >= out.size:
            raise IndexError("an index beyond the last cell")
        if cell >= 0:
            lane1 = (out[cell] + digests[i]) & _MASK
            out[cell] = lane1 | ((out[cell] >> 32) + (digests[i] >> 32)) << 32


def accumulate(digests: Tensor, index: Tensor, size: int) -> Tensor:
    """See `forkpoint.capture.digest.accumulate`."""
    out = np.zeros(size, dtype=np.int64)
    _accumulate(
        digests.reshape(-1).contiguous().numpy(), index.to(torch.int64).reshape(-1).contiguous().numpy(), out
    )
    return tensor_of(out)
