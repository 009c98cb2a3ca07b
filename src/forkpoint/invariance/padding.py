"""Padding is not computed: products leave out its rows, and put zeros in their place.

The mask that a call of the model is given says which columns are padding. A product of `[batch, columns, …]`, of the same
batch and columns as that mask, is one of tokens: so it is where nothing but token ids goes in, and the batch is not as
large as the number of columns.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch

_ROWS = {"cpu": 32}
_ROWS_ELSEWHERE = 512
"""Rows of padding from which on it is cheaper to bring the others together."""


class Tokens:
    """The tokens of a padded batch.

    Attributes:
        shape: batch and columns.
        indices: of the tokens among all of them, int64.
    """

    def __init__(self, are_tokens: torch.Tensor) -> None:
        self.shape = are_tokens.shape
        self.indices = are_tokens.flatten().nonzero()[:, 0]

    def rows_of(self, x: torch.Tensor) -> torch.Tensor:
        """The rows `[tokens, …]` of `[batch, columns, …]`."""
        return x.reshape(-1, x.shape[-1]).index_select(0, self.indices)

    def put(self, rows: torch.Tensor) -> torch.Tensor:
        """`[batch, columns, …]` with those rows, and zeros for padding."""
        made = rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[-1])
        return made.index_copy_(0, self.indices, rows).view(*self.shape, -1)


class _TokenState(threading.local):
    def __init__(self) -> None:
        self.tokens: Tokens | None = None


_thread = _TokenState()


def of(x: torch.Tensor) -> Tokens | None:
    """The tokens of a tensor, where some of its rows are padding; None for any other."""
    tokens = _thread.tokens
    return tokens if tokens is not None and x.dim() == 3 and x.shape[:2] == tokens.shape else None


def begin(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tokens | None:
    """A call of the model begins; returns what is to be handed to `end`."""
    before = _thread.tokens
    _thread.tokens = _tokens(model, args, kwargs)
    return before


def end(before: Tokens | None) -> None:
    """The call ends."""
    _thread.tokens = before


def _tokens(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tokens | None:
    given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    ids, mask = given.get("input_ids", given.get(0)), given.get("attention_mask")
    config = getattr(model, "config", None)
    if (
        not isinstance(ids, torch.Tensor)
        or not isinstance(mask, torch.Tensor)
        or mask.dim() != 2
        or ids.dim() != 2
        or ids.is_floating_point()
        or config is None
        or getattr(config, "is_encoder_decoder", False)
        or any(
            isinstance(one, torch.Tensor) and one.is_floating_point() and one is not mask
            for one in given.values()
        )
    ):
        return None
    batch, columns = ids.shape
    if mask.shape[0] != batch or mask.shape[1] < columns or batch == columns:
        return None
    rows = _ROWS.get(ids.device.type, _ROWS_ELSEWHERE)
    if batch * columns <= rows:
        return None
    tokens = Tokens(mask[:, mask.shape[1] - columns :] != 0)
    count = len(tokens.indices)
    return tokens if 0 < count <= batch * columns - rows else None
