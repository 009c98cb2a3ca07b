"""What an op of a trace made, in a form that is the same in another trace of the same values."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

import numpy as np

from forkpoint.match.numbering import Ints
from forkpoint.traces.stored import StoredTrace

MOST_ROWS = 32
"""Values of an op that are looked at: the rest of a long run is compared once it is known which op is which."""


class Signatures:
    """The values of the ops of one trace, as far as they are tokens' that both runs have.

    Args:
        trace: the trace.
        numbers: for each of its coordinates the number that both runs have for it, or -1.
    """

    def __init__(self, trace: StoredTrace, numbers: Ints) -> None:
        self.trace, self.numbers = trace, numbers
        self._signatures: dict[int, bytes | None] = {}
        self._telling: dict[int, bool] = {}

    def of(self, op: int) -> bytes | None:
        """What stands for the values of an op; None where it made none, or none that could be read."""
        if op not in self._signatures:
            self._signatures[op] = self._work_out(op)
        return self._signatures[op]

    def is_telling(self, op: int) -> bool:
        """Whether its values are such that others hardly are the same by chance: not all alike, nor true and false."""
        return self.of(op) is not None and self._telling[op]

    def form(self, op: int) -> Hashable:
        """Shape and dtype of its first value."""
        event = self.trace.events[self.trace.first_of(op)]
        return event.shape, event.dtype

    def is_view(self, op: int) -> bool:
        """Whether it makes no value: it takes elements of another, or all of it."""
        return self.trace.events[self.trace.first_of(op)].status in ("view", "alias")

    def _work_out(self, op: int) -> bytes | None:
        signature, distinct = hashlib.blake2b(digest_size=16), set[int]()
        for row in self.trace.rows_of(op)[:MOST_ROWS].tolist():
            event, held = self.trace.events[row], self.trace.held(row)
            if held.status != "digest" or held.digests is None or held.cells is None:
                return None
            numbers = self.numbers[held.cells.ids]
            order = np.argsort(numbers, kind="stable")
            order = order[numbers[order] >= 0]
            if not len(order):
                return None
            digests = np.ascontiguousarray(held.digests[order])
            signature.update(f"{event.call} {event.dtype} {held.cells.open_sizes}".encode())
            signature.update(numbers[order].tobytes())
            signature.update(digests.tobytes())
            if len(distinct) < 2 and event.dtype != "bool":
                distinct.update(np.unique(digests)[:2].tolist())
        self._telling[op] = len(distinct) > 1
        return signature.digest()
