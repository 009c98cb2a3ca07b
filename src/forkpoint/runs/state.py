"""What a forward call may rewrite in a model, and putting it back: tensors, attributes, hooks, training flags.

All of it is looked at before and after every run, so it is kept in long lists, not in a copy for each module.
"""

from __future__ import annotations

import operator
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, compress, filterfalse
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.native.choice import choose
from forkpoint.runs.contents import Contents, shared
from forkpoint.runs.modules import Survey, survey
from forkpoint.runs.objects import is_pythons
from forkpoint.runs.oddities import ODD, Odd, odd_of, slots_of
from forkpoint.support.restoring import undone

_CONTAINERS = frozenset({dict, OrderedDict, list, set})

_OWN = ("_parameters", "_buffers", "_modules")
"""The dicts of a module that are looked into as what they are."""


@contextmanager
def kept_state(
    model: nn.Module | None,
    *,
    parts: Survey | None = None,
    weights: bool = True,
    by: object = None,
    settle: Callable[[], object] | None = None,
    returned: Callable[[], Sequence[Tensor]] = tuple,
) -> Generator[None]:
    """Put back whatever a forward call rewrites in a model.

    Args:
        model: the model.
        parts: a survey of it that was just made; None to make one.
        weights: whether it may write its parameters.
        by: who makes the call. Parameters are compared by value the first time that somebody does; later, where runs
            share their `contents`, only if torch has counted a write.
        settle: called before the value of a tensor is put back.
        returned: what the call has returned; tensors that lie in what is put back get memory of their own.

    Raises:
        CaptureError: something was written that was too large to be copied.
    """
    if model is None:
        yield
        return
    contents = shared() or Contents()
    first = contents.meet(by)
    state = ModuleState((parts or survey(model)).modules)
    contents.note(state.tensors)
    if weights:
        contents.note_parameters(model, state.modules)
    over = False

    def put_back() -> None:
        try:
            state.restore()
        finally:
            if over:
                contents.put_back(thoroughly=first, settle=settle, returned=returned)
            else:  # nobody wants what a call gave that failed, nor what was seen of it
                contents.put_back(thoroughly=first)

    with undone(put_back):
        yield
        over = True


