"""The state of the random generators that a model may draw from, taken before a run and put back after it."""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """The state of every global random generator that a model may draw from: torch's, Python's and NumPy's."""

    cpu: Tensor
    cuda: tuple[Tensor, ...]
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    @classmethod
    def take(cls) -> RandomState:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(torch.get_rng_state(), tuple(cuda), random.getstate(), _of_numpy.state())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState) or len(self.cuda) != len(other.cuda):
            return False
        if self.python != other.python:
            return False
        if self.numpy is not other.numpy and _comparable(self.numpy) != _comparable(other.numpy):
            return False
        mine, theirs = (self.cpu, *self.cuda), (other.cpu, *other.cuda)
        return all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        random.setstate(self.python)
        _of_numpy.put_back(self.numpy)


def _comparable(state: Any) -> Any:
    """The state of a generator of NumPy with its arrays as bytes."""
    if isinstance(state, dict):
        return {name: _comparable(value) for name, value in state.items()}  # pyright: ignore[reportUnknownVariableType]
    return state.tobytes() if isinstance(state, np.ndarray) else state  # pyright: ignore[reportUnknownMemberType]


# ---------------------------------------------------------------------- NumPy's


_HEADER = object.__basicsize__
"""Bytes of any object that tell its class and who holds it."""
_KEY, _POSITION = 624 * 4, 4
"""Bytes of the state of a Mersenne Twister, and of where it stands in it."""


class _OfNumpy:
    """The state of NumPy's global generator, the one that `np.random.rand` draws from.

    To read or to write it takes as long as a layer of a small model, and most models draw nothing there. So it is read
    where its memory has changed since, and written where that is another state's.
    """

    def __init__(self) -> None:
        self._memory: bytes | None = None
        self._state: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        memory = memory_of_numpy()
        if memory is None or memory != self._memory:
            self._state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002  (the one that models draw from)
            self._memory = memory if memory is not None and _holds(memory, self._state) else None
        return self._state

    def put_back(self, state: dict[str, Any]) -> None:
        if self.state() is not state:
            np.random.set_state(state)  # noqa: NPY002  (as above)
            self._state, self._memory = state, None
            memory = memory_of_numpy()
            self._memory = memory if memory is not None and _holds(memory, state) else None


def memory_of_numpy() -> bytes | None:
    """What NumPy's global generator holds, byte for byte; None where that is not known to be all of it."""
    numpy_random: Any = np.random
    try:
        generator: Any = numpy_random.mtrand._rand  # noqa: SLF001 - `np.random.get_state` is a method of it
        bits: Any = numpy_random.get_bit_generator()
    except AttributeError:  # another NumPy than those that were tried
        return None
    if type(generator) is not np.random.RandomState or type(bits) is not np.random.MT19937:
        return None
    own = ctypes.string_at(id(generator) + _HEADER, type(generator).__basicsize__ - _HEADER)
    return own + ctypes.string_at(bits.ctypes.state_address, _KEY + _POSITION)


def _holds(memory: bytes, state: dict[str, Any]) -> bool:
    """Whether a state lies in the memory as it is expected to."""
    inside = state["state"]
    key, position = memory[-_KEY - _POSITION : -_POSITION], memory[-_POSITION:]
    return inside["key"].tobytes() == key and inside["pos"] == np.frombuffer(position, np.int32)[0]


_of_numpy = _OfNumpy()
