"""The usual pairs of runs: padding added, mates added, a cache used."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .case import Pair, Side
from .tokens import at, first_rows, joined, main_tensor, pad, positions, row, whole, words


def padded(
    model: Any,
    side: str = "right",
    *,
    length: int = 9,
    extra: int = 4,
    mask: bool = True,
    position_ids: bool = False,
    mates: int = 0,
    vector: bool = False,
    model_b: Any = None,
    more: dict[str, Any] | None = None,
    **pair: Any,
) -> Pair:
    """A row alone, against the same row padded (with mates that fill the width).

    Args:
        mask: give the attention mask; without it run b's layout is given by hand.
        position_ids: give run b positions made from the mask.
        vector: the model returns one value a row instead of one a token.
        more: further arguments of both runs.
    """
    tokens = words(length)
    ids, real = pad(
        [tokens, *(words(length + extra, seed=1 + n) for n in range(mates))], side, length + extra
    )
    a: dict[str, Any] = {"input_ids": row(tokens), **(more or {})}
    b: dict[str, Any] = {"input_ids": ids, **(more or {})}
    if mask:
        a["attention_mask"], b["attention_mask"] = torch.ones_like(a["input_ids"]), real
    if position_ids:
        b["position_ids"] = positions(real)
    pick = (whole(), first_rows(1)) if vector else (at(torch.ones(1, length)), at(real, rows=[0]))
    layout = None if mask else (lambda fp: fp.Layout.from_mask(real))
    return Pair(
        Side(model, a, pick[0]),
        Side(model if model_b is None else model_b, b, pick[1], layout=layout),
        **pair,
    )


def batched(
    model: Any,
    *,
    length: int = 9,
    mates: int = 7,
    place: int = 0,
    mask: bool = False,
    vector: bool = False,
    name: str = "input_ids",
    rows: list[list[int]] | None = None,
    **pair: Any,
) -> Pair:
    """A row alone, against the same row among mates of the same length, at `place` of the batch."""
    others = rows or [words(length, seed=1 + n) for n in range(mates)]
    together = [*others[:place], words(length), *others[place:]]
    a: dict[str, Any] = {name: row(words(length))}
    b: dict[str, Any] = {name: torch.tensor(together)}
    if mask:
        for given in (a, b):
            given["attention_mask"] = torch.ones_like(given[name])

    def one(outputs: list[Any]) -> Tensor:
        return main_tensor(outputs[0])[[place]]

    return Pair(Side(model, a, whole()), Side(model, b, one), **pair)


def cached(
    model: Any,
    *,
    prompt: int = 6,
    steps: int = 4,
    rows: int = 1,
    position_ids: Callable[[int, int], Tensor] | None = None,
    model_b: Any = None,
    **pair: Any,
) -> Pair:
    """Prefill and decoding steps, against one full forward.

    Args:
        position_ids: from (first column, columns), the position ids of a call of run a.
    """
    ids = torch.tensor([words(prompt + steps, seed=n) for n in range(rows)])
    calls: list[dict[str, Any]] = []
    edges = [0, *range(prompt, prompt + steps + 1)]
    for start, end in pairwise(edges):
        call: dict[str, Any] = {"input_ids": ids[:, start:end]}
        if position_ids is not None:
            call["position_ids"] = position_ids(start, end - start)
        calls.append(call)
    return Pair(
        Side(model, calls, joined()),
        Side(model if model_b is None else model_b, {"input_ids": ids}, joined()),
        **pair,
    )


def twice(model: Any, model_b: Any = None, *, length: int = 9, mask: bool = False, **pair: Any) -> Pair:
    """The same inputs in both runs, of one model or of two."""
    given: dict[str, Any] = {"input_ids": row(words(length))}
    if mask:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
    return Pair(
        Side(model, given, whole()), Side(model if model_b is None else model_b, dict(given), whole()), **pair
    )


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Generator[None]:
    """An attribute of a module or object patched, and put back."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
