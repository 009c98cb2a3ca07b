"""What is in objects that are no containers: their attributes, a text that is equal where they are, and what they hide."""

from __future__ import annotations

import enum
import gc
import sys
from collections import defaultdict, deque
from collections.abc import ItemsView, Iterator, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import torch
from torch import Tensor, nn

from forkpoint.runs.oddities import slots_of

_BY_REPR = (range, slice, Decimal, Fraction, date, time, timedelta, UUID, PurePath)
"""Python's own classes whose objects are equal where they are written alike."""
_ATOMS = (
    type(None), bool, int, float, complex, str, bytes, type, ModuleType, torch.dtype, torch.device,
    torch.Generator, enum.Enum, *_BY_REPR,
)  # fmt: skip
"""Objects that lead to no tensor, or to everything."""
_REAL = (bool, int, float, np.bool_, np.integer, np.floating)
_AS_ARRAY = ("__array__", "__array_interface__", "__dlpack__")
"""What classes have whose objects hold the numbers of an array."""
_WHOLE = 1 << 53
"""Up to which whole numbers a float holds each of them."""
_MOST = 1 << 14
"""Objects that are looked into at most for a tensor."""


def is_pythons(kind: type) -> bool:
    """Whether a class is one of Python's own, whose objects look after themselves: loggers, locks, threads."""
    own = kind.__module__.partition(".")[0] in sys.stdlib_module_names
    return own and not issubclass(kind, (SimpleNamespace, defaultdict, deque, tuple, dict, list, set))


def attributes_of(value: Any) -> dict[str, Any] | None:
    """What an object holds under names, in its `__dict__` and its slots; None where it has neither, and for modules.

    No attribute is asked for that would be worked out.

    >>> attributes_of(SimpleNamespace(loss=0.5))
    {'loss': 0.5}
    """
    kind = type(value)
    if isinstance(value, (nn.Module, Tensor, *_ATOMS)) or is_pythons(kind):
        return None
    slots = slots_of(kind)
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        own = None
    if not isinstance(own, dict) and not slots:
        return None
    in_slots: dict[str, Any] = {}
    for slot in slots:
        try:
            in_slots[slot.__name__] = slot.__get__(value)
        except AttributeError:  # holds nothing yet
            continue
    return {**in_slots, **own} if isinstance(own, dict) else in_slots


def text_of(value: Any) -> str | None:
    """A text that two members of enums, two sets or two other plain values share if they are equal; None for the rest.

    >>> text_of({2, 1}) == text_of(frozenset([1.0, 2])), text_of({1, 2}) == text_of({1, 3}), text_of({object()})
    (True, False, None)
    """
    if isinstance(value, enum.Enum):
        kind = type(value)
        return f"{kind.__module__}.{kind.__qualname__}.{value._name_ or repr(value._value_)}"
    if isinstance(value, (AbstractSet, tuple)):
        texts = [text_of(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        plain = [text for text in texts if text is not None]
        if len(plain) < len(texts):
            return None
        return (
            f"{{{', '.join(sorted(plain))}}}" if isinstance(value, AbstractSet) else f"({', '.join(plain)})"
        )
    if isinstance(value, _REAL):
        number = value.item() if isinstance(value, np.generic) else value
        return str(int(number)) if float(number).is_integer() and abs(number) < _WHOLE else repr(number)
    if value is None or isinstance(value, (str, bytes, *_BY_REPR)):
        return f"{type(value).__name__} {value!r}"
    return None


def hides_tensors(value: Any) -> bool:
    """Whether a tensor, an array or whatever gives objects one by one can be reached in an object, or too much to tell."""
    seen: set[int] = set()
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _ATOMS):
            continue
        if isinstance(item, (Tensor, np.ndarray, Iterator)) or len(seen) > _MOST:
            return True
        if any(hasattr(type(item), name) for name in _AS_ARRAY):
            return True
        seen.add(id(item))
        if isinstance(item, FunctionType):  # not all that its module holds
            waiting += (item.__closure__, item.__defaults__, item.__kwdefaults__, item.__dict__)
        else:
            waiting += gc.get_referents(item)
    return False


def readable(value: Any) -> Any:
    """An object in a form whose parts have names or places, or that has a value; itself where it has no other.

    Sequences and views become lists, sets of floats sorted ones, other plain values texts, and whatever NumPy can make
    an array of becomes that.

    >>> readable(deque([1, 2])), readable({0.5, 0.25}), readable(bytearray(b"a"))
    ([1, 2], [0.25, 0.5], b'a')
    """
    if isinstance(value, (Tensor, str, bytes, list, tuple, dict, nn.Module)):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, AbstractSet) and any(isinstance(item, (float, np.floating)) for item in value):
        real = all(isinstance(item, _REAL) for item in value)  # pyright: ignore[reportUnknownVariableType]
        return sorted(value) if real else text_of(value) or value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if not isinstance(value, (bool, int, float, np.generic)) and (text := text_of(value)) is not None:
        return text
    if isinstance(value, (Sequence, ValuesView, ItemsView)):
        return list(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return _from_array(value)


def _from_array(value: Any) -> Any:
    """What NumPy makes of an object that offers itself as an array: numbers, objects one by one, fields, or bytes."""
    array: Any = value
    if not isinstance(value, (np.ndarray, np.generic)) and any(
        hasattr(type(value), name) for name in _AS_ARRAY
    ):
        with suppress(Exception):  # whatever an object says that is not to be read so
            array = np.asarray(value)
    if not isinstance(array, (np.ndarray, np.generic)) or array.dtype.kind in "biufcUS":
        return array
    if array.dtype.names:
        fields: Any = array
        return {name: fields[name] for name in array.dtype.names}
    return array.tolist() if array.dtype.hasobject else f"{array.dtype} {array.shape} {array.tobytes()!r}"
