"""Attention on a CPU, for one sequence: blocks of 32 queries against its keys, which begin at position 0.

The order in which a query's sums are made is the order of the keys within blocks of a fixed size. Keys that it doesn't
see add zeros, so that neither the number of keys nor that of queries has an effect.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from forkpoint.invariance.asked import Attention
from forkpoint.invariance.pointwise import aligned
from forkpoint.invariance.sequences import Sequence

QUERIES = 32
"""Queries of a block."""
_KEYS = 64
"""Keys are padded to whole multiples of this."""
_SPLIT = 512
"""Keys that torch's kernel takes at a time: what is left out before the first key is a multiple of it."""
_STEP = 64
"""Queries of one call of torch's kernel: keys that come after all of them are left out."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, sequence: Sequence,
    asked: Attention,
) -> torch.Tensor:  # fmt: skip
    """The attention of one sequence.

    Args:
        query: `[heads, queries, size]`.
        key, value: `[key heads, keys, size]`.
        bias: `[heads, queries, keys]`, added to the scores; or None.
        sequence: where they come from.
        asked: the rest.

    Returns:
        `[queries, heads, size of values]`.
    """
    heads, queries, size = query.shape
    lengths: tuple[int, ...] = ()
    if asked.softcap is None and asked.sinks is None:
        lengths = lengths_that_hold(size, value.shape[2], query.dtype, torch.get_num_threads())
    if not lengths and key.shape[0] != heads:
        key, value = (one.repeat_interleave(heads // one.shape[0], 0) for one in (key, value))
    groups = heads // key.shape[0]
    if groups > 1 and groups * queries <= QUERIES:
        # Heads that share keys share a block.
        query = query.reshape(key.shape[0], groups * queries, size)
        bias = None if bias is None else bias.reshape(key.shape[0], groups * queries, -1)
        made = _attended(query, key, value, bias, sequence, asked, lengths, repeated=groups)
        return made.view(groups, queries, key.shape[0], -1).permute(1, 2, 0, 3).reshape(queries, heads, -1)
    return _attended(query, key, value, bias, sequence, asked, lengths)


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, sequence: Sequence,
    asked: Attention, lengths: tuple[int, ...], repeated: int = 1,
) -> torch.Tensor:  # fmt: skip
    """The same for as many queries as the sequence has, `repeated` one after the other."""
    heads, queries = query.shape[:2]
    groups, front = heads // key.shape[0], sequence.before % _SPLIT
    filled = -(-queries // QUERIES) * QUERIES
    step = _STEP if lengths else _SPLIT
    seen = [
        _seen(sequence, start, min(start + step, queries), repeated, lengths, query.dtype, groups)
        for start in range(0, queries, step)
    ]
    keys = max(one.shape[-1] for one in seen)
    used = min(keys - front, key.shape[1])
    key, value = (_padded(one[:, :used], front, keys - front - used) for one in (key, value))
    blocks = _blocks(_padded(query, 0, filled - queries), groups)
    if bias is not None:
        bias = pad(bias[..., :used], (front, keys - front - used, 0, filled - queries)).to(query.dtype)
        bias = _blocks(bias, groups)
    out = query.new_empty(filled, heads, value.shape[2])
    for index, allowed in enumerate(seen):
        some = slice(index * step // QUERIES * groups, (index + 1) * step // QUERIES * groups)
        length = allowed.shape[-1]
        own, other = key[:, :length], value[:, :length]
        added = None if bias is None else bias[some][..., :length]
        if lengths:
            mask = allowed if added is None else added + allowed
            one = blocks[some]
            own, other = (each.expand(one.shape[0], *each.shape) for each in (own, other))
            made = scaled_dot_product_attention(one, own, other, mask, scale=asked.scale)
        else:
            made = composed(blocks[some], own, other, allowed, added, asked)
        made = made.view(-1, groups, *made.shape[1:]).permute(0, 3, 2, 1, 4)
        out[index * step : index * step + made.shape[0] * QUERIES].view(made.shape).copy_(made)
    return out[:queries]


def _seen(
    sequence: Sequence, start: int, end: int, repeated: int, lengths: tuple[int, ...], dtype: torch.dtype, groups: int
) -> torch.Tensor:  # fmt: skip
    """Which keys some queries see: `[blocks * groups, 1, queries of a block, keys]`. What fills a block up sees the first key.

    For torch's kernel it is what is added to the scores, else it is of bool.
    """
    name = start, end, repeated, lengths, dtype, groups
    ready = sequence.made.get(name)
    if ready is not None:
        return ready
    allowed = sequence.allowed.repeat(repeated, 1)[start:end]
    front = sequence.before % _SPLIT
    columns = allowed.any(0).nonzero()
    last = front + (int(columns[-1]) + 1 if len(columns) else 1)
    keys = _long_enough(last, lengths) if lengths else -(-last // _KEYS) * _KEYS
    allowed = allowed[:, : keys - front]
    rows = -(-(end - start) // QUERIES) * QUERIES
    made = pad(allowed, (front, keys - front - allowed.shape[1], 0, rows - (end - start)))
    made[end - start :, front] = True
    if lengths:
        made = torch.zeros(made.shape, dtype=dtype, device=made.device).masked_fill_(~made, -torch.inf)
    made = made.view(-1, 1, QUERIES, keys).repeat_interleave(groups, 0)
    sequence.made[name] = made
    return made


def _padded(rows: torch.Tensor, before: int, behind: int) -> torch.Tensor:
    """`[heads, rows, size]` with zeros around, contiguous."""
    return pad(rows, (0, 0, before, behind)) if before or behind else rows.contiguous()


def _blocks(rows: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """`[heads, rows, size]`, in whole blocks, as `[blocks * groups, heads / groups, rows of a block, size]`."""
    heads, count, size = rows.shape
    several = rows.view(heads // groups, groups, count // QUERIES, QUERIES, size)
    return several.permute(2, 1, 0, 3, 4).reshape(-1, heads // groups, QUERIES, size)


def composed(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, bias: torch.Tensor | None,
    asked: Attention,
) -> torch.Tensor:  # fmt: skip
    """The same out of products of one size, and of that dtype: in float32 or wider, for what torch's kernel can't do."""
    wide = torch.promote_types(query.dtype, torch.float32)
    query, key, value = (one.to(wide) for one in (query, key, value))
    scores: list[torch.Tensor] = []
    for start in range(0, key.shape[1], _KEYS):
        score = query @ key[:, start : start + _KEYS].transpose(1, 2) * asked.scale
        if asked.softcap is not None:
            score = aligned(torch.tanh, score / asked.softcap) * asked.softcap
        if bias is not None:
            score = score + bias[..., start : start + _KEYS]
        scores.append(score.masked_fill(~seen[..., start : start + _KEYS], -torch.inf))
    largest = torch.stack([score.amax(-1, keepdim=True) for score in scores]).amax(0)
    total = torch.zeros((), dtype=wide)
    if asked.sinks is not None:
        sinks = asked.sinks.to(wide).view(1, -1, 1, 1)
        largest = torch.maximum(largest, sinks)
        total = torch.exp(sinks - largest)
    result = torch.zeros((), dtype=wide)
    for index, score in enumerate(scores):
        weights = aligned(torch.exp, score - largest)
        total = total + weights.sum(-1, keepdim=True)
        result = result + weights @ value[:, index * _KEYS : (index + 1) * _KEYS]
    return result / total


def _long_enough(keys: int, lengths: tuple[int, ...]) -> int:
    """The smallest number of keys, no smaller than this, whose last split has a length that holds.

    >>> _long_enough(100, (64, 128, 512)), _long_enough(200, (64, 128, 512)), _long_enough(515, (64, 128, 512))
    (128, 512, 576)
    """
    splits, rest = divmod(keys - 1, _SPLIT)
    return splits * _SPLIT + next(length for length in lengths if length > rest)


@cache
def lengths_that_hold(size: int, value_size: int, dtype: torch.dtype, threads: int) -> tuple[int, ...]:
    """Numbers of keys, up to a split, at which torch's kernel sums in the order of a whole split, whatever stands beside a query.

    A split is among them, unless the kernel is of no use: then there are none.

    Args:
        size, value_size: of a query's row, and of a value's.
        dtype: of both.
        threads: that torch uses.
    """
    del threads
    if size != value_size:
        return ()
    lengths = range(_KEYS, _SPLIT + 1, _KEYS)
    trials = [make(size, dtype, seed) for make in (_values_cancel, _scores_cancel) for seed in range(2)]
    held = tuple(length for length in lengths if all(trial.holds(length) for trial in trials))
    return held if _SPLIT in held else ()


class _Trial:
    """Attention of some queries in which the order of the sums decides what comes out.

    Attributes:
        query: `[heads, queries, size]`.
        key, value: `[heads, keys, size]`, for two splits.
        scale: factor of the scores.
    """

    def __init__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> None:
        self.query, self.key, self.value, self.scale = query, key, value, scale

    def holds(self, length: int) -> bool:
        """Whether nothing changes if keys beyond that many are left out, nor if queries are."""
        for first, seen in ((0, length), (0, _SPLIT + length), (_SPLIT, _SPLIT + length)):
            whole = self._made(slice(0, None), 0, 2 * _SPLIT, first, seen - 5)
            cut = self._made(slice(0, None), first, seen, first, seen - 5)
            alone = self._made(slice(40, 41), first, seen, first, seen - 5)
            several = self._made(slice(35, 52), first, seen, first, seen - 5)
            if not (
                torch.equal(whole, cut)
                and torch.equal(whole[40], alone[0])
                and torch.equal(whole[35:52], several[:17])
            ):
                return False
        return True

    def _made(self, rows: slice, first: int, last: int, seen_from: int, seen_to: int) -> torch.Tensor:
        query = self.query[:, rows]
        blocks = _blocks(_padded(query, 0, -query.shape[1] % QUERIES))
        mask = torch.zeros(len(blocks), 1, QUERIES, last - first, dtype=torch.bool)
        mask[..., seen_from - first : seen_to - first] = True
        own, other = (one[:, first:last].expand(len(blocks), -1, -1, -1) for one in (self.key, self.value))
        result = scaled_dot_product_attention(blocks, own, other, mask, scale=self.scale)
        return result.permute(0, 2, 1, 3).reshape(-1, *result.shape[1::2])


_HEADS, _ROWS = 4, 3 * QUERIES


def _values_cancel(size: int, dtype: torch.dtype, seed: int) -> _Trial:
    """All weights are one, and values come with their negatives: what is left is rounding."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.zeros(_HEADS, _ROWS, size, dtype=dtype)
    key, value = (torch.randn(_HEADS, 2 * _SPLIT, size, generator=generator) for _ in range(2))
    for start in range(0, 2 * _SPLIT, _KEYS):
        order = start + torch.randperm(_KEYS, generator=generator)
        value[:, order[::2]] = -value[:, order[1::2]]
    return _Trial(query, key.to(dtype), value.to(dtype), 1.0)


def _scores_cancel(size: int, dtype: torch.dtype, seed: int) -> _Trial:
    """The scores are rounding alone, made large."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(_HEADS, _ROWS, size, generator=generator)
    key, value = (torch.randn(_HEADS, 2 * _SPLIT, size, generator=generator) for _ in range(2))
    order = torch.randperm(size, generator=generator)
    first, second = order[: size // 2], order[size // 2 : size // 2 * 2]
    query[..., second] = query[..., first]
    key[..., second] = -key[..., first]
    if size % 2:
        query[..., order[-1]] = 0
    return _Trial(query.to(dtype), key.to(dtype), value.to(dtype), 2.0**20)