class ModuleState:
    """The state of modules: what they hold, in attributes, containers and plain objects that can be reached from them.

    Attributes:
        modules: these, and those that are no module's own (in a list, in an object).
        tensors: all that are found there, and buffers; no parameters.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._held: list[PythonHeld] = []
        self._odd: list[Odd] = []
        self._deeper: list[tuple[Any, Any]] = []
        self.modules: list[nn.Module] = []
        self.tensors: list[Tensor] = []
        seen = set(map(id, modules))
        more = modules
        while more:
            held = held_by(more)
            self._held.append(held)
            self.modules += more
            self.tensors += held.tensors
            others = [*held.others, *self._on_parameters(more), *self._in_slots(more)]
            more = []
            for hidden in self._look_into(others, seen):
                more += [module for module in survey(hidden).modules if id(module) not in seen]
                seen.update(map(id, more))
        self._alone = [tensor for tensor in self.tensors if not tensor.requires_grad]
        weights = chain.from_iterable(module._parameters.values() for module in self.modules)
        self._gradients = [(w, w.requires_grad, w.grad) for w in weights if w is not None and w.is_leaf]

    def restore(self) -> None:
        """Have everything hold again what it held; the values of tensors are `Contents`' part."""
        with torch._C.DisableTorchFunction():
            for weight, wanted, gradient in self._gradients:
                if weight.requires_grad is not wanted:
                    weight.requires_grad_(wanted)
                if weight.grad is not gradient:
                    weight.grad = gradient
            for tensor in self._alone:
                if (
                    tensor.requires_grad
                ):  # gradients lead to what was written there, with the whole run behind it
                    with suppress(RuntimeError):  # views can't be parted from it
                        tensor.detach_()
            for odd in self._odd:
                odd.restore()
        for container, before in chain(*(held.containers for held in self._held), self._deeper):
            _refill(container, before)
        for held in self._held:
            for container in held.filled():
                container.clear()
            for entries, keys, values in held.changed():
                entries.clear()
                entries.update(zip(keys, values, strict=True))

    def _on_parameters(self, modules: list[nn.Module]) -> list[Any]:
        """Note what parameters hold as attributes: bitsandbytes' hand their scales on to an object of the module."""
        held: list[Any] = []
        for module in modules:
            for parameter in module._parameters.values():
                attributes = None if parameter is None else parameter.__dict__
                if attributes:
                    self._deeper.append((attributes, dict(attributes)))
                    held += attributes.values()
        nothing = _holding_nothing(held)
        return [value for value in held if type(value) not in nothing]

    def _in_slots(self, modules: list[nn.Module]) -> list[Any]:
        """Note what modules hold in slots of their classes."""
        held: list[Any] = []
        slotted = {kind for kind in set(map(type, modules)) if slots_of(kind)}
        for odd in map(odd_of, (module for module in modules if type(module) in slotted)):
            if odd is not None:
                self._odd.append(odd)
                held += odd.inside
        nothing = _holding_nothing(held)
        return [value for value in held if type(value) not in nothing]

    def _look_into(self, values: Iterable[Any], seen: set[int]) -> list[nn.Module]:
        """Note what containers and objects hold, and those in them; returns modules that no module has as its own."""
        hidden: list[nn.Module] = []
        _holding_nothing(values)
        waiting = [(value, True) for value in values]
        for value, is_attribute in waiting:  # grows meanwhile
            if id(value) in seen or len(seen) > _MOST:
                continue
            seen.add(id(value))
            if isinstance(value, Tensor):
                self.tensors.append(value)
                continue
            if isinstance(value, nn.Module):
                seen.discard(id(value))
                hidden.append(value)
                continue
            inside: list[Any] = []
            noted = is_attribute and type(value) in _CONTAINERS  # by `PythonHeld`
            if isinstance(value, (dict, list, set, deque)):
                copy = _copy_of(value)
                if not noted:
                    self._deeper.append((value, copy))
                inside += copy.values() if isinstance(copy, dict) else copy
            elif isinstance(value, tuple):
                inside += value
            elif type(value) is partial:
                inside += (value.func, *value.args, *value.keywords.values())
            elif isinstance(value, MethodType):
                inside.append(value.__self__)
            odd = odd_of(value)
            if odd is not None:
                self._odd.append(odd)
                inside += odd.inside
            attributes = _attributes_of(value)
            if attributes is not None:
                self._deeper.append((attributes, dict(attributes)))
                inside += attributes.values()
            nothing = _holding_nothing(inside)
            waiting += [(item, False) for item in inside if type(item) not in nothing]
        return hidden


_MOST = 1 << 14
"""Modules, containers and objects that are looked into at most."""

_nothing: set[type] = {
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    FunctionType,
    BuiltinFunctionType,
}
"""Classes of objects that hold nothing which a forward call could rewrite, as far as they were met."""
_something: set[type] = {dict, OrderedDict, list, set, tuple, deque, partial, MethodType}


def _holding_nothing(values: Iterable[Any]) -> set[type]:
    """Classes of objects that hold nothing, those of these objects among them."""
    for kind in {type(value) for value in values} - _nothing - _something:
        holds = issubclass(kind, ODD) or (
            (
                issubclass(kind, (Tensor, nn.Module, dict, list, set, tuple, deque))
                or slots_of(kind)
                or (
                    hasattr(kind, "__dict__")
                    and kind.__dictoffset__
                    and not issubclass(kind, (type, ModuleType))
                )
            )
            and not is_pythons(kind)
        )
        (_something if holds else _nothing).add(kind)
    return _nothing


