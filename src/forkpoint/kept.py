"""What a forward call may rewrite in a model, and putting it back: buffers, attributes, hooks, training flags.

All of it is looked at before and after every run, so it is kept in long lists, not in a copy for each module.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from itertools import chain, compress, filterfalse
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.modules import every

MAX_SAVED_BUFFER = 1 << 26
"""Buffers above this many bytes are not copied before a run (quantised weights kept as buffers)."""

_CONTAINERS = frozenset({dict, OrderedDict, list, set})


@contextmanager
def kept_state(model: nn.Module | None) -> Generator[None]:
    """Put back whatever a forward call rewrites in a model."""
    if model is None:
        yield
        return
    kept = Kept(every(model))
    try:
        yield
    finally:
        kept.restore()


class Kept:
    """What modules hold: their attributes, the entries of those that are containers, and small buffers' values.

    Attributes:
        dicts: the attributes of each module, and those of them that are dicts and hold something.
        sizes: how many entries each of them has.
        keys, values: the entries of all of them, one after the other.
        containers: lists and sets that hold something, each with a copy.
        empty: containers that hold nothing.
        tensors: with their versions and copies.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        attributes = [module.__dict__ for module in modules]
        values = list(chain.from_iterable(map(dict.values, attributes)))
        kinds = list(map(type, values))
        containers = list(compress(values, map(_CONTAINERS.__contains__, kinds)))
        held = list(filter(None, containers))
        self.empty: list[Any] = list(filterfalse(None, containers))
        self.containers = [(value, value.copy()) for value in held if not isinstance(value, dict)]
        self.dicts = [*attributes, *(value for value in held if isinstance(value, dict))]
        self.sizes = list(map(len, self.dicts))
        self.keys, self.values = _entries(self.dicts)
        self.tensors: list[tuple[Tensor, int | None, Tensor]] = []
        tensors = {kind for kind in set(kinds) if issubclass(kind, Tensor)}
        if tensors:
            for value in compress(values, map(tensors.__contains__, kinds)):
                self.save(value)
        for module in modules:
            if module._buffers:
                for value in module._buffers.values():
                    if value is not None:
                        self.save(value)

    def save(self, tensor: Tensor) -> None:
        """Keep a copy of a tensor, unless it is large."""
        if tensor.layout == torch.strided and tensor.nbytes <= MAX_SAVED_BUFFER:
            self.tensors.append((tensor, version(tensor), tensor.detach().clone()))

    def restore(self) -> None:
        """Put everything back that is not what it was."""
        with torch.no_grad():
            for tensor, before, value in self.tensors:
                if before is None or version(tensor) != before:
                    tensor.detach().copy_(value)
        for container, before in self.containers:
            _refill(container, before)
        if any(self.empty):
            for container in self.empty:
                container.clear()
        if not self.same():
            start = 0
            for entries, size in zip(self.dicts, self.sizes, strict=True):
                end = start + size
                _restore(entries, self.keys[start:end], self.values[start:end])
                start = end

    def same(self) -> bool:
        """Whether all dicts hold the very same objects under the same keys, in the same order."""
        if list(map(len, self.dicts)) != self.sizes:
            return False
        keys, values = _entries(self.dicts)
        return all(map(operator.is_, keys, self.keys)) and all(map(operator.is_, values, self.values))


def _entries(dicts: list[dict[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """The keys and values of many dicts, one after the other."""
    return list(chain.from_iterable(dicts)), list(chain.from_iterable([d.values() for d in dicts]))


def _restore(entries: dict[Any, Any], keys: list[Any], values: list[Any]) -> None:
    """Make a dict hold what it held, in that order, if it does not."""
    now = chain(entries, entries.values())
    if len(entries) != len(keys) or not all(map(operator.is_, now, chain(keys, values))):
        entries.clear()
        entries.update(zip(keys, values, strict=True))


def _refill(container: Any, before: Any) -> None:
    """Make a list or a set hold what it held, if it does not."""
    if isinstance(container, list):
        if len(container) != len(before) or not all(map(operator.is_, container, before)):
            container[:] = before
    elif container != before:
        container.clear()
        container.update(before)


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None where torch keeps no count (inference mode)."""
    return None if tensor.is_inference() else tensor._version
