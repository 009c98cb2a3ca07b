"""The coupling probe: does the op where the difference enters read what the other run does not have?

Before the origin everything is equal where both runs have it. What only one of them has (padding,
batch mates, later tokens) is given other values there, right before the origin: if a token that
both have changes at the origin, it is coupled to the others at that very op. Then the others are
asked one kind at a time, which tells what couples: other rows, or the token's own row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.explain.session import Session
from forkpoint.probes.bench import Bench, Effect, benches
from forkpoint.probes.origin import Origin
from forkpoint.probes.resampled import DRAWN, FAINT, NOTHING, ROTATED
from forkpoint.result import ProbeResult

ROWS, PADDING, LATER, EARLIER = "other rows", "padding of its own row", "later tokens", "an earlier call"
OTHERS = "what the other run lacks"
"""What couples a token at the origin; the last where nobody asked one kind at a time."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Coupling:
    """What moves a value that both runs have, at the origin.

    Attributes:
        what: `ROWS`, `PADDING`, `LATER` and `EARLIER`, as far as each alone moves one; empty where nothing does.
        by: how far the largest moved.
        moved: shared numbers of what moved.
        bench: the run in which it moved; None where nothing did.
        others: the ids of that run that were given other values.
    """

    what: tuple[str, ...]
    by: float
    moved: frozenset[int]
    result: ProbeResult
    bench: Bench | None = None
    others: Mask | None = None

    def __bool__(self) -> bool:
        return bool(self.what)

    @property
    def of_rows(self) -> bool:
        """Whether it is other rows of the batch that couple, and nothing in the token's own."""
        return self.what == (ROWS,)

    def ordered(self) -> bool:
        """Whether it matters which of the others holds what: not for a sum, a mean or a maximum over them."""
        bench, others, moved = self.bench, self.others, self.moved
        if bench is None or others is None:
            return True
        groups = bench.columns if ROWS in self.what else bench.rows
        if ROWS not in self.what:
            first = bench.first_of(moved)
            others = others & bench.row_mates(first)
            if (
                int(others.sum()) == 1 and not others[bench.mixed]
            ):  # alone it has no other order: let it take a token's
                moved, others = first, bench.row_mates(first) & ~bench.is_shared(first)
        drawn, rotated = (bench.values(others, how, groups=groups) for how in (DRAWN, ROTATED))
        if drawn is None or rotated is None:
            return ROWS not in self.what  # a single mate has no other order
        return bool(bench.compare(drawn, rotated).numbers & moved)

    def by_extremes(self) -> bool:
        """Whether the others couple by their largest values alone: small ones have no part in it, whatever they are."""
        if self.bench is None or self.others is None:
            return False
        faint, nothing = (self.bench.values(self.others, how) for how in (FAINT, NOTHING))
        if faint is None or nothing is None:
            return False
        return not self.bench.compare(faint, nothing).numbers


def coupling(session: Session, origin: Origin) -> Coupling:
    """Give what one run alone has other values right before the origin, and look whether a shared value moves."""
    asked = False
    for bench in benches(session, origin):
        others = bench.lacking
        moved = bench.move(others, DRAWN)
        if moved is None:
            continue
        asked = True
        if moved.numbers:
            return _told(bench, others, moved)
    text = (
        "other content where the other run has none moves no shared value at the origin"
        if asked
        else "what comes right before the origin is the same in both runs: nothing to replace"
    )
    return Coupling((), 0.0, frozenset(), ProbeResult("coupling", "none" if asked else "nothing", 0.0, text))


def _told(bench: Bench, others: Mask, moved: Effect) -> Coupling:
    kinds = [(what, mask) for what, mask in _kinds(bench, moved.numbers) if (mask & others).any()]
    what = (
        tuple(what for what, mask in kinds if _moves(bench, mask & others, moved)) if len(kinds) > 1 else ()
    )
    what = what or tuple(what for what, _ in kinds)
    text = (
        f"other content in {' and in '.join(what)}, put in place right before the origin, "
        f"moves a value there that both runs have by {moved.by:.2g}"
    )
    result = ProbeResult("coupling", "coupled", moved.by, text)
    return Coupling(what, moved.by, moved.numbers, result, bench, others)


def _moves(bench: Bench, others: Mask, before: Effect) -> bool:
    """Whether these alone move a value of the first sample that moved."""
    moved = bench.move(others, DRAWN)
    first = bench.samples(bench.first_of(before.numbers))
    return moved is not None and bool(bench.samples(moved.numbers) & first)


def _kinds(bench: Bench, moved: frozenset[int]) -> Iterator[tuple[str, Mask]]:
    """What the others are to the first sample that moved."""
    mine = bench.row_mates(bench.first_of(moved))
    earlier = bench.earlier
    yield EARLIER, earlier
    yield ROWS, ~mine & ~earlier
    yield PADDING, mine & ~earlier & ~bench.is_token
    yield LATER, mine & ~earlier & bench.is_token
