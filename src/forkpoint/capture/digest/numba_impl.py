"""Digests on the CPU at the speed of its memory: compiled by numba, on all cores that torch uses.

numba widens small integers to 64 bits, which halves the lanes of a SIMD unit and triples its work, so the
arithmetic of one word is written in LLVM's instructions; the loops around it are plain numba, and LLVM makes
SIMD code of them. Importing this module compiles for some seconds, once per machine: the code is cached on
disk, where that can be written.

A change of `definition` or `plan` alone leaves that cache stale, which `backend` would notice and report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.unsafe.ndarray import to_fixed_tuple
from torch import Tensor

from forkpoint.capture.digest import definition, threads, torch_impl
from forkpoint.capture.digest.backend import Table
from forkpoint.capture.digest.plan import LANES, Kind, check, find, kind, merged, packed

Word = Any
"""An LLVM value of 32 bits, or a uint32 in numba's terms."""
U32 = np.uint32
_CPU = torch.device("cpu")
_SHORT_RUN, _SCRATCH_WORDS = 256, 1 << 13
_DATA_SIZE = 12
"""Integers that `threads.run` hands to compiled work: the next piece, a piece's size, the total, and more."""
_CELLS = 1024
"""Cells of a grid whose sums stay in the nearest cache."""
_LANES = np.array([[lanes.sign, lanes.above, lanes.shift] for lanes in LANES], dtype=np.uint32)
_INDEX_FACTOR, _INDEX_OFFSET = U32(definition.INDEX_FACTOR), U32(definition.INDEX_OFFSET)
_POSITION_FACTORS = (U32(definition.POSITION_FACTORS[0]), U32(definition.POSITION_FACTORS[1]))
_RAW, _FLOAT32, _FLOAT64 = int(Kind.RAW), int(Kind.FLOAT32), int(Kind.FLOAT64)
_INFINITY = np.uint64(definition.LARGEST_NUMBER[torch.float64])
_MAGNITUDE = np.uint64(0x7FFF_FFFF_FFFF_FFFF)
_MASK = definition.MASK


_intrinsic: Any = intrinsic  # numba passes the first argument itself, which a type checker can't know
_unpacked = cast("Any", to_fixed_tuple)


def _jit(function: Callable[..., Any]) -> Any:
    """Compiled without the GIL, and cached on disk if numba finds a folder that it may write."""
    try:
        return njit(nogil=True, cache=True)(function)
    except (RuntimeError, OSError):
        return njit(nogil=True)(function)


def _work(function: Callable[..., Any]) -> Any:
    """Compiled to a C function of one pointer, for `threads.run`."""
    try:
        return cfunc("void(voidptr)", cache=True)(function)
    except (RuntimeError, OSError):
        return cfunc("void(voidptr)")(function)


# --- The arithmetic of one word, as LLVM instructions ---------------------------------------------------


def _constant(value: int) -> Word:
    return ir.Constant(ir.IntType(32), value)


def _xorshift(builder: Any, x: Word, shift: int) -> Word:
    return builder.xor(x, builder.lshr(x, _constant(shift)))


@_intrinsic
def _add(_typing: Any, a: Word, b: Word) -> Any:  # noqa: ARG001
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Word:
        return builder.add(*args)

    return types.uint32(types.uint32, types.uint32), emit


@_intrinsic
def _multiply(_typing: Any, a: Word, b: Word) -> Any:  # noqa: ARG001
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Word:
        return builder.mul(*args)

    return types.uint32(types.uint32, types.uint32), emit


@_intrinsic
def _mix(_typing: Any, word: Word, key: Word) -> Any:  # noqa: ARG001
    """`definition.mix`."""
    first, second, third = map(_constant, definition.MIX_FACTORS)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Word:
        word, key = args
        keyed = builder.add(builder.mul(_xorshift(builder, word, 13), first), key)
        middle = _xorshift(builder, keyed, 15)
        lane1 = _xorshift(builder, builder.mul(middle, second), 15)
        lane2 = _xorshift(builder, builder.mul(builder.xor(middle, key), third), 16)
        return context.make_tuple(builder, signature.return_type, (lane1, lane2))

    return types.UniTuple(types.uint32, 2)(types.uint32, types.uint32), emit


