"""Where a port and its reference hold the same values, and the first op from which on they don't.

Both runs are made in float64, so that rounding plays no part. Of each value that passes by, sums over the elements of each
token are kept that do not depend on their order: heads in any order, and halves that are interleaved in the other, meet.
A value of the port is *met* if the reference has one with the same sums. Code that does the same otherwise makes values
that are not met, but what is made of them is met again; from the op at fault on, nothing is.
"""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.functions import ALWAYS_VIEWS
from forkpoint.capture.labels import Label, spread
from forkpoint.capture.recorder import Recorder
from forkpoint.capture.trace import Event, Op
from forkpoint.explain.session import Session
from forkpoint.promotion import Promotion
from forkpoint.support.readable import why_unreadable

Floats = NDArray[np.float64]

NOISE = 1e-9
"""What sums of the same values may differ by in float64, relative to those of their magnitudes."""
TABLES = 4e-7
"""The same for what was made of tables that were rounded to float32 when the models were made, as of sines."""
ROUNDED = 2e-6
"""What such rounding may have grown to in the end, if all is met so far."""
INFINITE = 1e30
"""Magnitudes from which on numbers stand for what a mask hides; each implementation has its own."""
MOVES = ALWAYS_VIEWS | {
    "getitem",
    "reshape",
    "contiguous",
    "chunk",
    "split",
    "unbind",
    "cat",
    "clone",
    "to",
    "float",
}
"""Functions whose results hold the elements of their inputs."""


@dataclass(frozen=True)
class Print:
    """What is kept of a value: for each token, means of its elements, of their squares, and of their cubes.

    Attributes:
        tokens: [tokens], shared numbers of their coordinates; of a value without tokens one that means nothing.
        key: the tokens; only values with the same one are compared.
        means: [3, tokens].
        scales: [3, tokens], means of magnitudes.
    """

    tokens: NDArray[np.int64]
    key: Hashable
    means: Floats
    scales: Floats
    tells: bool
    """Whether its elements differ: that two values are all zeros, or all ones, says nothing of where they come from."""

    def apart(self, other: Print) -> float:
        """How far the means are apart, relative to those of magnitudes.

        It is 0 for the same values, in any order within each token, and however often each: keys that heads share.
        """
        return float(self.apart_at(other).max(initial=0.0))

    def apart_at(self, other: Print) -> Floats:
        """The same for each token."""
        scale = np.maximum(self.scales, other.scales)
        return (np.abs(self.means - other.means) / np.where(scale > 0, scale, 1.0)).max(axis=0)


