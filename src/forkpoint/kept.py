"""What a forward call may rewrite in a model, and putting it back: buffers, attributes, hooks, training flags.

All of it is looked at before and after every run, so it is kept in long lists, not in a copy for each module.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from itertools import chain, compress, filterfalse
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forkpoint.modules import Survey, survey
from forkpoint.native import compiled

MAX_SAVED_BUFFER = 1 << 26
"""Buffers above this many bytes are not copied before a run (quantised weights kept as buffers)."""

_CONTAINERS = frozenset({dict, OrderedDict, list, set})


@contextmanager
def kept_state(model: nn.Module | None, found: Survey | None = None) -> Generator[None]:
    """Put back whatever a forward call rewrites in a model.

    Args:
        model: the model.
        found: what it consists of, where somebody has just looked.
    """
    if model is None:
        yield
        return
    kept = Kept((found or survey(model)).modules)
    try:
        yield
    finally:
        kept.restore()


class Kept:
    """The state of modules: what they hold, and the values of their small buffers.

    Attributes:
        tensors: those that are not large, with their versions and copies.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.held = held_by(modules)
        self.tensors = [
            (tensor, version(tensor), tensor.detach().clone())
            for tensor in self.held.tensors
            if tensor.layout == torch.strided and tensor.nbytes <= MAX_SAVED_BUFFER
        ]

    def restore(self) -> None:
        """Put everything back that is not what it was."""
        with torch.no_grad():
            for tensor, before, value in self.tensors:
                if before is None or version(tensor) != before:
                    tensor.detach().copy_(value)
        for container, before in self.held.containers:
            _refill(container, before)
        for container in self.held.filled():
            container.clear()
        for entries, keys, values in self.held.changed():
            entries.clear()
            entries.update(zip(keys, values, strict=True))


class PythonHeld:
    """What modules hold: their attributes, and the entries of those that are containers.

    It is looked at twice a run, so that it is also written in C (`native/held.c`).

    Args:
        modules: the modules.
        tensor: the class of tensors.

    Attributes:
        containers: lists and sets that hold something, each with a copy.
        tensors: those among the attributes, and buffers.
    """

    def __init__(self, modules: list[nn.Module], tensor: type[Tensor]) -> None:
        attributes = [module.__dict__ for module in modules]
        values = list(chain.from_iterable(map(dict.values, attributes)))
        kinds = list(map(type, values))
        containers = list(compress(values, map(_CONTAINERS.__contains__, kinds)))
        held = list(filter(None, containers))
        self._empty = list(filterfalse(None, containers))
        self.containers = [(value, value.copy()) for value in held if not isinstance(value, dict)]
        self._dicts = [*attributes, *(value for value in held if isinstance(value, dict))]
        self._sizes = list(map(len, self._dicts))
        self._keys, self._values = _entries(self._dicts)
        tensors = {kind for kind in set(kinds) if issubclass(kind, tensor)}
        self.tensors = list(compress(values, map(tensors.__contains__, kinds)))
        buffers = [module._buffers.values() for module in modules if module._buffers]
        self.tensors += [value for value in chain.from_iterable(buffers) if value is not None]

    def filled(self) -> list[Any]:
        """The containers that held nothing and now do."""
        return list(filter(None, self._empty))

    def changed(self) -> list[tuple[dict[Any, Any], list[Any], list[Any]]]:
        """The dicts that hold other objects, or under other keys, or in another order; with what they held."""
        if self._same():
            return []
        found: list[tuple[dict[Any, Any], list[Any], list[Any]]] = []
        start = 0
        for entries, size in zip(self._dicts, self._sizes, strict=True):
            end = start + size
            keys, values = self._keys[start:end], self._values[start:end]
            now = chain(entries, entries.values())
            if len(entries) != size or not all(map(operator.is_, now, chain(keys, values))):
                found.append((entries, keys, values))
            start = end
        return found

    def _same(self) -> bool:
        if list(map(len, self._dicts)) != self._sizes:
            return False
        keys, values = _entries(self._dicts)
        return all(map(operator.is_, keys, self._keys)) and all(map(operator.is_, values, self._values))


Held = PythonHeld if TYPE_CHECKING or compiled is None else compiled.Held


def held_by(modules: list[nn.Module]) -> PythonHeld:
    """What modules hold; in Python where some hold it in what is no dict, as scripted ones do."""
    try:
        return Held(modules, Tensor)
    except TypeError:
        return PythonHeld(modules, Tensor)


def _entries(dicts: list[dict[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """The keys and values of many dicts, one after the other."""
    return list(chain.from_iterable(dicts)), list(chain.from_iterable([d.values() for d in dicts]))


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
