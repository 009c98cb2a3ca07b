"""What speaks for a value of a port that the reference has not: it is made otherwise, and what is made of it may be right."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from forkpoint.ports.trials import PortTrials
from forkpoint.ports.values import MOVES, Print, Prints, met

SUMS = {"add": "add", "add_": "add", "sub": "add", "sum": "add", "mul": "mul", "mul_": "mul", "div": "mul"}
"""Functions by which values are put together in any order."""

SCALES = frozenset({"mul", "mul_", "div", "div_", "true_divide"})
"""Functions that multiply all elements by a number."""

PRODUCTS = frozenset(
    {"matmul", "einsum", "linear", "bmm", "mm", "baddbmm", "addmm", "scaled_dot_product_attention"}
)
"""Functions for which it is the same whether a number multiplies what they are given or, later, what they make."""

CHOOSES = MOVES - {"cat", "stack"} | {"gather", "index_select", "take_along_dim", "narrow", "select", "index"}
"""Functions that take elements of a value."""

STEPS = 4
"""How many ops after a value a part of one of the reference's is looked for."""


class Harmless:
    """Asks of one value after the other whether it may be right.

    Args:
        shared: the port's values that are met.
        tolerance: how far apart the same values may be.
        trials: has the elements of values; without, parts are not looked for.
    """

    def __init__(
        self, mine: Prints, reference: Prints, shared: set[int], tolerance: float, trials: PortTrials | None
    ) -> None:
        self._mine, self._reference, self._shared, self._tolerance = mine, reference, shared, tolerance
        self._trials = trials
        self._sums: set[int] = set()

    def is_harmless(self, event: int, blind: set[int]) -> bool:
        """Whether a value, of which what it was made from is right, may be right, too.

        Args:
            blind: values that are not met and may be at fault.
        """
        if self._put_together(event):
            return True
        return (
            self._moves_only(event)
            or self._moves_a_constant(event)
            or self._takes_what_is_whole_there(event)
            or self._scales_a_product(event)
            or self._leads_to_part(event, blind)
        )

    def lacking(self, event: int) -> int | None:
        """A sum that was taken for a part of the reference's, and of which something is made before the rest is added.

        Only one whose rest the port has: of what it makes afterwards it can't be said that it was left out.
        """
        kind = SUMS.get(self._mine.ops[event][0].function)
        return next((s for s in self._sources(event) if s in self._sums and kind is None), None)

    def _sources(self, event: int) -> list[int]:
        return [s for s in self._mine.sources.get(event, ()) if s in self._mine.prints]

    # ------------------------------------------------------------------ in another order

    def _put_together(self, event: int) -> bool:
        """Whether it is part of a sum, or a product, that the reference makes of the same values in another order."""
        kind = SUMS.get(self._mine.ops[event][0].function)
        sources = self._sources(event)
        parts = [self._mine.prints[s] for s in sources]
        if kind is None or len(parts) < 2 or any(s not in self._shared for s in sources):
            return False
        key = self._mine.prints[event].key
        for other in self._reference.prints:
            if (
                self._reference.prints[other].key == key
                and SUMS.get(self._reference.ops[other][0].function) == kind
            ):
                terms = {leaf: self._reference.prints[leaf] for leaf in self._leaves(other, kind)}
                if len(terms) > len(parts) and all(
                    any(self._alike(p, q) for q in terms.values()) for p in parts
                ):
                    others = [e for e, q in terms.items() if not any(self._alike(p, q) for p in parts)]
                    if not any(e in self._alone and not self._is_sum(e, kind) for e in others):
                        self._sums.add(event)
                    return True
        return False

    def _alike(self, one: Print, other: Print) -> bool:
        return alike(one, other, self._tolerance)

    def _is_sum(self, event: int, kind: str) -> bool:
        return SUMS.get(self._reference.ops[event][0].function) == kind

    def _leaves(self, event: int, kind: str) -> Iterable[int]:
        """What a sum of the reference is made of, and what the sums among these are."""
        for source in self._reference.sources.get(event, ()):
            if source not in self._reference.prints:
                continue
            yield source
            inner, op = source, self._reference.ops[source][0]
            while op.is_boundary and len(self._reference.sources.get(inner, ())) == 1:
                inner = self._reference.sources[inner][0]
                op = self._reference.ops[inner][0]
            if SUMS.get(op.function) == kind:
                yield from self._leaves(inner, kind)

    def _scales_a_product(self, event: int) -> bool:
        """Whether it multiplies a met value by a number before a product, where the reference does so after it, or never.

        What is made of it must not be the reference's but for a number: then the number is another one.
        """
        sources = self._sources(event)
        if (
            self._mine.ops[event][0].function not in SCALES
            or len(sources) != 1
            or sources[0] not in self._shared
        ):
            return False
        one = self._mine.prints[sources[0]]
        takers = self._takers(event)
        if _times(self._mine.prints[event], one, self._tolerance) is None or not takers:
            return False
        if any(self._mine.ops[e][0].function not in PRODUCTS for e in takers):
            return False
        others = [e for e in self._alone if self._reference.prints[e].key == one.key]
        if any(_times(self._reference.prints[e], one, self._tolerance) is not None for e in others):
            return False
        return not any(
            _times(self._mine.prints[e], self._reference.prints[other], self._tolerance) is not None
            for e in takers if e in self._mine.prints
            for other in self._reference.prints
            if self._reference.prints[other].key == self._mine.prints[e].key
        )  # fmt: skip

    # ------------------------------------------------------------------ the same elements

    def _moves_only(self, event: int) -> bool:
        """Whether it only moves what a blind value that was passed already holds."""
        sources = self._sources(event)
        if not self._is_moved(event) or len(sources) != 1 or sources[0] in self._shared:
            return False
        one, other = self._mine.prints[event], self._mine.prints[sources[0]]
        return one.key == other.key and one.apart(other) <= self._tolerance

    def _moves_a_constant(self, event: int) -> bool:
        """Whether it moves elements that are all the same: which ones it takes tells nothing."""
        sources = self._sources(event)
        return (
            self._mine.ops[event][0].function in MOVES
            and len(sources) == 1
            and all(self._mine.prints[e].is_constant for e in (event, sources[0]))
        )

    def _takes_what_is_whole_there(self, event: int) -> bool:
        """Whether it takes elements of a value of tokens that the reference has as well, and takes no others of there."""
        sources = self._sources(event)
        if self._mine.ops[event][0].function not in MOVES or len(sources) != 1:
            return False
        one = self._mine.prints[sources[0]]
        if not one.of_tokens or not one.tells or self._mine.prints[event].key != one.key:
            return False
        there = [e for e, p in self._reference.prints.items() if p.count == one.count and self._alike(p, one)]
        return bool(there) and not any(
            self._reference.ops[e][0].function in CHOOSES and any(self._alike(p, one) for p in self._reference.made_of(e))
            for e in self._alone
        )  # fmt: skip

    def _leads_to_part(self, event: int, blind: set[int]) -> bool:
        """Whether a part of what the reference makes as one value is computed of it: half of a rotation, or the half itself."""
        if self._trials is None:
            return False
        ahead = {event}
        for _ in range(STEPS):
            some = {e for e in ahead if e in blind and not self._is_moved(e)}
            if any(
                self._trials.is_part(e, self._alone, self._mine, self._reference, self._tolerance)
                for e in sorted(some)
            ):
                return True
            ahead = {e for s in some for e in self._made_of_it.get(s, ())}
        return False

    # ------------------------------------------------------------------ what there is

    @cached_property
    def _alone(self) -> list[int]:
        """The values of the reference that the port has not."""
        shared = met(self._reference, self._mine, self._tolerance)
        return [e for e in self._reference.prints if e not in shared]

    @cached_property
    def _made_of_it(self) -> dict[int, list[int]]:
        """By value, those that were made of it."""
        by_source: dict[int, list[int]] = {}
        for event, sources in self._mine.sources.items():
            for source in sources:
                by_source.setdefault(source, []).append(event)
        return by_source

    def _takers(self, event: int) -> set[int]:
        """What is computed of a value, also where it is moved before."""
        takers: set[int] = set()
        waiting = [event]
        while waiting:
            for taker in self._made_of_it.get(waiting.pop(), ()):
                (waiting.append if self._is_moved(taker) else takers.add)(taker)
        return takers

    def _is_moved(self, event: int) -> bool:
        op = self._mine.ops[event][0]
        return op.is_boundary or op.function in MOVES


def alike(one: Print, other: Print, tolerance: float) -> bool:
    """Whether two values hold the same, token by token or, where one of them has no tokens, as a whole."""
    if one.key == other.key:
        return one.apart(other) <= tolerance
    return one.of_tokens != other.of_tokens and one.as_a_whole().apart(other.as_a_whole()) <= tolerance


def _times(one: Print, other: Print, tolerance: float) -> float | None:
    """By which number the elements of one value are those of another; None where there is none, or they are the same."""
    if one.key != other.key or one.count != other.count or not other.tells or not (other.scales[0] > 0).all():
        return None
    size = float((one.scales[0] / other.scales[0]).mean())
    for factor in (size, -size):
        powers = np.array([[factor], [factor**2], [factor**3]])
        scale = np.maximum(one.scales, np.abs(powers) * other.scales)
        away = np.abs(one.means - powers * other.means) / np.where(scale > 0, scale, 1.0)
        level = np.abs(one.scales - np.abs(powers) * other.scales) / np.where(scale > 0, scale, 1.0)
        if max(away.max(), level.max()) <= tolerance:
            return None if abs(factor - 1) <= tolerance else factor
    return None