def _attributes_of(value: Any) -> dict[str, Any] | None:
    """The attributes of a plain object; None for what has none."""
    if type(value) in _something and type(value) not in (partial, MethodType):
        try:
            attributes = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return None
        return attributes if type(attributes) is dict else None
    return None


class PythonHeld:
    """What modules hold: their attributes, and the entries of those that are containers.

    It is looked at twice a run, so that it is also written in C (`native/held.c`).

    Args:
        modules: the modules.
        tensor: the class of tensors.
        nothing: classes of attributes that hold nothing.

    Attributes:
        containers: lists and sets that hold something, each with a copy.
        tensors: those among the attributes, and buffers.
        others: attributes that may hold more: containers that hold something, but for those of parameters, buffers and
            modules, and what is of none of the classes above.
    """

    def __init__(self, modules: list[nn.Module], tensor: type[Tensor], nothing: set[type]) -> None:
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
        own = {id(entries.get(name)) for entries in attributes for name in _OWN}
        settled = tensors | nothing
        self.others = [
            value
            for value, kind in zip(values, kinds, strict=True)
            if (value if kind in _CONTAINERS else kind not in settled) and id(value) not in own
        ]
        buffers = [module._buffers.values() for module in modules if module._buffers]
        self.tensors += [value for value in chain.from_iterable(buffers) if value is not None]

    def filled(self) -> list[Any]:
        """The containers that held nothing and now do."""
        return list(filter(None, self._empty))

    def changed(self) -> list[tuple[dict[Any, Any], list[Any], list[Any]]]:
        """The dicts that hold other objects, or under other keys, or in another order; with what they held."""
        if self._same():
            return []
        changes: list[tuple[dict[Any, Any], list[Any], list[Any]]] = []
        start = 0
        for entries, size in zip(self._dicts, self._sizes, strict=True):
            end = start + size
            keys, values = self._keys[start:end], self._values[start:end]
            now = chain(entries, entries.values())
            if len(entries) != size or not all(map(operator.is_, now, chain(keys, values))):
                changes.append((entries, keys, values))
            start = end
        return changes

    def _same(self) -> bool:
        if list(map(len, self._dicts)) != self._sizes:
            return False
        keys, values = _entries(self._dicts)
        return all(map(operator.is_, keys, self._keys)) and all(map(operator.is_, values, self._values))


Held = choose(PythonHeld, "Held")


def held_by(modules: list[nn.Module]) -> PythonHeld:
    """What modules hold; in Python where some hold it in what is no dict, as scripted ones do."""
    try:
        return Held(modules, Tensor, _nothing)
    except TypeError:
        return PythonHeld(modules, Tensor, _nothing)


def _entries(dicts: list[dict[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """The keys and values of many dicts, one after the other."""
    return list(chain.from_iterable(dicts)), list(chain.from_iterable([d.values() for d in dicts]))


def _kind_of(container: Any) -> Any:
    """The class of Python's own that a container is one of: its methods are asked, whatever a subclass makes of them."""
    return next(kind for kind in (OrderedDict, dict, list, set, deque) if isinstance(container, kind))


def _copy_of(container: Any) -> Any:
    """The entries of a container, as one of Python's own kinds."""
    kind = _kind_of(container)
    return kind(kind.items(container) if issubclass(kind, dict) else kind.__iter__(container))


def _refill(container: Any, before: Any) -> None:
    """Make a container hold what it held, if it does not."""
    kind: Any = type(before)
    if kind is set:
        same = set.__eq__(container, before)
    else:
        now, then = kind.__iter__(container), iter(before)
        if issubclass(kind, dict):
            now, then = chain.from_iterable(kind.items(container)), chain.from_iterable(before.items())
        same = kind.__len__(container) == len(before) and all(map(operator.is_, now, then))
    if not same:
        kind.clear(container)
        (kind.extend if kind in (list, deque) else kind.update)(container, before)
