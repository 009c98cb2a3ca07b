"""Token ids, masks and positions, and the picking of shared values out of a model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 96
PAD, BOS, EOS = 0, 1, 2


def words(length: int, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randint(5, VOCABULARY, (length,), generator=generator).tolist()


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2000 + seed))


def row(ids: Iterable[int]) -> Tensor:
    return torch.tensor([list(ids)])


def pad(rows: Sequence[Sequence[int]], side: str = "right", to: int | None = None) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [rows, columns]."""
    width = max([to or 0, *(len(ids) for ids in rows)])
    ids = torch.full((len(rows), width), PAD)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, tokens in enumerate(rows):
        where = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
        ids[index, where] = torch.tensor(list(tokens))
        mask[index, where] = 1
    return ids, mask


def pad_floats(x: Tensor, side: str, extra: int, value: float = 0.0) -> tuple[Tensor, Tensor]:
    """[1, T, F] with columns of `value` put before or behind, and the mask."""
    filling = torch.full((x.shape[0], extra, *x.shape[2:]), value, dtype=x.dtype)
    ones, zeros = torch.ones(x.shape[:2], dtype=torch.long), torch.zeros(x.shape[0], extra, dtype=torch.long)
    if side == "left":
        return torch.cat([filling, x], 1), torch.cat([zeros, ones], 1)
    return torch.cat([x, filling], 1), torch.cat([ones, zeros], 1)


def positions(mask: Tensor) -> Tensor:
    """Position ids as `generate` makes them for decoders: real tokens count from 0."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


# ---------------------------------------------------------------------- picking


def main_tensor(output: Any) -> Tensor:
    """The logits, hidden states or embedding that a call returned."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state", "pooler_output"):
        value = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    return main_tensor(output[0])


Pick = Callable[[list[Any]], Tensor]


def at(mask: Tensor, rows: Sequence[int] | None = None, call: int = 0) -> Pick:
    """Values at the real tokens of the given rows (all, unless named), [tokens, ...]."""

    def pick(outputs: list[Any]) -> Tensor:
        values = main_tensor(outputs[call])
        chosen = list(range(mask.shape[0])) if rows is None else list(rows)
        return torch.cat([values[index][mask[index].bool()] for index in chosen])

    return pick


def whole(call: int = 0) -> Pick:
    return lambda outputs: main_tensor(outputs[call])


def first_rows(count: int, call: int = 0) -> Pick:
    """Values of the first rows, whole."""
    return lambda outputs: main_tensor(outputs[call])[:count]


def first_tokens(count: int, rows: Sequence[int] = (0,), call: int = 0) -> Pick:
    return lambda outputs: main_tensor(outputs[call])[list(rows), :count]


def joined(mask: Tensor | None = None) -> Pick:
    """Values of all calls one after the other, each row's tokens in order: what a cached run made.

    The mask covers all columns of all calls; without one, every column counts.
    """

    def pick(outputs: list[Any]) -> Tensor:
        values = torch.cat([main_tensor(output) for output in outputs], 1)
        real = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        return torch.cat([values[index][real[index]] for index in range(values.shape[0])])

    return pick


def loss(outputs: list[Any]) -> Tensor:
    return outputs[0].loss.reshape(1)
