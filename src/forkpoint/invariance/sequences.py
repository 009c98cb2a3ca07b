"""Which rows and columns of an attention belong to one sequence, in the order of its positions, without padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

Kind: TypeAlias = tuple[bool, int, bool]
"""Of a mask: whether it is causal, its window (0 for none), and whether it is neither and must be read."""
Columns: TypeAlias = slice | torch.Tensor
"""Columns in the order of a sequence's positions: a range, or int64 indices."""


@dataclass(frozen=True)
class Sequence:
    """One sequence in one row of a batch.

    Attributes:
        row: the row of the batch.
        queries, keys: its columns among the queries, and among the keys.
        before: how many of its keys come before the first of these and are kept no longer, as in a sliding window's
            cache.
        position: how many of its tokens come before the first of its queries.
        allowed: `[queries, keys]`, bool: whether a query sees a key; on a GPU of that shape alone where `kind` says it.
        kind: what the mask is, where it is known without a look at it.
        made: what an attention makes of this once, for all layers.
    """

    row: int
    queries: Columns
    keys: Columns
    before: int
    position: int
    allowed: torch.Tensor
    kind: Kind | None = None
    made: dict[Any, Any] = field(default_factory=dict)


Sequences: TypeAlias = list[Sequence]


def of_mask(
    mask: torch.Tensor, valid: torch.Tensor | None, q_offset: int, kv_offset: int, causal: bool
) -> Sequences:
    """The sequences of a batch.

    Args:
        mask: `[batch, 1, queries, keys]`, bool: whether a query sees a key.
        valid: `[batch, columns so far]`, bool: whether a column is a token; None where all are.
        q_offset, kv_offset: the column of the first query, and of the first key.
        causal: whether no query sees a key after it. Where some do, the queries may be another stream than the keys,
            and all count.
    """
    batch, _, queries, keys = mask.shape
    seen = mask[:, 0]
    if valid is None:
        if queries == keys and q_offset == kv_offset == 0:
            return [one for row in range(batch) for one in _packed(seen[row], row)]
        every = torch.ones(batch, max(q_offset + queries, kv_offset + keys), dtype=torch.bool)
    else:
        width = max(q_offset + queries, kv_offset + keys)
        every = torch.nn.functional.pad(valid.cpu(), (0, max(0, width - valid.shape[1])))
    reached = seen.any(1).cpu()
    made: Sequences = []
    for row in range(batch):
        are_tokens = every[row, kv_offset : kv_offset + keys]
        last = (
            int(torch.where(reached[row] & are_tokens)[0].max()) + 1
            if (reached[row] & are_tokens).any()
            else 0
        )
        columns = _columns(are_tokens[:last], mask.device)
        asking = (
            _columns(every[row, q_offset : q_offset + queries], mask.device) if causal else slice(0, queries)
        )
        allowed = seen[row][asking][:, columns]
        before, position = (int(every[row, :offset].sum()) for offset in (kv_offset, q_offset))
        made.append(Sequence(row, asking, columns, before, position, allowed))
    return made


def of_causal_mask(mask: torch.Tensor, q_offset: int, kv_offset: int) -> Sequences:
    """The same for a causal mask over rows without padding, with no look at it: on a GPU, that is no waiting."""
    batch, _, queries, keys = mask.shape
    last = min(keys, q_offset + queries - kv_offset)
    every, asking = slice(0, last), slice(0, queries)
    return [
        Sequence(row, asking, every, kv_offset, q_offset, mask[row, 0, :, :last], (True, 0, False))
        for row in range(batch)
    ]


def of_causal_padding(
    valid: torch.Tensor, queries: int, keys: int, q_offset: int, kv_offset: int, device: torch.device
) -> Sequences | None:
    """The same for rows with padding, where each row's tokens are next to each other; None where they are not.

    Args:
        valid: `[batch, columns so far]`, bool: whether a column is a token.
        queries, keys: how many there are.
        q_offset, kv_offset: the column of the first query, and of the first key.
        device: of the model.
    """
    told = valid.to("cpu", torch.int64)
    width = q_offset + queries
    told = torch.nn.functional.pad(told, (0, max(0, width - told.shape[1])))[:, :width]
    if kv_offset + keys < width:
        return None
    counts = told.sum(1)
    first = told.argmax(1)
    last = width - told.flip(1).argmax(1)
    if bool((counts > 0).logical_and(last - first != counts).any()):
        return None
    some = torch.ones((), dtype=torch.bool, device=device)
    made: Sequences = []
    for row, (begin, end, count) in enumerate(
        zip(first.tolist(), last.tolist(), counts.tolist(), strict=True)
    ):
        if not count:
            continue
        seen = slice(max(begin - kv_offset, 0), max(end - kv_offset, 0))
        asking = slice(max(begin - q_offset, 0), max(end - q_offset, 0))
        allowed = some.expand(asking.stop - asking.start, seen.stop - seen.start)
        before, position = (min(max(offset - begin, 0), count) for offset in (kv_offset, q_offset))
        made.append(Sequence(row, asking, seen, before, position, allowed, (True, 0, False)))
    return made


def written_out(sequence: Sequence) -> Sequence:
    """The same with its mask, where it has only been told to be causal."""
    if sequence.kind != (True, 0, False):
        return sequence
    queries, keys = sequence.allowed.shape
    device = sequence.allowed.device
    position = torch.arange(queries, device=device)[:, None] + sequence.position
    return replace(sequence, allowed=torch.arange(keys, device=device)[None] + sequence.before <= position)


def without_mask(query: torch.Tensor, key: torch.Tensor, causal: bool) -> Sequences:
    """The sequences of a batch without a mask: every row is one, with all its columns."""
    batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    if causal:
        allowed = allowed.tril()
        keys = min(keys, queries)
    return [Sequence(row, slice(0, queries), slice(0, keys), 0, 0, allowed[:, :keys]) for row in range(batch)]


def is_causal(mask_function: Callable[..., Any], device: torch.device | str) -> bool:
    """Whether a mask function of transformers hides what comes after a token."""
    first, second = (torch.tensor(index, device=device) for index in (0, 1))
    return not bool(mask_function(first, first, first, second))


def count(columns: Columns) -> int:
    """How many columns there are."""
    return columns.stop - columns.start if isinstance(columns, slice) else len(columns)


def _packed(seen: torch.Tensor, row: int) -> Sequences:
    """The sequences of one row: a new one begins where a token doesn't see the one before it."""
    length = seen.shape[0]
    starts = [0, *((~seen.diagonal(-1)).nonzero()[:, 0] + 1).tolist(), length]
    parts = [slice(start, end) for start, end in itertools.pairwise(starts) if start < end]
    return [Sequence(row, part, part, 0, 0, seen[part, part]) for part in parts]


def _columns(chosen: torch.Tensor, device: torch.device) -> Columns:
    indices = chosen.nonzero()[:, 0]
    if not len(indices):
        return slice(0, 0)
    start, end = int(indices[0]), int(indices[-1]) + 1
    return slice(start, end) if end - start == len(indices) else indices.to(device)
