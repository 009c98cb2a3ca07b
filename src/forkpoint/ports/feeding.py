"""Whether a module of a port is given another's value: what made it is at fault, or the module that takes it.

The two norms of a parallel block have each other's weights. What they make is what the reference makes, too, and the first
value that it has not is made behind them, by a projection whose own weights are right. These tell: where the reference uses
them, they are given another value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from forkpoint.ports.mapping import Mapping
from forkpoint.ports.values import MOVES, Prints


@dataclass(frozen=True)
class Wrong:
    """A value of the port in the place of another one.

    Attributes:
        event: the value.
        instead: that of the reference which ought to be there.
    """

    event: int
    instead: int


class Feeding:
    """Which value each module is given, in the port and where the reference has its parameters.

    Args:
        modules: which parameter is which.
        tolerance: how far apart the same values may be.
    """

    def __init__(self, mine: Prints, reference: Prints, modules: Mapping, tolerance: float) -> None:
        self._mine, self._reference, self._tolerance = mine, reference, tolerance
        self._partners: dict[str, set[str]] = {}
        for match in modules.matches:
            mine_, theirs = (name.rpartition(".")[0] for name in (match.mine, match.reference))
            self._partners.setdefault(mine_, set()).add(theirs)

    def maker(self, event: int) -> Wrong | None:
        """What makes the value that an op is wrongly given, if all that is given it ought to have another one.

        That is one which the reference makes of the same values by the same function, with other weights. If some are
        rightly given what it makes, or nothing tells, there is none.
        """
        source = _source_of(self._mine, event)
        if source is None or self._mine.ops[source][0].module not in self._partners:
            return None
        instead = next((e for e in self._instead(event, source) if self._made_alike(source, e)), None)
        if instead is None:
            return None
        op = self._mine.ops[source][0]
        for other in self._mine.prints:
            taker, maker = self._mine.ops[other][0], _source_of(self._mine, other)
            if other == event or taker.is_boundary or taker.module not in self._partners:
                continue
            if maker is None or self._mine.ops[maker][0] != op or taker.module == op.module:
                continue
            if not any(True for _ in self._instead(other, maker)):
                return None
        return Wrong(source, instead)

    def _instead(self, event: int, source: int) -> Iterator[int]:
        """What the reference gives to the same weights; nothing if that is the same value, or cannot be told."""
        partners = self._partners.get(self._mine.ops[event][0].module, set())
        one = self._mine.prints[source]
        candidates: list[int] = []
        for other, (theirs, _) in self._reference.ops.items():
            if theirs.module not in partners or theirs.is_boundary or other not in self._reference.prints:
                continue
            there = _source_of(self._reference, other)
            if there is None or self._reference.ops[there][0].module == theirs.module:
                continue
            its = self._reference.prints[there]
            if one.key != its.key or one.apart(its) <= self._tolerance:
                return
            candidates.append(there)
        yield from candidates

    def _made_alike(self, event: int, other: int) -> bool:
        """Whether both are made of the same values by the same function."""
        operands, others = self._mine.made_of(event), self._reference.made_of(other)
        return (
            self._mine.ops[event][0].function == self._reference.ops[other][0].function
            and len(operands) == len(others) > 0
            and all(
                x.key == y.key and x.apart(y) <= self._tolerance
                for x, y in zip(operands, others, strict=True)
            )
        )


def _source_of(prints: Prints, event: int) -> int | None:
    """What computed the one value of tokens that an op takes."""
    while True:
        before = [
            s for s in prints.sources.get(event, ()) if s in prints.prints and prints.prints[s].of_tokens
        ]
        if len(before) != 1:
            return None
        event = before[0]
        op = prints.ops[event][0]
        if not (op.is_boundary or op.function in MOVES) or not prints.sources.get(event):
            return event
