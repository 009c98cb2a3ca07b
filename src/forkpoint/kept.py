"""What a forward call may rewrite in a model, and putting it back: buffers, attributes, hooks, training flags.

All of it is looked at before and after every run, so it is kept in long lists, not in a copy for each module.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.modules import walk

MAX_SAVED_BUFFER = 1 << 26
"""Buffers above this many bytes are not copied before a run (quantised weights kept as buffers)."""

_CONTAINERS = frozenset({dict, OrderedDict, list, set})
_PLAIN = frozenset({bool, int, float, str, type(None)})
"""Kinds of attributes that hold nothing which a call could rewrite."""


@contextmanager
def kept_state(model: nn.Module | None) -> Generator[None]:
    """Put back whatever a forward call rewrites in a model."""
    if model is None:
        yield
        return
    kept = Kept([module for _, module in walk(model)])
    try:
        yield
    finally:
        kept.restore()


class Kept:
    """What modules hold: their attributes, the entries of those that are containers, and small buffers' values.

    Attributes:
        attributes: of each module, the dict that holds them.
        ends: of each module, where its attributes end in the next two.
        keys, values: the attributes of all modules, one after the other.
        containers: those that hold something, each with a copy.
        empty: those that hold nothing.
        tensors: with their versions and copies.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.attributes: list[dict[str, Any]] = []
        self.ends: list[int] = []
        self.keys: list[str] = []
        self.values: list[Any] = []
        self.containers: list[tuple[Any, Any]] = []
        self.empty: list[Any] = []
        self.tensors: list[tuple[Tensor, int | None, Tensor]] = []
        for module in modules:
            self.collect(module)

    def collect(self, module: nn.Module) -> None:
        """Note what a module holds."""
        attributes = module.__dict__
        self.attributes.append(attributes)
        for key, value in attributes.items():
            self.keys.append(key)
            self.values.append(value)
            kind = type(value)
            if kind in _CONTAINERS:
                if value:
                    self.containers.append((value, value.copy()))
                else:
                    self.empty.append(value)
            elif kind not in _PLAIN and isinstance(value, Tensor):
                self.save(value)
        self.ends.append(len(self.keys))
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
        for container in self.empty:
            if container:
                container.clear()
        start = 0
        for attributes, end in zip(self.attributes, self.ends, strict=True):
            if not self.same(attributes, start, end):
                saved = dict(zip(self.keys[start:end], self.values[start:end], strict=True))
                for key in attributes.keys() - saved.keys():
                    del attributes[key]
                attributes.update(saved)
            start = end

    def same(self, attributes: dict[str, Any], start: int, end: int) -> bool:
        """Whether a module's attributes are the very same objects under the same keys, in the same order."""
        if len(attributes) != end - start:
            return False
        for key, value in attributes.items():
            if value is not self.values[start] or key != self.keys[start]:
                return False
            start += 1
        return True


def _identical(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether a dict holds the very same objects under the same keys, in the same order."""
    return (
        len(now) == len(before)
        and all(map(operator.is_, now.values(), before.values()))
        and all(map(operator.eq, now, before))
    )


def _refill(container: Any, before: Any) -> None:
    """Make a container hold what it held, if it does not."""
    if isinstance(container, dict):
        same = _identical(container, before)
    elif isinstance(container, list):
        same = len(container) == len(before) and all(map(operator.is_, container, before))
    else:
        same = container == before
    if not same:
        container.clear()
        if isinstance(container, list):
            container.extend(before)
        else:
            container.update(before)


def version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None where torch keeps no count (inference mode)."""
    return None if tensor.is_inference() else tensor._version