@dataclass
class Prints:
    """A watcher that keeps a print of each floating-point value, and what each was made from.

    Args:
        numbers: for each coordinate of the run, a number that both runs have for it; negative for the others.
    """

    numbers: NDArray[np.int64]
    prints: dict[int, Print] = field(default_factory=dict[int, Print])
    sources: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    ops: dict[int, tuple[Op, Event]] = field(default_factory=dict[int, tuple[Op, Event]])
    entrances_only: ClassVar[bool] = False

    def made_of(self, event: int) -> list[Print]:
        """The prints of the values of tokens that a value was made from."""
        found = [self.prints[s] for s in self.sources.get(event, ()) if s in self.prints]
        return [one for one in found if isinstance(one.key, tuple) and not one.key[0]]

    def edits(self, key: tuple[str, str, str]) -> bool:
        return False

    def edit(
        self, recorder: Recorder, key: Any, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        return None

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        self.sources[event] = [i for i in inputs if i != event]
        self.ops[event] = recorder.trace.rows[event][0], recorder.trace.event(event)
        if value.dtype.is_floating_point and value.numel() and not why_unreadable(value):
            self.prints[event] = self._print(value.detach().double().cpu(), label)

    def _print(self, value: Tensor, label: Label | None) -> Print:
        x = value.nan_to_num(0.0, 0.0, 0.0)
        x = torch.where(x.abs() < INFINITE, x, 0.0).numpy()
        if label is None:
            groups, tokens = np.zeros(x.size, dtype=np.int64), np.zeros(1, dtype=np.int64)
        else:
            ids = spread(self.numbers[label.q], x.shape).reshape(-1)
            keep = ids >= 0
            tokens, groups = np.unique(ids[keep], return_inverse=True)
            x = x.reshape(-1)[keep]
        x = x.reshape(-1)
        counts = np.bincount(groups, minlength=len(tokens))
        powers = [x, x * x, x * x * x]
        means = np.stack([np.bincount(groups, p, len(tokens)) / counts for p in powers])
        scales = np.stack([np.bincount(groups, np.abs(p), len(tokens)) / counts for p in powers])
        tells = bool((means[1] - means[0] ** 2 > NOISE * means[1]).any())
        key = label is None, tokens.tobytes()
        return Print(tokens, key, means, scales, tells)


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
        partner: the op of the reference that makes the nearest value that the port has not.
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


def prints_of(session: Session) -> tuple[Prints, Prints]:
    """The prints of both runs, in float64."""
    found = Prints(session.shared.a), Prints(session.shared.b)
    for traced, prints in zip((session.a, session.b), found, strict=True):
        traced.again(watcher=prints, promotion=Promotion())
    return found


def part(mine: Prints, reference: Prints) -> Parting | None:
    """The op of the port at which its values part from the reference's; None if the last ones are the same.

    What tables differ by that were rounded to float32 is allowed.
    """
    if not mine.prints:
        return None
    known = met(mine, reference, NOISE)
    first = root = _root(mine, reference, known, NOISE)
    if root is not None:
        known = met(mine, reference, TABLES)
        root = _root(mine, reference, known, TABLES)
    rounded = root is None or _root(mine, reference, met(mine, reference, ROUNDED), ROUNDED) is None
    root = first if rounded else root
    if root is None:
        return None
    return _parting(mine, reference, root, rounded=rounded, known=len(known))


def _parting(mine: Prints, reference: Prints, root: int, *, rounded: bool, known: int) -> Parting:
    one = mine.prints[root]
    theirs = met(reference, mine, NOISE if rounded else TABLES)
    alike = [e for e, p in reference.prints.items() if p.key == one.key and e not in theirs]
    same = mine.ops[root][0].function

    def likely(event: int) -> tuple[bool, bool, float]:
        op = reference.ops[event][0]
        moves = op.is_boundary or op.function in MOVES
        return moves, op.function != same, one.apart(reference.prints[event])

    partner = min(alike, key=likely, default=None)
    away = np.full(len(one.tokens), np.inf) if partner is None else one.apart_at(reference.prints[partner])
    where = np.flatnonzero(away > NOISE)
    labelled = isinstance(one.key, tuple) and not one.key[0]
    op, event = mine.ops[root]
    return Parting(
        op, event, len(where), len(one.tokens), int(one.tokens[where[0]]) if labelled and len(where) else None,
        float(away.max(initial=0.0)), rounded, known, len(mine.prints),
        None if partner is None else reference.ops[partner][0],
    )  # fmt: skip


def _root(mine: Prints, reference: Prints, met_ones: set[int], tolerance: float) -> int | None:
    """The first value on the way to the result at which the port is at fault, if there is one.

    That is one that the reference makes otherwise of the same values by the same function; or one behind which nothing is
    met, though what it was made from is, or leads there.
    """
    result = _result(mine)
    if mine.prints[result].apart(reference.prints[_result(reference)]) <= tolerance:
        return None
    leads = met_ones | _behind(mine, {event for event in met_ones if mine.prints[event].tells})
    blind = {event for event in mine.prints if event not in leads}
    to_result = _behind(mine, [result])
    roots = [e for e in blind if e in to_result and not any(s in blind for s in mine.sources[e])]
    roots = [_maker(mine, e, met_ones) for e in sorted(roots)[:1]]
    roots += _otherwise(mine, reference, met_ones, to_result, tolerance)
    return min(roots, default=_maker(mine, result, set()))


def _otherwise(
    mine: Prints, reference: Prints, met_ones: set[int], to_result: set[int], tolerance: float
) -> list[int]:
    """Values that neither run has of the other, and that both make of the same values by the same function."""
    theirs = met(reference, mine, tolerance)
    there: dict[str, list[int]] = {}
    for event in reference.prints:
        if event not in theirs and reference.made_of(event):
            there.setdefault(reference.ops[event][0].function, []).append(event)
    found: list[int] = []
    for event in sorted(to_result & mine.prints.keys()):
        given = mine.made_of(event)
        function = mine.ops[event][0].function
        if event in met_ones or not given or function in MOVES or mine.ops[event][0].is_boundary:
            continue
        for other in there.get(function, ()):
            others = reference.made_of(other)
            alike = len(given) == len(others) and reference.prints[other].key == mine.prints[event].key
            if alike and all(x.apart(y) <= tolerance for x, y in zip(given, others, strict=True)):
                found.append(event)
                break
        if found:
            break
    return found


def _result(prints: Prints) -> int:
    """The last floating-point value: what the model returns."""
    outputs = [
        e for e in prints.prints if not prints.ops[e][0].module and prints.ops[e][0].function == "output"
    ]
    return max(outputs or prints.prints)


def met(mine: Prints, reference: Prints, tolerance: float) -> set[int]:
    """The values of one run that the other has, too."""
    there: dict[Hashable, list[Print]] = {}
    for one in reference.prints.values():
        there.setdefault(one.key, []).append(one)
    return {
        event
        for event, one in mine.prints.items()
        if any(one.apart(other) <= tolerance for other in there.get(one.key, ()))
    }


def _behind(prints: Prints, start: Any) -> set[int]:
    """Values that some were made from, and those themselves."""
    found, queue = set(start), list(start)
    while queue:
        for source in prints.sources.get(queue.pop(), ()):
            if source not in found:
                found.add(source)
                queue.append(source)
    return found


def _maker(prints: Prints, event: int, met_ones: set[int]) -> int:
    """What computed the elements that an op only moves: parts of it are met, and this part is not."""
    while True:
        op = prints.ops[event][0]
        before = [s for s in prints.sources.get(event, ()) if s in prints.prints and s not in met_ones]
        if not (op.function in MOVES or op.is_boundary) or len(before) != 1:
            return event
        event = before[0]
