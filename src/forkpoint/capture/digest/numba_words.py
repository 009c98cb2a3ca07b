"""The arithmetic of one word for numba, and how compiled code reads memory and takes up work.

numba widens small integers to 64 bits, which halves the lanes of a SIMD unit and triples its work, so the
arithmetic is written in LLVM's instructions; the loops around it are plain numba, and LLVM makes SIMD code of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic as _intrinsic_of

from forkpoint.capture.digest import definition, threads
from forkpoint.capture.digest.plan import LANES

Word = Any
"""An LLVM value of 32 bits, or a uint32 in numba's terms."""
U32 = np.uint32
INDEX_FACTOR, INDEX_OFFSET = U32(definition.INDEX_FACTOR), U32(definition.INDEX_OFFSET)
LANES_OF_KIND = np.array([[lanes.sign, lanes.above, lanes.shift] for lanes in LANES], dtype=np.uint32)
WORK_SIZE = 12
"""Integers that compiled work gets: the next piece, a piece's size, the total, and what it takes besides."""
_INFINITY = np.uint64(definition.LARGEST_NUMBER[torch.float64])
_MAGNITUDE = np.uint64(0x7FFF_FFFF_FFFF_FFFF)

_intrinsic: Any = _intrinsic_of  # numba passes the first argument itself, which a type checker can't know


def jit(function: Callable[..., Any]) -> Any:
    """Compiled without the GIL, and cached on disk if numba finds a folder that it may write."""
    try:
        return njit(nogil=True, cache=True)(function)
    except (RuntimeError, OSError):
        return njit(nogil=True)(function)


def work(function: Callable[..., Any]) -> Any:
    """Compiled to a C function of the address of its data, for `run`."""
    try:
        return cfunc("void(voidptr)", cache=True)(function)
    except (RuntimeError, OSError):
        return cfunc("void(voidptr)")(function)


def run(function: Any, total: int, *data: Any) -> None:
    """Runs compiled work on a total of so many words, on arrays and integers that it takes besides."""
    size = threads.piece(total)
    integers = [
        0,
        size,
        total,
        *(value.ctypes.data if isinstance(value, np.ndarray) else value for value in data),
    ]
    block = np.array(integers + [0] * (WORK_SIZE - len(integers)), dtype=np.int64)
    threads.run(function.address, block.ctypes.data, total)


def _constant(value: int) -> Word:
    return ir.Constant(ir.IntType(32), value)


def _xorshift(builder: Any, x: Word, shift: int) -> Word:
    return builder.xor(x, builder.lshr(x, _constant(shift)))


@_intrinsic
def add(_typing: Any, a: Word, b: Word) -> Any:  # noqa: ARG001
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Word:
        return builder.add(*args)

    return types.uint32(types.uint32, types.uint32), emit


@_intrinsic
def multiply(_typing: Any, a: Word, b: Word) -> Any:  # noqa: ARG001
    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Word:
        return builder.mul(*args)

    return types.uint32(types.uint32, types.uint32), emit


@_intrinsic
def mix(_typing: Any, word: Word, key: Word) -> Any:  # noqa: ARG001
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
def canonical_float32(_typing: Any, word: Word) -> Any:  # noqa: ARG001
    """`definition.canonical`. NaN is found by a float comparison, which SIMD units do in one step."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Word:
        value = builder.bitcast(args[0], ir.FloatType())
        nan = builder.fcmp_unordered("uno", value, value)
        negative_zero = builder.icmp_unsigned("==", args[0], _constant(0x8000_0000))
        number = builder.select(negative_zero, _constant(0), args[0])
        return builder.select(nan, _constant(0x7FFF_FFFF), number)

    return types.uint32(types.uint32), emit


@_intrinsic
def canonical_lanes(_typing: Any, word: Word, sign: Word, above: Word, shift: Word) -> Any:  # noqa: ARG001
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
def copy(_typing: Any, target: int, source: int, size: int) -> Any:  # noqa: ARG001
    """Copies bytes between two addresses."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        target, source = (builder.inttoptr(address, ir.IntType(8).as_pointer()) for address in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)

    return types.void(types.int64, types.int64, types.int64), emit


@_intrinsic
def integer(_typing: Any, address: Any) -> Any:  # noqa: ARG001
    """The address in a pointer."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(types.voidptr), emit


@_intrinsic
def claim(_typing: Any, address: int) -> Any:  # noqa: ARG001
    """The integer at an address, which is one higher afterwards: no two threads get the same."""

    def emit(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), emit


bytes_at, halves_at = _pointer(types.uint8), _pointer(types.uint16)
integers_at, signed_words_at = _pointer(types.int64), _pointer(types.int32)
words_at, doubles_at = _pointer(types.uint32), _pointer(types.uint64)


@jit
def canonical_float64(value: Any) -> Any:
    magnitude = value & _MAGNITUDE
    number = value if magnitude != 0 else np.uint64(0)
    return number if magnitude <= _INFINITY else _MAGNITUDE


@jit
def pack(lane1: Word, lane2: Word) -> Any:
    return np.int64(np.uint64(lane1) | np.uint64(lane2) << np.uint64(32))
