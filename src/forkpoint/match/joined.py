"""The records of the join: a pass of an op, what was counted of its passes, and the row that comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from forkpoint.capture.trace import WHOLE, Cells, Digests, Event, Op
from forkpoint.match.numbering import Ints


@dataclass(eq=False, slots=True)
class Pass:
    """One pass of an op in one run, whose value has digests.

    Attributes:
        index: of its event in the trace.
        op: the op.
        event: the value as it passed by: in which call, of what dtype, how often the op had run before.
        held: the event that holds the digests of this value: the same one, unless that is an alias.
    """

    index: int
    op: Op
    event: Event
    held: Event

    @property
    def call(self) -> int:
        return self.event.call

    @property
    def shape(self) -> tuple[int, ...]:
        return self.held.shape

    @property
    def cells(self) -> Cells:
        assert self.held.cells is not None
        return self.held.cells

    @property
    def digests(self) -> Digests:
        assert self.held.digests is not None
        return self.held.digests

    @property
    def flat(self) -> Digests:
        """The digests of the cells without their open dimensions: [cells]; for attention weights [cells, 2]."""
        return self.digests if self.held.flat is None else self.held.flat

    @property
    def widths(self) -> Ints:
        """[cells], elements of each."""
        return np.broadcast_to(np.asarray(self.held.width, dtype=np.int64), self.cells.ids.shape)

    @property
    def is_whole(self) -> bool:
        """Whether its value has one cell, of no token: `WHOLE`."""
        return len(self.cells.ids) > 0 and bool(self.cells.ids[0] == WHOLE)


@dataclass
class Difference:
    """Where an op first differs: the events of its earliest passes that do, and the coordinate."""

    event_a: int
    event_b: int
    number: int
    """Shared number of the coordinate."""
    sample: int | None = None
    position: int | None = None


@dataclass
class Tally:
    """What was counted so far of the coordinates of one op.

    Attributes:
        left_out: coordinates (or passes) that could not be compared.
        reasons: why, each once.
    """

    compared: int = 0
    differing: int = 0
    left_out: int = 0
    reasons: list[str] = field(default_factory=list[str])
    earliest: Difference | None = None

    def skip(self, count: int, reason: str) -> None:
        if count:
            self.left_out += count
            if reason not in self.reasons:
                self.reasons.append(reason)

    def differ(self, difference: Difference) -> None:
        if self.earliest is None or difference.event_a < self.earliest.event_a:
            self.earliest = difference


@dataclass
class Joined:
    """One op of either run and how its values compare.

    Attributes:
        status: `equal`, `differs`, `view`, `not compared`, `only in a`, `only in b`.
        compared, differing: coordinates.
        left_out: coordinates (or passes) that could not be compared, with `reason`.
    """

    op: Op
    status: str
    first_a: Event | None
    first_b: Event | None
    order: int
    """Place in the order of execution: index of its first event in A (or B where A has none)."""
    passes: int
    compared: int = 0
    differing: int = 0
    left_out: int = 0
    reason: str = ""
    difference: Difference | None = None

    @property
    def floating(self) -> bool:
        event = self.first_a or self.first_b
        return event is not None and event.floating
