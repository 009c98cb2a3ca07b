"""What a GPU computes by kernels of our own: see `triton_kernels`."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any

import torch

from forkpoint.invariance import triton_kernels
from forkpoint.invariance.asked import Attention
from forkpoint.invariance.sequences import Kind, Sequence, Sequences

NARROW = (torch.bfloat16, torch.float16)
DTYPES = (*NARROW, torch.float32)
_FEW = 16
"""Queries up to which a sequence is decoding: its keys are split among programs."""
_KEYS = 64
_CHUNK = 512
"""Keys whose sums are made by themselves: everywhere, so that a split makes no difference."""


def available() -> bool:
    """Whether Triton is installed."""
    return triton_kernels.triton is not None


def product(x: torch.Tensor, weight: torch.Tensor, inner: int, bias: torch.Tensor | None) -> torch.Tensor:
    """`[rows, inner]`, contiguous, times a matrix whose dimension `inner` is the one that is summed over."""
    matrix = weight.t() if inner else weight
    rows, columns = x.shape[0], matrix.shape[1]
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    tile, how = _tile(rows)
    grid = (-(-rows // tile[0]) * -(-columns // tile[1]), 1, 1)
    added = x if bias is None else bias
    sizes = rows, columns, x.shape[1], x.stride(0), *matrix.stride(), columns, *tile, bias is not None, 8
    told = sizes, x.dtype, x.data_ptr() % 16, matrix.data_ptr() % 16, added.data_ptr() % 16
    _launched(triton_kernels.product, told, grid, (x, matrix, added, out, *sizes), how)
    return out


def _launched(
    kernel: Any, told: Hashable, grid: tuple[int, int, int], arguments: tuple[Any, ...], how: dict[str, int]
) -> None:
    """Launches a kernel; what Triton works out for each launch is kept by what it works it out from."""
    device = arguments[0].device
    ready = _ready.get((kernel, device, told))
    if ready is not None and device.index == torch.cuda.current_device():
        ready[grid](*arguments)
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        made = kernel[grid](*arguments, **how)
    if made is not None:  # Triton's interpreter compiles nothing
        _ready[kernel, device, told] = made


_ready: dict[tuple[Any, torch.device, Hashable], Any] = {}
"""Compiled kernels, by what they are compiled for."""


def _tile(rows: int) -> tuple[tuple[int, int, int], dict[str, int]]:
    """Rows, columns and depth of a tile; they change the pace, never a bit."""
    if rows <= 16:
        return (16, 32, 128), {"num_warps": 2, "num_stages": 5}
    if rows <= 32:
        return (32, 32, 128), {"num_warps": 4, "num_stages": 4}
    if rows <= 64:
        return (64, 64, 64), {"num_warps": 4, "num_stages": 4}
    if rows <= 256:
        return (128, 64, 64), {"num_warps": 4, "num_stages": 4}
    return (128, 256, 64), {"num_warps": 8, "num_stages": 3}


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, batch: Sequences,
    asked: Attention, out: torch.Tensor,
) -> None:  # fmt: skip
    """The attention of all sequences of a batch, written to `out`, `[batch, queries, heads, size]`.

    Args:
        query, key, value, bias: as `attention.attention` has them.
        batch: the sequences.
        asked: the rest.
        out: where it goes; padding is left as it is.
    """
    query, key, value = (one if one.stride(-1) == 1 else one.contiguous() for one in (query, key, value))
    if bias is not None:
        bias = (bias if bias.stride(-1) == 1 else bias.contiguous()).expand(query.shape[0], -1, -1, -1)
    for group in _groups(batch, query.device):
        if group.gathered is None:
            _launch(query, key, value, bias, group, asked, out)
            continue
        one = group.gathered
        columns = torch.arange(key.shape[2], device=key.device)[one.keys]
        asking = torch.arange(query.shape[2], device=key.device)[one.queries]
        own = query[one.row : one.row + 1, :, asking]
        made = torch.empty(1, own.shape[2], *out.shape[2:], dtype=out.dtype, device=out.device)
        k, v = key[one.row : one.row + 1, :, columns], value[one.row : one.row + 1, :, columns]
        biased = (
            None if bias is None else bias[one.row : one.row + 1][:, :, asking][..., columns].contiguous()
        )
        _launch(own, k, v, biased, group, asked, made)
        out[one.row, asking] = made[0]


class _Group:
    """Sequences that one launch attends to.

    Attributes:
        kind: causal, window (0 for none), and whether a mask is read.
        few: whether each has few queries.
        sequences, blocks: the tables that the kernel reads.
        chunks: how many chunks of keys there are at most.
        mask: the mask to read, or None.
        gathered: the one sequence, if its columns must be brought together first; its row is 0 then.
    """

    def __init__(self, members: Sequences, kind: Kind, gathered: Sequence | None) -> None:
        device = members[0].allowed.device
        self.causal, self.window, self.masked = kind
        table: list[int] = []
        spans: list[int] = []
        queries = [one.allowed.shape[0] for one in members]
        self.few = max(queries) <= _FEW
        self.rows = 16 if self.few else 64 if members[0].allowed.shape[0] <= 64 else 128
        blocks: list[int] = []
        for index, one in enumerate(members):
            count, keys = one.allowed.shape
            first_query, first_key = (
                0 if gathered is not None or not isinstance(part, slice) else part.start
                for part in (one.queries, one.keys)
            )
            row = 0 if gathered is not None else one.row
            table += [row, first_query, count, first_key, keys, one.position, one.before]
            begin = max(one.before, one.position - self.window + 1) if self.window else one.before
            spans.append(-(-(one.before + keys) // _CHUNK) - begin // _CHUNK)
            for start in range(0, count, self.rows):
                blocks += [index, start]
        self.chunks = max(spans)
        self.sequences = torch.tensor(table, dtype=torch.int32).to(device)
        self.blocks = torch.tensor(blocks, dtype=torch.int32).to(device)
        self.count = len(blocks) // 2
        self.mask = members[0].allowed.contiguous() if self.masked else None
        self.gathered = gathered


def _groups(batch: Sequences, device: torch.device) -> list[_Group]:
    """Which sequences are attended to together; made once for all layers."""
    members = [one for one in batch if one.allowed.numel()]
    if not members:
        return []
    ready = members[0].made.get("groups")
    if ready is not None:
        return ready
    kinds = [one.kind for one in members if one.kind is not None]
    if len(kinds) < len(members):
        kinds = _kinds(members, device)
    together: dict[Any, Sequences] = {}
    groups: list[_Group] = []
    for one, kind in zip(members, kinds, strict=True):
        contiguous = isinstance(one.queries, slice) and isinstance(one.keys, slice)
        if kind[2] or not contiguous:
            groups.append(_Group([one], kind, one))
        else:
            together.setdefault((kind, one.allowed.shape[0] <= _FEW), []).append(one)
    groups += [_Group(several, kind, None) for (kind, _), several in together.items()]
    members[0].made["groups"] = groups
    return groups


def _kinds(members: Sequences, device: torch.device) -> list[Kind]:
    """What each sequence's mask is."""
    flags: list[torch.Tensor] = []
    for one in members:
        queries, keys = one.allowed.shape
        position = torch.arange(queries, device=device)[:, None] + one.position
        at = torch.arange(keys, device=device)[None, :] + one.before
        causal = at <= position
        window = one.allowed[-1].sum()
        windowed = causal & (at > position - window)
        flags += [one.allowed.all(), (one.allowed == causal).all(), (one.allowed == windowed).all(), window]
    told = torch.stack([flag.long() for flag in flags]).view(-1, 4).tolist()
    kinds: list[Kind] = []
    for every, causal, windowed, window in told:
        kinds.append(
            (True, 0, False) if causal else (True, window, False) if windowed else (False, 0, not every)
        )
    return kinds


