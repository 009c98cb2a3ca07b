"""Digests on CUDA: many tensors in a few launches, each word read once, no waiting and no allocation per tensor.

A block of threads digests one row, or a few short ones, in steps of ``BLOCK`` words. Which rows it has is read
from two tables: a line per tensor, and a line per group of ``GROUP`` blocks which says the tensor and the first
block in it, so that the table stays short and is found by a division instead of a search. Both are the same for the
flushes of like layers, and stay on the device; with each flush go the places of the tensors alone.

What those share is worked out once and kept with their table_plan. A variant of the kernel is compiled when so many words
wanted it that it pays; until then one variant digests all.

Two habits of Triton's compiler decide the speed, both seen in its axis analysis: loads of 16 bytes need
addresses that are multiples of 16 by construction, so the tables count 4-byte words in units of 4 from an
aligned pointer (``anchor``) wherever the tensor allows it; and an integer division per word is slower than
the digest itself, so runs are found by a multiplication with a precomputed reciprocal, once per 4 words.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.digest import torch_impl
from forkpoint.capture.digest.backend import Ints, TablePlan, TensorTable
from forkpoint.capture.digest.plan import LANES, ElementType, check, find, kind, merged, packed
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
_MAX_LAYOUTS = 2
"""How many are kept with the plan of a table: which of its tensors begin at multiples of 16 hardly ever changes."""
WORTHWHILE = 1 << 30
"""Words that a variant of the kernel has to have in all before it is compiled, which takes a second where Triton has not
compiled it for an earlier process. Up to then they are digested by the one that can digest all, a few times slower. A
short row counts as a whole step: it takes as long there."""
_COPIED_AT_ONCE = 1 << 16
"""Bytes of pageable memory up to which a copy to a GPU has taken them by the time it returns (CUDA's "API synchronization
behavior")."""
_STAGED = 1 << 15
"""Elements of the memory for places: more than most flushes need."""
_LANES = np.array([[lanes.sign, lanes.above, lanes.shift] for lanes in LANES], dtype=np.int64)


def rows(x: Tensor, row_dims: Sequence[int], first_word: Tensor | None = None) -> Tensor:
    """See `forkpoint.capture.digest.rows`."""
    plan = find(x, row_dims)
    if not plan.direct or x.data_ptr() % 4 or x.is_neg():
        x, plan = torch_impl.pack_rows(x, row_dims), packed(plan)
    starts = first_word.to(x.device, torch.int32).contiguous() if first_word is not None else None
    return digest_table(TensorTable.of_one(x, plan.fields, starts), x.device)


def digest_table(
    table: TensorTable, device: torch.device, block: int = 0, warps: int = 0, repeat: int = 0
) -> Tensor:
    """The digests of all entries of a table, computed on the current stream."""
    with _on(device):
        return _digest_table(table, device, block or BLOCK, warps or WARPS, repeat)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, whatever its arguments' device is."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def _digest_table(table: TensorTable, device: torch.device, block: int, warps: int, repeat: int) -> Tensor:
    layout = _layout_of(table, block)
    for variant, words in layout.waiting:
        _words[variant] += words
    # blocks that share a row add to it, and rows without words have no block
    out = (torch.zeros if layout.adds else torch.empty)(
        table.table_plan.rows, dtype=torch.int64, device=device
    )
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    places = _staged.room(device, stream, 2 * len(table.addresses))
    anchor = places.data_ptr()
    with _to(places[: 2 * len(table.addresses)]) as values:
        values[0::2] = (table.addresses - anchor) >> layout.shifts
        values[1::2] = 0 if table.starts is None else (table.starts - anchor) >> 2
    lines, groups = layout.tables_on(device, stream)
    for variant, first, count in layout.launches:
        times = repeat or (1 if variant.rows == 1 else REPEAT)
        what = _Compiled(variant, block, warps, times, device)
        _launch(what, count * GROUP // times, out, places, lines, groups, first)
    return out


class _Staged(threading.local):
    """Device memory in which a thread's launches find the addresses of their tensors.

    Launches on one stream run one after the other, so that they can share it.
    """

    def __init__(self) -> None:
        self._on: dict[tuple[torch.device, int], Tensor] = {}

    def room(self, device: torch.device, stream: int, size: int) -> Tensor:
        """Memory for the next launch: int64[size or more]."""
        memory = self._on.get((device, stream))
        if memory is None or len(memory) < size:
            memory = torch.empty(max(size, _STAGED), dtype=torch.int64, device=device)
            self._on[device, stream] = memory
        return memory


_staged = _Staged()


class _Compiled(NamedTuple):
    """What a kernel is compiled for."""

    variant: _Variant
    block: int
    warps: int
    times: int
    device: torch.device

    @property
    def constants(self) -> dict[str, int | bool]:
        """The kernel's arguments that are known when it is compiled, in its order."""
        variant = self.variant
        return {
            "PIECES": variant.pieces,
            "UNIT": variant.unit,
            "FLOAT64": variant.float64,
            "STARTS": variant.starts,
            "SPLIT": variant.split,
            "ROWS": variant.rows,
            "VECTORS": self.block // variant.rows // 4,
            "GROUP": GROUP,
            "REPEAT": self.times,
        }


_kernels: dict[_Compiled, tuple[Any, tuple[int | bool, ...]]] = {}
"""What Triton compiled, and the constants it has to be called with."""


def _launch(
    what: _Compiled, blocks: int, out: Tensor, places: Tensor, lines: Tensor, groups: Tensor, first_group: int
) -> None:
    """Launch `digest_rows`.

    Triton looks at each launch for what it has compiled, which takes longer than all the rest, so it is asked once.
    Nothing else that it compiles for can differ: all tensors are allocated here, so that they are aligned.
    """
    compiled = _kernels.get(what)
    if compiled is not None:
        kernel, constants = compiled
        kernel[blocks, 1, 1](places, out, places, lines, groups, first_group, *constants)
        return
    constants = what.constants
    words, out_words = places.view(torch.int32), out.view(torch.int32)
    kernel = digest_rows[(blocks,)](
        words, out_words, places, lines, groups, first_group, **constants, num_warps=what.warps
    )
    if kernel is not None:  # there is none in the interpreter
        _kernels[what] = kernel, tuple(constants.values())


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

    @property
    def general(self) -> _Variant:
        """The variant that can digest whatever this one can."""
        return self._replace(rows=1, unit=1, pieces=True)


class _Line(NamedTuple):
    """A line of the table of tensors, without what differs from tensor to tensor, and how it is launched."""

    line: Ints
    variant: _Variant
    unit: int
    groups: int
    """How many groups of blocks it takes."""


@dataclass(frozen=True)
class _Layout:
    """What a kernel reads for the plan of a table, without where the tensors lie."""

    lines: Ints
    shifts: Ints
    """By how much an address is shifted, so that it counts in units of the line."""
    adds: bool
    """Whether the digests have to be zeros at first."""
    groups: Ints
    launches: list[tuple[_Variant, int, int]]
    """For each variant in use, the first of its groups and how many there are."""
    waiting: list[tuple[_Variant, int]]
    """Variants that it would have, were they worthwhile, each with its words."""
    _on: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = field(default_factory=dict[Any, Any])

    def tables_on(self, device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
        """Both tables on a device, where they stay for the next time on the same stream."""
        tables = self._on.get((device, stream))
        if tables is None:
            tables = self._on[device, stream] = (_lasting(self.lines, device), _lasting(self.groups, device))
        return tables


_variants: dict[_Variant, int] = {}
"""The variants in use, which are few, and their numbers."""
_words: Counter[_Variant] = Counter()
"""How many words those had that were not worthwhile yet."""


def _layout_of(table: TensorTable, block: int) -> _Layout:
    """The layout for the plan of a table, and for which of its addresses are multiples of 16."""
    odd = table.addresses & 15
    aligned = b"" if not odd.any() else (odd == 0).tobytes()
    starts = b"" if table.starts is None else (table.starts != 0).tobytes()
    cache = table.table_plan.cache
    layout: _Layout | None = cache.get((aligned, starts, block))
    if layout is not None and not any(_is_worthwhile(variant) for variant, _ in layout.waiting):
        return layout
    if len(cache) >= _MAX_LAYOUTS:
        cache.clear()
    layout = cache[aligned, starts, block] = _layout(table.table_plan, aligned, starts, block)
    return layout


def _is_worthwhile(variant: _Variant) -> bool:
    return variant == variant.general or _words[variant] >= WORTHWHILE


def _layout(table_plan: TablePlan, aligned: bytes, starts: bytes, block: int) -> _Layout:
    n = len(table_plan.fields)
    entries: list[_Line] = []
    waiting: Counter[_Variant] = Counter()
    for fields, whole, first in zip(
        table_plan.fields, aligned or b"\1" * n, starts or b"\0" * n, strict=True
    ):
        plan = fields.tobytes()
        line = _line(plan, bool(whole), bool(first), block)
        if not _is_worthwhile(line.variant):
            work = int(fields[0]) * max(int(fields[1]), block)
            waiting[line.variant] += work
            line = _line(plan, whole=False, starts=bool(first), block=block, general=True)
        entries.append(line)
    variants = np.array([_variants[line.variant] for line in entries], dtype=np.int64)
    units, counts = np.array([line[2:] for line in entries], dtype=np.int64).T
    lines = np.array([line.line for line in entries])
    lines[:, 0] = table_plan.targets
    groups, launches = _groups(variants, counts)
    adds = any(variant.split for variant, *_ in launches) or not counts.all()
    return _Layout(lines, np.where(units == 4, 4, 2), adds, groups, launches, list(waiting.items()))


@functools.lru_cache(maxsize=1 << 14)
def _line(plan: bytes, whole: bool, starts: bool, block: int, general: bool = False) -> _Line:
    """How a tensor is digested.

    Args:
        plan: the fields of its plan.
        whole: whether its address is a multiple of 16.
        starts: whether its rows have first words.
        block: words that a block of threads reads in one step.
        general: whether to leave it to the variant that can digest all.
    """
    fields = np.frombuffer(plan, dtype=np.int64).tolist()
    n_rows, words, kind, inner, outer_stride, inner_stride, a_size, b_size, a_stride, b_stride, run = fields
    pieces = general or a_size * b_size > 1
    whole = whole and all(stride % 4 == 0 for stride in (run, outer_stride, inner_stride))
    reach = a_size * a_stride + b_size * b_stride + run
    simple = run >= 8 and words * run < 1 << 32 and reach < 1 << 31
    simple = simple and a_stride % 4 == 0 and b_stride % 4 == 0
    unit = 4 if whole and not general and (simple or not pieces) else 1

    split = words > _LONG_ROW
    rows = 1 if split or general else _rows_per_block(words, block)
    steps = _LONG_ROW // block if split else -(-words // (block // rows))
    parts = -(-words // _LONG_ROW) if split else 1
    blocks = -(-n_rows // rows) * parts if words else 0
    variant = _Variant(rows, unit, pieces, kind == ElementType.FLOAT64, starts, split)
    line = np.array(
        [
            0, n_rows, words, *_LANES[kind], inner, outer_stride // unit, inner_stride // unit,
            run // unit, _reciprocal(run // unit), b_size, _reciprocal(b_size) if a_size > 1 else 0,
            a_stride // unit, b_stride // unit, parts, steps, 0,
        ],
        dtype=np.int64,
    )  # fmt: skip
    _variants.setdefault(variant, len(_variants))
    return _Line(line, variant, unit, -(-blocks // GROUP))


def _rows_per_block(words: int, block: int) -> int:
    """As few as leave little of a block idle: 95% is good enough."""
    used = [
        words / max(1, -(-words // width) * width) for width in (block // rows for rows in _ROWS_PER_BLOCK)
    ]
    best = max(min(share, 0.95) for share in used)
    return next(rows for rows, share in zip(_ROWS_PER_BLOCK, used, strict=True) if min(share, 0.95) == best)


def _groups(variants: Ints, counts: Ints) -> tuple[Ints, list[tuple[_Variant, int, int]]]:
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


def _lasting(table: Ints, device: torch.device) -> Tensor:
    """A copy of a table on a device, which stays there for later launches: int64[elements]."""
    resident = torch.empty(table.size, dtype=torch.int64, device=device)
    with _to(resident) as values:
        values[:] = table.reshape(-1)
    return resident


@contextmanager
def _to(target: Tensor) -> Generator[Ints]:
    """Gives a host array to fill; after the block it is copied to the tensor, without waiting for the device.

    Of a small copy CUDA keeps the bytes itself; a larger one goes through pinned memory, which takes longer to get.
    """
    pinned = target.device.type == "cuda" and target.nbytes > _COPIED_AT_ONCE
    filled = torch.empty(target.shape, dtype=target.dtype, pin_memory=pinned)
    yield filled.numpy()
    target.copy_(filled, non_blocking=True)


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
    with _to(staged) as values:
        values[:] = walk
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


def _walk(x: Tensor, grid_dims: Sequence[int], keys: Tensor | None) -> Ints | None:
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
