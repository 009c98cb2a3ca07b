"""Where the tensors of a batch lie in memory, and how much of it may be read; see `forkpoint.support.readable`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from forkpoint.native.choice import choose
from forkpoint.support.readable import PLAIN, address_of, begin_of, place_of, size_of, storage_of


def python_places(
    tensors: list[Tensor],
    _plain: tuple[type, type],
    _functions: tuple[Callable[..., object], ...],
    place: Callable[[Tensor], tuple[int, int]],
) -> tuple[bytes, bytes]:
    """`place_of` of many tensors: their addresses, and their bytes from there on, int64 each.

    It is asked for every value that is digested, so that it is also written in C (`native/values.c`), which asks `place`
    for tensors of other classes alone.
    """
    places = np.array([place(x) for x in tensors], dtype=np.int64).reshape(-1, 2)
    return places[:, 0].tobytes(), places[:, 1].tobytes()


_places = choose(python_places, "places")
FUNCTIONS: tuple[Callable[..., object], ...] = (storage_of, begin_of, size_of, address_of)
"""What the C asks of a plain tensor, in this order."""


def places_of(tensors: list[Tensor]) -> tuple[bytes, bytes]:
    """The addresses of tensors and how many bytes from there on belong to their storages, int64[tensors] each."""
    return _places(tensors, PLAIN, FUNCTIONS, place_of)
