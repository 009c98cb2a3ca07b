"""Pairs of elements of two values that stand for the same thing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Flat indices of the elements of A and B that are the same element, and their coordinates.

    Attributes:
        a, b: [n], flat indices; empty where nothing could be paired, with `reason`.
        numbers: [n], shared number of each pair's coordinate (`Shared.place`).
        by_sample: the numbers are samples of run A instead, since each row holds one vector a sample.
    """

    a: Ints
    b: Ints
    numbers: Ints
    reason: str = ""
    by_sample: bool = False

    def __len__(self) -> int:
        return len(self.a)

    @classmethod
    def none(cls, reason: str) -> Pairs:
        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty, empty, reason)
