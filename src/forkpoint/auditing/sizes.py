"""Sizes at which kernels change: an audit tries these, not random ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import monotonic

_TILES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
"""Sizes of tiles, and of what is split."""
_EACH = 40
"""Up to here every size is tried: that few rows are what most kernels treat in a way of its own."""


class Deadline:
    """When an audit ends, whatever is left to try.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return monotonic() > self._end


def thresholds(longest: int, edges: Iterable[int] = (), each: int = _EACH, after: int = 1) -> list[int]:
    """Sizes from 1 to the longest at which something may change, ascending: powers of two, tiles, edges, and their neighbours.

    Args:
        longest: the largest size.
        edges: sizes of the model's own, such as a sliding window.
        each: up to here every size is one.
        after: how many sizes behind each of these are tried as well.

    >>> thresholds(70, each=3)
    [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 70]
    """
    powers = (1 << power for power in range(longest.bit_length() + 1))
    marks = {*powers, *_TILES, *edges}
    near = {mark + step for mark in marks for step in range(-1, after + 1)} | {*range(1, each + 1), longest}
    return sorted(size for size in near if 1 <= size <= longest)


def between(sizes: Sequence[int], longest: int) -> list[int]:
    """As many other sizes up to the longest as there are already, evenly spread, or all that are left.

    >>> between([1, 2, 4, 20], 20)
    [6, 10, 14, 18]
    """
    left = sorted({*range(1, longest + 1)} - {*sizes})
    step = max(1, -(-len(left) // max(1, len(sizes))))
    return left[step // 2 :: step]


def first_change(same: Callable[[int, int], bool], below: int, above: int) -> tuple[int, int]:
    """Two neighbouring sizes between which something changes, where it is known to change between two that are apart.

    >>> first_change(lambda a, b: (a < 37) == (b < 37), 10, 64)
    (36, 37)
    """
    while above - below > 1:
        middle = (below + above) // 2
        if same(below, middle):
            below = middle
        else:
            above = middle
    return below, above
