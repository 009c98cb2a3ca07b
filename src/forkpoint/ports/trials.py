"""Experiments on a port: its run with a value of the reference in the place of one of its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.labels import spread
from forkpoint.explain.session import Session
from forkpoint.match.pairs import Pairs
from forkpoint.ports.values import INFINITE, MOVES, Prints
from forkpoint.probes.watchers import Patch, Patched, Snapshot, Store
from forkpoint.promotion import Promotion

Ints = NDArray[np.int64]

MOST = 12
"""Experiments that are made for one comparison."""
EACH = 3
"""Values of the reference that are tried at one place."""
MOST_BYTES = 1 << 30
"""Bytes of the values of each run that are kept for experiments."""
HOLDERS = 64
"""Values of the reference in which the elements of one are looked for."""


class PortTrials:
    """Makes the experiments.

    Attributes:
        left: how many may still be made.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stores: tuple[Store, Store] | None = None
        self.left = MOST

    def of(
        self, event: int, alone: list[int], mine: Prints, reference: Prints, tolerance: float
    ) -> Iterator[Prints]:
        """The prints of the port's run with values of the reference in the place of one, the likeliest first.

        Args:
            event: the value of the port.
            alone: the values of the reference that the port has not.
        """
        for other in self._likely(event, alone, mine, reference, tolerance):
            if self.left <= 0:
                return
            pairs = self._pairs(event, other, mine, reference, tolerance)
            if pairs is None:
                continue
            self.left -= 1
            one, theirs = (store.snapshots[e] for store, e in zip(self._both, (event, other), strict=True))
            patch = Patch({one.place: [(theirs.value, pairs)]})
            prints = Prints(self._session.shared.a)
            self._session.a.again(watcher=Patched(patch, prints), promotion=Promotion())
            if patch.applied == 1 and prints.ops.keys() == mine.ops.keys():
                yield prints

    def is_part(
        self, event: int, alone: list[int], mine: Prints, reference: Prints, tolerance: float
    ) -> bool:
        """Whether the reference makes a value's elements as part of a larger value, for each token among that one's.

        Args:
            event: the value of the port.
            alone: the values of the reference that the port has not.
        """
        one = mine.prints[event]
        if not (one.of_tokens and one.tells and one.count):
            return False
        larger = [
            e for e in alone
            if reference.prints[e].key == one.key and reference.prints[e].count > one.count
        ]  # fmt: skip
        rows = self._rows(0, event, mine) if larger else None
        if rows is None:
            return False
        for other in larger[:HOLDERS]:
            there = self._rows(1, other, reference)
            if there is not None and _all_among(rows, there, tolerance):
                return True
        return False

    def _rows(self, run: int, event: int, prints: Prints) -> NDArray[np.float64] | None:
        """A value's elements, [tokens, elements]; None where it was not kept, or some are of no token."""
        snapshot = self._both[run].snapshots.get(event)
        if (
            snapshot is None
            or snapshot.label is None
            or snapshot.value.is_complex()
            or _by_token(snapshot, prints) is None
        ):
            return None
        rows = _elements(snapshot, prints).reshape(len(prints.prints[event].tokens), -1)
        return np.where(np.abs(rows) < INFINITE, rows, 0.0)

    def _likely(
        self, event: int, alone: list[int], mine: Prints, reference: Prints, tolerance: float
    ) -> list[int]:
        """Values of as many elements that are not the same, those of the same function and near to it first."""
        one, function = mine.prints[event], mine.ops[event][0].function

        def order(other: int) -> tuple[bool, bool, float]:
            there = reference.ops[other][0].function
            print_ = reference.prints[other]
            return there != function, there in MOVES, one.apart(print_) if print_.key == one.key else np.inf

        likely: list[int] = []
        for other in sorted(alone, key=order):
            print_ = reference.prints[other]
            size = print_.count * len(print_.tokens)
            fits = (
                print_.count == one.count
                if print_.key == one.key
                else not (print_.of_tokens and one.of_tokens)
            )
            if (
                not fits
                or reference.ops[other][0].is_boundary
                or size != one.count * len(one.tokens)
                or not size
            ):
                continue
            prints = (reference.prints[f] for f in likely)
            if not any(f.key == print_.key and f.apart(print_) <= tolerance for f in prints):
                likely.append(other)
        return likely[:EACH]

    @property
    def _both(self) -> tuple[Store, Store]:
        if self._stores is None:
            self._stores = Store(MOST_BYTES), Store(MOST_BYTES)
            for traced, store in zip((self._session.a, self._session.b), self._stores, strict=True):
                traced.again(watcher=store, promotion=Promotion())
        return self._stores

    def _pairs(
        self, event: int, other: int, mine: Prints, reference: Prints, tolerance: float
    ) -> Pairs | None:
        """Which element of the reference's value goes where; None where that can't be told."""
        stores = self._both
        one, theirs = stores[0].snapshots.get(event), stores[1].snapshots.get(other)
        if one is None or theirs is None or one.value.is_complex() or theirs.value.is_complex():
            return None
        at, there = _by_token(one, mine), _by_token(theirs, reference)
        if at is None or there is None or len(at) != len(there):
            return None
        count = mine.prints[event].count
        if count > 1 and mine.prints[event].key == reference.prints[other].key:
            order = self._order(event, other, mine, reference, tolerance, count)
            if order is not None:
                there = there.reshape(-1, count)[:, order].reshape(-1)
        return Pairs(there, at, np.zeros(len(at), dtype=np.int64))

    def _order(
        self, event: int, other: int, mine: Prints, reference: Prints, tolerance: float, count: int
    ) -> Ints | None:
        """In which order the port has the elements of a token, told by what both make the value of; None for the same."""
        for source in mine.sources[event]:
            for theirs in reference.sources[other]:
                x, y = mine.prints.get(source), reference.prints.get(theirs)
                if x is None or y is None or x.key != y.key or x.count != count or y.count != count:
                    continue
                if (
                    x.apart(y) > tolerance
                    or source not in self._both[0].snapshots
                    or theirs not in self._both[1].snapshots
                ):
                    continue
                a, b = (
                    _elements(store.snapshots[e], prints).reshape(-1, count)
                    for store, e, prints in zip(self._both, (source, theirs), (mine, reference), strict=True)
                )
                order = np.empty(count, dtype=np.int64)
                order[np.argsort(a[-1], kind="stable")] = np.argsort(b[-1], kind="stable")
                if not np.allclose(a, b, rtol=1e-5, atol=1e-6) and np.allclose(
                    a, b[:, order], rtol=1e-5, atol=1e-6
                ):
                    return order
        return None


def _by_token(saved: Snapshot, prints: Prints) -> Ints | None:
    """Flat indices of a value's elements, token by token; None where some of them are of no token."""
    size = saved.held.numel() if isinstance(saved.held, Tensor) else int(np.prod(saved.event.shape))
    if saved.label is None:
        return np.arange(size)
    ids = spread(prints.numbers[saved.label.q], saved.value.shape).reshape(-1)
    return np.argsort(ids, kind="stable") if (ids >= 0).all() else None


def _elements(saved: Snapshot, prints: Prints) -> NDArray[np.float64]:
    """A value's elements, token by token."""
    at = _by_token(saved, prints)
    flat = saved.value.detach().double().cpu().reshape(-1).numpy()
    return flat if at is None else flat[at]


def _all_among(rows: NDArray[np.float64], there: NDArray[np.float64], tolerance: float) -> bool:
    """Whether each element is among those of the same row of another value."""
    for one, other in zip(rows, np.sort(there, axis=1), strict=True):
        at = np.searchsorted(other, one).clip(1, len(other) - 1)
        away = np.minimum(np.abs(one - other[at - 1]), np.abs(one - other[at]))
        if not (away <= tolerance * np.abs(other).mean()).all():
            return False
    return True
