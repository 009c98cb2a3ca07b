"""The first value of a port that is at fault: found by what both runs have, and by experiment where that can't tell.

A value of the port that the reference has not, and behind which nothing is met, is *blind*. The first one need not be at
fault: where two values are put together, the other may be. So it is asked of each, in their order, what speaks for it.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forkpoint.ports.feeding import Feeding
from forkpoint.ports.harmless import Harmless, alike
from forkpoint.ports.mapping import Mapping
from forkpoint.ports.trials import PortTrials
from forkpoint.ports.values import MOVES, Print, Prints, behind, met, result_of

WEIGHTED = frozenset(
    {"linear", "layer_norm", "rms_norm", "embedding", "conv1d", "conv2d", "group_norm", "addmm"}
)
"""Functions that make other values of the same ones, by their weights."""

FILLS = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
)
"""Functions that take of a value its shape alone."""


@dataclass(frozen=True)
class Root:
    """The value of a port at which it is at fault.

    Attributes:
        event: the value.
        instead: the value that the reference gives to the weights that are given this one, where that is known.
        unclear: the first of the values behind it that no experiment could tell from right ones; None if there is none.
    """

    event: int
    instead: int | None = None
    unclear: int | None = None


def find_root(
    mine: Prints,
    reference: Prints,
    tolerance: float,
    trials: PortTrials | None,
    modules: Mapping | None = None,
) -> Root | None:
    """The first value on the way to the result at which the port is at fault, if there is one.

    That is one that the reference makes otherwise of the same values by the same function; or one that is blind, though
    what it was made from is not.

    Args:
        tolerance: how far apart the same values may be.
        trials: makes the port's run with a value of the reference in the place of one of its own, where one is blind that
            may be right: what is made of no token, such as a table or a mask.
        modules: which parameter is which, where an op may be given what another ought to take.
    """
    result = result_of(mine)
    if mine.prints[result].apart(reference.prints[result_of(reference)]) <= tolerance:
        return None
    shared = met(mine, reference, tolerance)
    search = _RootSearch(mine, reference, shared, tolerance, trials)
    root = search.first(result)
    if modules is not None and root not in shared:
        wrong = Feeding(mine, reference, modules, tolerance).maker(root)
        if wrong is not None:
            return Root(wrong.event, wrong.instead)
    behind_it = behind(mine, [root], shared)
    return Root(root, unclear=next((e for e in search.passed if e in behind_it and e != root), None))


class _RootSearch:
    """Looks at the blind values in their order.

    Args:
        shared: the port's values that are met.

    Attributes:
        passed: values of no token that no experiment could tell from right ones.
    """

    def __init__(
        self, mine: Prints, reference: Prints, shared: set[int], tolerance: float, trials: PortTrials | None
    ) -> None:
        self._mine, self._reference, self._shared, self._tolerance = mine, reference, shared, tolerance
        self._theirs = met(reference, mine, tolerance)
        self._trials = trials
        self.passed: list[int] = []
        self._harmless = Harmless(mine, reference, shared, tolerance, trials)

    def first(self, result: int) -> int:
        """The first value at fault on the way to the result."""
        mine = self._mine
        leads = self._shared | self._leading()
        to_result = self._on_the_way(result)
        blind = {event for event in mine.prints if event not in leads and event in to_result}
        otherwise = self._otherwise(self._shared, to_result)
        for event in sorted(blind):
            if otherwise is not None and otherwise <= event:
                return otherwise
            if any(s in blind for s in mine.sources[event]):
                continue
            if self._harmless.is_harmless(event, blind):
                blind.discard(event)  # those that were made of it are asked next
                continue
            fault = self._tried(event)
            if fault is not None:
                return fault
            made_of_none = not mine.made_of(event) or mine.ops[event][0].function in FILLS
            if made_of_none and not mine.prints[event].of_tokens:
                blind.discard(event)
                self.passed.append(event)
                continue
            return self._harmless.lacking(event) or self._maker(event)
        if otherwise is not None:
            return otherwise
        return self.passed[0] if self.passed else self._maker(result, everything=True)

    @cached_property
    def _choices(self) -> set[int]:
        """Whole numbers and truth values: what they were made from may be other numbers, and they the same."""
        return self._mine.ops.keys() - self._mine.prints.keys()

    def _on_the_way(self, result: int) -> set[int]:
        """Values from which a way leads to the result past all that is met of their tokens."""
        mine = self._mine
        groups: dict[Hashable, list[int]] = {}
        for event, one in mine.prints.items():
            groups.setdefault(one.key, []).append(event)
        ways: dict[frozenset[int], set[int]] = {}
        on_way: set[int] = set()
        for events in groups.values():
            one = mine.prints[events[0]]
            past = frozenset(e for e in self._shared if not _of_others(one, mine.prints[e]))
            if past not in ways:
                ways[past] = behind(mine, [result], past)
            on_way.update(ways[past].intersection(events))
        return on_way

    def _leading(self) -> set[int]:
        """Values that met ones were made from. One of other tokens alone says nothing of them: experts have some each."""
        mine = self._mine
        groups: dict[Hashable, list[int]] = {}
        for event in self._shared:
            if mine.prints[event].tells:
                groups.setdefault(mine.prints[event].key, []).append(event)
        leads: set[int] = set()
        for events in groups.values():
            met_one = mine.prints[events[0]]
            for event in behind(mine, events, self._choices):
                one = mine.prints.get(event)
                if one is None or not _of_others(one, met_one):
                    leads.add(event)
        return leads

    def _tried(self, event: int) -> int | None:
        """What experiments say: the value itself, one behind it that is made otherwise of right ones, or nothing."""
        if self._trials is None:
            return None
        alone = [e for e in self._reference.prints if e not in self._theirs]
        suspects: list[int] = []
        for after in self._trials.of(event, alone, self._mine, self._reference, self._tolerance):
            shared = met(after, self._reference, self._tolerance)
            made_from = _reached(after, event)
            new = {e for e in made_from & shared - self._shared if e != event and after.prints[e].tells}
            computed = (after.ops[e][0] for e in new)
            if result_of(after) in shared or any(
                not (op.is_boundary or op.function in MOVES) for op in computed
            ):
                return self._maker(event)
            search = _RootSearch(after, self._reference, shared, self._tolerance, None)
            behind_it = search._otherwise(shared, made_from - {event}, WEIGHTED)
            suspects += [] if behind_it is None else [behind_it]
        return suspects[0] if suspects else None

    def _otherwise(self, shared: set[int], among: set[int], but: frozenset[str] = frozenset()) -> int | None:
        """The first value that neither run has of the other, and that both make of the same values by the same function."""
        mine, reference = self._mine, self._reference
        there: dict[str, list[int]] = {}
        for event in reference.prints:
            if event not in self._theirs and reference.made_of(event):
                there.setdefault(reference.ops[event][0].function, []).append(event)
        for event in sorted(among & mine.prints.keys()):
            operands = mine.made_of(event)
            op = mine.ops[event][0]
            if event in shared or not operands or op.function in MOVES | but or op.is_boundary:
                continue
            for other in there.get(op.function, ()):
                others = reference.made_of(other)
                same_form = (
                    len(operands) == len(others) and reference.prints[other].key == mine.prints[event].key
                )
                if (
                    same_form
                    and all(
                        x.key == y.key and x.apart(y) <= self._tolerance
                        for x, y in zip(operands, others, strict=True)
                    )
                    and self._tables_are_met(event, other, shared)
                ):
                    return event
        return None

    def _tables_are_met(self, event: int, other: int, shared: set[int]) -> bool:
        """Whether what an op is given that is of no token, such as a table, the reference has, or gives to its own."""
        prints, there = self._mine.prints, self._reference.prints
        tables = [s for s in self._mine.sources[event] if s in prints and not prints[s].of_tokens]
        return all(
            s in shared
            or any(
                alike(prints[s], there[t], self._tolerance)
                for t in self._reference.sources[other]
                if t in there
            )
            for s in tables
        )

    def _maker(self, event: int, *, everything: bool = False) -> int:
        """What computed the elements that an op only moves: parts of it are met, and this part is not."""
        shared = set[int]() if everything else self._shared
        while True:
            op = self._mine.ops[event][0]
            before = [
                s for s in self._mine.sources.get(event, ()) if s in self._mine.prints and s not in shared
            ]
            if not (op.function in MOVES or op.is_boundary) or len(before) != 1:
                return event
            event = before[0]


def _of_others(one: Print, other: Print) -> bool:
    """Whether two values have no token in common."""
    return (
        one.of_tokens
        and other.of_tokens
        and one.key != other.key
        and not np.isin(one.tokens, other.tokens).any()
    )


def _reached(prints: Prints, start: int) -> set[int]:
    """A value, and all that were made from it."""
    reached = {start}
    for event in sorted(prints.ops):
        if any(s in reached for s in prints.sources.get(event, ())):
            reached.add(event)
    return reached