@_intrinsic
def _canonical_float32(_typing: Any, word: Word) -> Any:  # noqa: ARG001
    """`definition.canonical`. NaN is found by a float comparison, which SIMD units do in one step."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Word:
        value = builder.bitcast(args[0], ir.FloatType())
        nan = builder.fcmp_unordered("uno", value, value)
        negative_zero = builder.icmp_unsigned("==", args[0], _constant(0x8000_0000))
        number = builder.select(negative_zero, _constant(0), args[0])
        return builder.select(nan, _constant(0x7FFF_FFFF), number)

    return types.uint32(types.uint32), emit


@_intrinsic
def _canonical_lanes(_typing: Any, word: Word, sign: Word, above: Word, shift: Word) -> Any:  # noqa: ARG001
    """`definition.canonical` of all elements in a word at once; see `plan.Lanes`."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Word:
        word, sign, above, shift = args
        unsigned = builder.not_(sign)
        magnitude = builder.and_(word, unsigned)
        nan = builder.and_(builder.add(magnitude, above), sign)
        word = builder.and_(word, builder.or_(builder.add(magnitude, unsigned), unsigned))
        quiet = builder.sub(nan, builder.lshr(nan, shift))
        return builder.or_(builder.and_(word, builder.not_(nan)), quiet)

    return types.uint32(types.uint32, types.uint32, types.uint32, types.uint32), emit


def _pointer(item: Any) -> Any:
    """The conversion of an address to a pointer to items."""

    @_intrinsic
    def at(_typing: Any, address: Any) -> Any:  # noqa: ARG001
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(item)(types.int64), emit

    return at


@_intrinsic
def _copy(_typing: Any, target: int, source: int, size: int) -> Any:  # noqa: ARG001
    """Copies bytes between two addresses."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(address, ir.IntType(8).as_pointer()) for address in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)

    return types.void(types.int64, types.int64, types.int64), emit


@_intrinsic
def _integer(_typing: Any, address: Any) -> Any:  # noqa: ARG001
    """The address in a pointer."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(types.voidptr), emit