def _launch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, group: _Group,
    asked: Attention, out: torch.Tensor,
) -> None:  # fmt: skip
    heads, size, values = query.shape[1], query.shape[3], value.shape[3]
    size_block, values_block = (max(16, 1 << (one - 1).bit_length()) for one in (size, values))
    wide = query.dtype is torch.float32
    rows = min(group.rows, 32) if wide and not group.few else group.rows
    blocks, count = group.blocks, group.count
    if rows != group.rows:
        blocks = _finer(group, rows)
        count = len(blocks) // 2
    split = group.few and group.chunks > 1
    partial = sums = out
    if split:
        places = count * heads * group.chunks
        partial = torch.empty(places, rows, values_block, dtype=torch.float32, device=out.device)
        sums = torch.empty(places, 2, rows, dtype=torch.float32, device=out.device)
    warps = 1 if group.few else 4 if rows <= 64 else 8
    bias_strides = (0, 0, 0) if bias is None else bias.stride()[:3]
    added, mask = out if bias is None else bias, out if group.mask is None else group.mask.view(torch.uint8)
    sinks = out if asked.sinks is None else asked.sinks
    strides = (
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *bias_strides,
        0 if group.mask is None else group.mask.stride(0), *out.stride()[:3], heads, heads // key.shape[1], group.chunks,
    )  # fmt: skip
    constants = (
        rows, _KEYS, _CHUNK, size, values, size_block, values_block, group.causal, group.window > 0,
        asked.softcap is not None, bias is not None, group.masked, asked.sinks is not None, split,
    )  # fmt: skip
    pointers = query, key, value, added, mask, sinks, out, partial, sums, group.sequences, blocks
    told = (
        constants, query.dtype, _specialised(*strides, group.window), _specialised(*(x.data_ptr() for x in pointers)),
        added.dtype, sinks.dtype,
    )  # fmt: skip
    arguments = (*pointers, *strides, asked.scale, asked.softcap or 0.0, group.window, *constants)
    how = {"num_warps": warps, "num_stages": 1 if wide else 3 if group.few else 2}
    _launched(triton_kernels.attention, told, (count, heads, group.chunks if split else 1), arguments, how)
    if split:
        strides = *out.stride()[:3], heads, group.chunks
        pointers = partial, sums, sinks, out, group.sequences, blocks
        constants = rows, values, values_block, asked.sinks is not None
        told = (
            constants, out.dtype, sinks.dtype, _specialised(*strides), _specialised(*(x.data_ptr() for x in pointers)),
        )  # fmt: skip
        arguments = (*pointers, *strides, *constants)
        _launched(triton_kernels.joined, told, (count, heads, 1), arguments, {"num_warps": 4})


def _specialised(*numbers: int) -> tuple[int, ...]:
    """What Triton compiles for, of each whole number: 1, multiples of 16, numbers of 64 bits."""
    return tuple([1 if one == 1 else 2 * (one % 16 == 0) + 4 * (one >= 1 << 31) for one in numbers])


def _finer(group: _Group, rows: int) -> torch.Tensor:
    """The table of blocks for fewer rows a block."""
    pairs = group.blocks.view(-1, 2)
    steps = torch.arange(0, group.rows, rows, dtype=torch.int32, device=pairs.device)
    first = (pairs[:, 1:] + steps).reshape(-1)
    which = pairs[:, :1].expand(-1, len(steps)).reshape(-1)
    return torch.stack((which, first), 1).reshape(-1).contiguous()
