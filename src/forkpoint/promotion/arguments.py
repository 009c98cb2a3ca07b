"""Whole arguments and results of a call, with tensors somewhere inside lists, tuples and dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import torch

from forkpoint.promotion.dtypes import WIDE
from forkpoint.promotion.values import Values, cast_tensor

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]

hidden = torch._C.DisableTorchFunction
"""Our own casts are not calls of the model: no mode may see them, not even one outside ours."""


class Arguments:
    """Reads the arguments of calls as a function needs them. Call it within `hidden()`."""

    def __init__(self, values: Values) -> None:
        self.values = values

    def wide(self, value: Any, casts_made: list[tuple[torch.Tensor, torch.Tensor]] | None = None) -> Any:
        """In float64, tensors and dtypes; passing copies are listed in `casts_made` with their originals."""
        if isinstance(value, torch.Tensor):
            wide = self.values.of(value)
            if casts_made is not None and wide is not value and not self.values.has_twin(value):
                casts_made.append((value, wide))
            return wide
        if isinstance(value, torch.dtype):
            return WIDE.get(value, value)
        return mapped(value, lambda part: self.wide(part, casts_made))

    def as_is(self, value: Any) -> Any:
        """As the model passed them, but with what has been written."""
        if isinstance(value, torch.Tensor):
            return self.values.as_is(value)
        return mapped(value, self.as_is)

    def writable(self, value: Any) -> Any:
        """Float64 tensors that stand for those that the model writes to."""
        if isinstance(value, torch.Tensor):
            return self.values.writable(value)
        return mapped(value, self.writable)

    def narrow(self, value: Any, dtype: torch.dtype) -> Any:
        """As the model would pass them without promotion: exact values rounded to its dtype."""
        if isinstance(value, torch.Tensor):
            if value.dtype == torch.float64:
                return value.to(dtype)
            return self.values.of(value).to(value.dtype) if self.values.has_twin(value) else value
        if value is torch.float64:
            return dtype
        return mapped(value, lambda part: self.narrow(part, dtype))


def widened(result: Any) -> Any:
    """A result in float64, whatever dtype the function chose for it."""
    if isinstance(result, torch.Tensor):
        with hidden():
            wide = WIDE.get(result.dtype)
            return result if wide is None else cast_tensor(result, wide)
    return mapped(result, widened)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same list, tuple or dict with every part changed; anything else as it is.

    >>> mapped({"a": [1, 2]}, lambda part: mapped(part, lambda number: number + 1))
    {'a': [2, 3]}
    """
    if type(value) is tuple:
        return tuple([change(part) for part in cast("tuple[Any, ...]", value)])
    if not isinstance(value, list | tuple | dict) or isinstance(value, torch.Size):
        return value
    if isinstance(value, list):
        return [change(part) for part in cast("list[Any]", value)]
    if isinstance(value, dict):
        return {key: change(part) for key, part in cast("dict[Any, Any]", value).items()}
    old = cast("tuple[Any, ...]", value)
    new = [change(part) for part in old]
    kind: Any = type(old)  # a named tuple, or torch.return_types.max and its like
    return kind(*new) if hasattr(old, "_fields") else kind(new)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor inside."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for part in cast("dict[Any, Any]", value).values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in cast("list[Any]", value):
            yield from tensors(part)
