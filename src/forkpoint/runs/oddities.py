"""State of a model that is in no attribute, container or tensor: slots, arrays of NumPy, generators of random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import MemberDescriptorType
from typing import Any

import numpy as np
import torch

ODD = (
    np.ndarray, torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator
)  # fmt: skip
"""Classes whose objects have such state, besides those with slots."""
MOST_COPIED = 1 << 26
"""Bytes of an array beyond which it is left as the model leaves it."""


@dataclass(frozen=True)
class Odd:
    """The state of an object, as it was.

    Attributes:
        restore: has the object hold it again.
        inside: what it holds that may have state of its own.
    """

    restore: Callable[[], None]
    inside: tuple[Any, ...] = ()


def odd_of(value: Any) -> Odd | None:
    """The state of an object now; None for what has none of this kind.

    >>> array = np.zeros(2)
    >>> noted = odd_of(array)
    >>> array[0] = 5
    >>> noted.restore()
    >>> array.tolist()
    [0.0, 0.0]
    """
    if isinstance(value, torch.Generator):
        return _generator(value)
    if isinstance(value, (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)):
        return _drawing(value)
    if isinstance(value, np.ndarray):
        array: np.ndarray[Any, Any] = value
        return _array(array) if array.flags.writeable and array.nbytes <= MOST_COPIED else None
    slots = slots_of(type(value))
    return _slotted(value, slots) if slots else None


def _generator(generator: torch.Generator) -> Odd:
    before = generator.get_state()

    def restore() -> None:
        if not torch.equal(generator.get_state(), before):
            generator.set_state(before)

    return Odd(restore)


def _drawing(generator: Any) -> Odd | None:
    """The state of a generator of Python or NumPy; None where the numbers come from the system."""
    if isinstance(generator, random.Random):
        try:
            drawn = generator.getstate()
        except NotImplementedError:
            return None
        return Odd(lambda: generator.setstate(drawn))
    if isinstance(generator, np.random.RandomState):
        state = generator.get_state(legacy=False)
        return Odd(lambda: generator.set_state(state))
    bits: Any = generator if isinstance(generator, np.random.BitGenerator) else generator.bit_generator
    before = bits.state

    def restore() -> None:
        bits.state = before

    return Odd(restore)


def _array(array: np.ndarray[Any, Any]) -> Odd:
    before = array.copy()

    def restore() -> None:
        if array.shape == before.shape and array.dtype == before.dtype and array.flags.writeable:
            array[...] = before

    return Odd(restore, tuple(before.reshape(-1).tolist()) if before.dtype.hasobject else ())


def _slotted(value: Any, slots: tuple[MemberDescriptorType, ...]) -> Odd:
    before = [_held(slot, value) for slot in slots]

    def restore() -> None:
        for slot, then in zip(slots, before, strict=True):
            now = _held(slot, value)
            if now is then:
                continue
            if then is _NOTHING:
                slot.__delete__(value)
            else:
                slot.__set__(value, then)

    return Odd(restore, tuple(item for item in before if item is not _NOTHING))


_NOTHING = object()


def _held(slot: MemberDescriptorType, value: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return _NOTHING


@cache
def slots_of(kind: type) -> tuple[MemberDescriptorType, ...]:
    """The slots that a class written in Python declares, its bases' among them."""
    held = [
        value
        for base in kind.__mro__
        if "__slots__" in base.__dict__
        for value in base.__dict__.values()
        if isinstance(value, MemberDescriptorType)
    ]
    return tuple(held)