@_intrinsic
def _claim(_typing: Any, address: int) -> Any:  # noqa: ARG001
    """The integer at an address, which is one higher afterwards: no two threads get the same."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), emit


_bytes_at, _halves_at = _pointer(types.uint8), _pointer(types.uint16)
_integers_at, _signed_words_at = _pointer(types.int64), _pointer(types.int32)
_words_at, _doubles_at = _pointer(types.uint32), _pointer(types.uint64)


# --- Rows ---------------------------------------------------------------------------------------------


@_jit
def _run_raw(words: Any, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    for i in range(words.size):
        a, b = _mix(words[i], key)
        lane1, lane2, key = _add(lane1, a), _add(lane2, b), _add(key, _INDEX_FACTOR)
    return lane1, lane2


@_jit
def _run_float32(words: Any, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    for i in range(words.size):
        a, b = _mix(_canonical_float32(words[i]), key)
        lane1, lane2, key = _add(lane1, a), _add(lane2, b), _add(key, _INDEX_FACTOR)
    return lane1, lane2


@_jit
def _run_lanes(words: Any, kind: int, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    sign, above, shift = _LANES[kind, 0], _LANES[kind, 1], _LANES[kind, 2]
    for i in range(words.size):
        a, b = _mix(_canonical_lanes(words[i], sign, above, shift), key)
        lane1, lane2, key = _add(lane1, a), _add(lane2, b), _add(key, _INDEX_FACTOR)
    return lane1, lane2


@_jit
def _canonical_float64(value: Any) -> Any:
    magnitude = value & _MAGNITUDE
    number = value if magnitude != 0 else np.uint64(0)
    return number if magnitude <= _INFINITY else _MAGNITUDE


@_jit
def _run_float64(values: Any, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    for i in range(values.size):
        value = _canonical_float64(values[i])
        a, b = _mix(U32(value), key)
        lane1, lane2, key = _add(lane1, a), _add(lane2, b), _add(key, _INDEX_FACTOR)
        a, b = _mix(U32(value >> np.uint64(32)), key)
        lane1, lane2, key = _add(lane1, a), _add(lane2, b), _add(key, _INDEX_FACTOR)
    return lane1, lane2


@_jit
def _run(address: int, size: int, kind: int, key: Word, lane1: Word, lane2: Word) -> tuple[Word, Word]:
    """Adds a run of words that lie side by side to the lanes."""
    if kind == _RAW:
        return _run_raw(carray(_words_at(address), size), key, lane1, lane2)
    if kind == _FLOAT32:
        return _run_float32(carray(_words_at(address), size), key, lane1, lane2)
    if kind == _FLOAT64:
        return _run_float64(carray(_doubles_at(address), size // 2), key, lane1, lane2)
    return _run_lanes(carray(_words_at(address), size), kind, key, lane1, lane2)


@_jit
def _pack(lane1: Word, lane2: Word) -> Any:
    return np.int64(np.uint64(lane1) | np.uint64(lane2) << np.uint64(32))


@_jit
def _digest_row(address: int, index: Word, piece: Any, kind: int, scratch: int) -> Any:
    """The digest of a row of runs, the first of which begins at an address and has an index."""
    words, a_size, b_size, a_stride, b_stride, run = piece
    key = _add(_multiply(index, _INDEX_FACTOR), _INDEX_OFFSET)
    lane1, lane2 = U32(0), U32(0)
    gather = run < words <= _SCRATCH_WORDS and run < _SHORT_RUN  # to start a run costs as much as 50 words
    for a in range(a_size):
        for b in range(b_size):
            here = address + 4 * (a * a_stride + b * b_stride)
            if gather:
                _copy(scratch + 4 * run * (a * b_size + b), here, 4 * run)
            else:
                lane1, lane2 = _run(here, run, kind, key, lane1, lane2)
                key = _add(key, _multiply(U32(run), _INDEX_FACTOR))
    if gather:
        lane1, lane2 = _run(scratch, words, kind, key, lane1, lane2)
    return _pack(lane1, lane2)


@_jit
def _digest_rows(table: Any, ends: Any, out: Any, begin: int, end: int) -> None:
    """The rows that begin at one of the words ``begin`` to before ``end`` of all tensors laid side by side.

    ``ends`` says where each tensor ends; see `backend.Table` for what the columns of the table are.
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
        first_words = carray(_words_at(starts), rows if starts else 0)
        first = max(0, (begin - start + words - 1) // words)
        for row in range(first, min(rows, (end - start + words - 1) // words)):
            base = address + 4 * (row // inner * outer_stride + row % inner * inner_stride)
            index = first_words[row] if starts else U32(0)
            out[target + row] = _digest_row(base, index, piece, kind, scratch.ctypes.data)


@_work
def _rows_work(address: Any) -> None:
    """Digests pieces of the words of all tensors until none is left."""
    data = carray(_integers_at(_integer(address)), _DATA_SIZE)
    size, total, entries, table, ends, rows, out = (
        data[1],
        data[2],
        data[3],
        data[4],
        data[5],
        data[6],
        data[7],
    )
    lines, line_ends = carray(_integers_at(table), (entries, 14)), carray(_integers_at(ends), entries)
    digests = carray(_integers_at(out), rows)
    begin = _claim(_integer(address)) * size
    while begin < total:
        _digest_rows(lines, line_ends, digests, begin, min(begin + size, total))
        begin = _claim(_integer(address)) * size


def rows(x: Tensor, row_dims: Sequence[int], first_word: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.rows`."""
    plan = find(x, row_dims)
    if not plan.direct or x.data_ptr() % 4 or x.is_neg():
        x, plan = torch_impl.pack_rows(x, row_dims), packed(plan)
    starts = first_word.to(torch.int32).contiguous() if first_word is not None else None
    entry = (x.data_ptr(), 0, starts.data_ptr() if starts is not None else 0, *plan.fields)
    return digest_table(np.array([entry], dtype=np.int64))


def digest_table(table: Table, _device: torch.device = _CPU) -> Tensor:
    """The digests of all entries of a table."""
    ends = np.cumsum(table[:, 3] * table[:, 4])
    out = np.zeros(int(table[:, 3].sum()), dtype=np.int64)
    words = int(ends[-1])
    _run(_rows_work, words, len(table), table, ends, len(out), out)
    return torch.from_numpy(out)


def _run(work: Any, words: int, *data: Any) -> None:
    """Runs work on what it takes besides the number of the next piece, a piece's size and their total."""
    size = threads.piece(words)
    numbers = [
        0,
        size,
        words,
        *(value.ctypes.data if isinstance(value, np.ndarray) else value for value in data),
    ]
    packed_data = np.array(numbers + [0] * (_DATA_SIZE - len(numbers)), dtype=np.int64)
    threads.run(work.address, packed_data.ctypes.data, words)


# --- Grids --------------------------------------------------------------------------------------------


@_jit
def _spread(positions: Any, spread: Any) -> None:
    """`definition.position_key` of each."""
    for i in range(positions.size):
        key = _multiply(U32(positions[i]), _POSITION_FACTORS[0])
        spread[i] = _multiply(key ^ (key >> U32(15)), _POSITION_FACTORS[1])


@_jit
def _cells_narrow(cells: Any, kind: int, index: int, spread: Any, lane1: Any, lane2: Any) -> None:
    """Adds one element to each of some cells."""
    sign, above, shift = _LANES[kind, 0], _LANES[kind, 1], _LANES[kind, 2]
    key = _add(_multiply(U32(index), _INDEX_FACTOR), _INDEX_OFFSET)
    for i in range(cells.size):
        word = _canonical_lanes(U32(cells[i]), sign, above, shift)
        a, b = _mix(word, _add(key, spread[i]))
        lane1[i], lane2[i] = _add(lane1[i], a), _add(lane2[i], b)


@_jit
def _cells_wide(cells: Any, kind: int, index: int, spread: Any, lane1: Any, lane2: Any) -> None:
    low = _add(_multiply(U32(2 * index), _INDEX_FACTOR), _INDEX_OFFSET)
    high = _add(low, _INDEX_FACTOR)
    for i in range(cells.size):
        value = _canonical_float64(cells[i]) if kind == _FLOAT64 else cells[i]
        a, b = _mix(U32(value), _add(low, spread[i]))
        c, d = _mix(U32(value >> np.uint64(32)), _add(high, spread[i]))
        lane1[i], lane2[i] = _add(lane1[i], _add(a, c)), _add(lane2[i], _add(b, d))


@_jit
def _digest_grid(
    address: int, item: int, kind: int, walk: Any, positions: Any, out: Any, begin: int, end: int
) -> None:
    """The digests of the blocks ``begin`` to before ``end`` of a grid: up to `_CELLS` neighbours in memory.

    ``walk`` holds sizes and strides in bytes of the grid's three dimensions (the last one is called a line, its
    cells lie side by side) and of the two dimensions of a cell's elements.
    """
    line = walk[0, 2]
    blocks = (line + _CELLS - 1) // _CELLS
    lane1, lane2 = np.empty(_CELLS, dtype=np.uint32), np.empty(_CELLS, dtype=np.uint32)
    spread = np.zeros(_CELLS, dtype=np.uint32)
    for block in range(begin, end):
        at, start = block // blocks, block % blocks * _CELLS
        size = min(_CELLS, line - start)
        first = at * line + start
        base = address + at // walk[0, 1] * walk[1, 0] + at % walk[0, 1] * walk[1, 1] + start * item
        lane1[:size] = 0
        lane2[:size] = 0
        if positions.size:
            _spread(positions[first : first + size], spread)
        for f in range(walk[0, 3] * walk[0, 4]):
            here = base + f // walk[0, 4] * walk[1, 3] + f % walk[0, 4] * walk[1, 4]
            if item == 1:
                _cells_narrow(carray(_bytes_at(here), size), kind, f, spread, lane1, lane2)
            elif item == 2:
                _cells_narrow(carray(_halves_at(here), size), kind, f, spread, lane1, lane2)
            elif item == 4:
                _cells_narrow(carray(_words_at(here), size), kind, f, spread, lane1, lane2)
            else:
                _cells_wide(carray(_doubles_at(here), size), kind, f, spread, lane1, lane2)
        for i in range(size):
            out[first + i] = _pack(lane1[i], lane2[i])


@_work
def _grid_work(address: Any) -> None:
    """Digests blocks of a grid, in pieces of so many elements, until none is left."""
    data = carray(_integers_at(_integer(address)), _DATA_SIZE)
    size, total, pointer, item, kind = data[1], data[2], data[3], data[4], data[5]
    walk = carray(_integers_at(data[6]), (2, 5))
    positions = carray(_signed_words_at(data[7]), data[8])
    out = carray(_integers_at(data[9]), data[10])
    blocks = data[11]
    begin = _claim(_integer(address)) * size
    while begin < total:
        first, last = begin * blocks // total, min(begin + size, total) * blocks // total
        _digest_grid(pointer, item, kind, walk, positions, out, first, last)
        begin = _claim(_integer(address)) * size


def grid(x: Tensor, grid_dims: Sequence[int], keys: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.grid`."""
    check(x, grid_dims)
    sizes = [x.shape[dim] for dim in grid_dims]
    x = torch_impl.real(x)
    cell_dims = [dim for dim in range(x.dim()) if dim not in grid_dims]
    walk = _grid_walk(x, grid_dims, cell_dims)
    if walk is None:
        x = x.permute(*cell_dims, *grid_dims).contiguous()
        walk = _grid_walk(x, range(len(cell_dims), x.dim()), range(len(cell_dims)))
    if walk is None:  # more dimensions than the kernel walks, whatever their order
        return torch_impl.grid(x, range(len(cell_dims), x.dim()), keys)
    positions = torch.empty(0, dtype=torch.int32)
    if keys is not None:
        positions = keys.to(torch.int32).expand(sizes).reshape(-1).contiguous()
    out = np.zeros(int(np.prod(walk[0, :3])), dtype=np.int64)
    blocks = int(walk[0, 0] * walk[0, 1] * -(-walk[0, 2] // _CELLS))
    numbers = positions.numpy()
    tensor = (x.data_ptr(), x.dtype.itemsize, int(kind(x.dtype)), walk)
    _run(_grid_work, x.numel(), *tensor, numbers, len(numbers), out, len(out), blocks)
    return torch.from_numpy(out)


def _grid_walk(x: Tensor, grid_dims: Sequence[int], cell_dims: Sequence[int]) -> np.ndarray[Any, Any] | None:
    """Sizes and strides as `_digest_grid` wants them, or None if it can't read the tensor in place."""
    size, strides = x.dtype.itemsize, x.stride()
    cells = merged([(x.shape[dim], strides[dim] * size) for dim in grid_dims])
    inner = merged([(x.shape[dim], strides[dim] * size) for dim in cell_dims])
    if not cells:
        cells = [(1, size)]
    if cells[-1][1] != size or len(cells) > 3 or len(inner) > 2 or x.data_ptr() % min(size, 4):
        return None
    walk = [(1, 0)] * (3 - len(cells)) + cells + [(1, 0)] * (2 - len(inner)) + inner
    return np.array(walk, dtype=np.int64).T.copy()


# --- Sums ---------------------------------------------------------------------------------------------


@_jit
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
    return torch.from_numpy(out)
