"""The op at which the values of a port part from those of its reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forkpoint.capture.trace import Event, Op
from forkpoint.explain.session import Session
from forkpoint.ports.mapping import Mapping
from forkpoint.ports.roots import Root, find_root
from forkpoint.ports.trials import PortTrials
from forkpoint.ports.values import MOVES, NOISE, ROUNDED, TABLES, Prints, met
from forkpoint.promotion import Promotion


@dataclass(frozen=True)
class Parting:
    """Where the values of a port part from those of its reference.

    Attributes:
        op: of the port, the first behind which no value is met.
        event: the value that it made.
        differing, tokens: at how many of its tokens the sums are apart from those of the nearest value of the reference.
        first: the shared number of the first such token; None where the value has none.
        apart: how far at most; infinite where the reference has no value with as many elements for each token.
        rounded: whether that is no more than rounding to float32 makes, and all behind it is met as near as that.
        met, total: how many floating-point values of the port are met, of how many.
        partner: the op of the reference that makes the nearest value that the port has not, of the same values if there is one.
        lacking: whether the reference has this value, too, and `partner` makes another of it, which the port does not.
        misplaced: whether the reference has it, too, and gives what `partner` makes to the weights that are given it here.
        alike: whether `partner` makes its value of those that this one is made of.
        unclear: the first of the ops behind it whose values the reference has not, and which may be at fault as well.
    """

    op: Op
    event: Event
    differing: int
    tokens: int
    first: int | None
    apart: float
    rounded: bool
    met: int
    total: int
    partner: Op | None
    lacking: bool = False
    misplaced: bool = False
    alike: bool = False
    unclear: Op | None = None


def prints_of(session: Session) -> tuple[Prints, Prints]:
    """The prints of both runs, in float64."""
    both = Prints(session.shared.a), Prints(session.shared.b)
    for traced, prints in zip((session.a, session.b), both, strict=True):
        traced.again(watcher=prints, promotion=Promotion())
    return both


def part(
    mine: Prints, reference: Prints, trials: PortTrials | None = None, modules: Mapping | None = None
) -> Parting | None:
    """The op of the port at which its values part from the reference's; None if the last ones are the same.

    What tables differ by that were rounded to float32 is allowed.

    Args:
        trials: makes the port's run with a value of the reference in the place of one of its own.
        modules: which parameter is which.
    """
    if not mine.prints:
        return None
    root = find_root(mine, reference, NOISE, None)
    if root is None:
        return None
    if find_root(mine, reference, TABLES, None) is None or find_root(mine, reference, ROUNDED, None) is None:
        return _parting(mine, reference, root, rounded=True)
    root = find_root(mine, reference, TABLES, trials, modules)
    assert root is not None
    return _parting(mine, reference, root, rounded=False)


def _parting(mine: Prints, reference: Prints, fault: Root, *, rounded: bool) -> Parting:
    root = fault.event
    one = mine.prints[root]
    tolerance = NOISE if rounded else TABLES
    shared, theirs = met(mine, reference, tolerance), met(reference, mine, tolerance)
    alike = [e for e, p in reference.prints.items() if p.key == one.key and e not in theirs]
    same = mine.ops[root][0].function
    lacking = root in shared and not rounded and fault.instead is None
    if lacking:  # what the reference makes of it is what the port has not
        alike = [
            e
            for e in reference.prints
            if e not in theirs and not reference.ops[e][0].is_boundary
            and any(x.key == one.key and x.apart(one) <= tolerance for x in reference.made_of(e))
        ][:1]  # fmt: skip

    operands = mine.made_of(root)

    def of_the_same(event: int) -> bool:
        others = reference.made_of(event)
        return bool(operands) and all(
            any(x.key == y.key and x.apart(y) <= tolerance for y in others) for x in operands
        )

    def likely(event: int) -> tuple[bool, bool, bool, float]:
        op = reference.ops[event][0]
        moves = op.is_boundary or op.function in MOVES
        return moves, not of_the_same(event), op.function != same, one.apart(reference.prints[event])

    partner = fault.instead if fault.instead is not None else min(alike, key=likely, default=None)
    there = None if partner is None else reference.prints[partner]
    away = np.full(len(one.tokens), np.inf) if there is None or there.key != one.key else one.apart_at(there)
    where = np.flatnonzero(away > NOISE)
    op, event = mine.ops[root]
    return Parting(
        op, event, len(where), len(one.tokens), int(one.tokens[where[0]]) if one.of_tokens and len(where) else None,
        float(away.max(initial=0.0)), rounded, len(shared), len(mine.prints),
        None if partner is None else reference.ops[partner][0], lacking, fault.instead is not None,
        partner is not None and of_the_same(partner), None if fault.unclear is None else mine.ops[fault.unclear][0],
    )  # fmt: skip
