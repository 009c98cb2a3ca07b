"""Where a port and its reference hold the same values, and the first op from which on they don't.

Both runs are made in float64, so that rounding plays no part. Of each value that passes by, sums over the elements of each
token are kept that do not depend on their order: heads in any order, and halves that are interleaved in the other, meet.
A value of the port is *met* if the reference has one with the same sums. Code that does the same otherwise makes values
that are not met, but what is made of them is met again; from the op at fault on, nothing is.
"""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.functions import ALWAYS_VIEWS
from forkpoint.capture.labels import Label, spread
from forkpoint.capture.recorder import Recorder
from forkpoint.capture.trace import Event, Op
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
MOST_PARTS = 8
"""Calls on one value of which two or three are held together against a fused one."""
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
    "complex",
    "view_as_complex",
    "view_as_real",
    "real",
    "imag",
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
    count: int
    """How many elements each token has; 0 where some have more than others."""

    @property
    def of_tokens(self) -> bool:
        return isinstance(self.key, tuple) and not self.key[0]

    @property
    def is_constant(self) -> bool:
        """Whether all elements of all tokens are the same."""
        return not self.tells and not np.ptp(self.means[0])

    def as_a_whole(self) -> Print:
        """The print of the same elements without their tokens."""
        one = np.zeros(1, dtype=np.int64)
        means, scales = (m.mean(axis=1, keepdims=True) for m in (self.means, self.scales))
        return Print(one, (True, one.tobytes()), means, scales, self.tells, self.count * len(self.tokens))

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
    """A watcher that keeps a print of each floating-point value, of complex ones of both parts, and what each was made from.

    Args:
        numbers: for each coordinate of the run, a number that both runs have for it; negative for the others.

    Attributes:
        nearest: of runs that it was held against, how far each value is from the nearest there.
    """

    numbers: NDArray[np.int64]
    prints: dict[int, Print] = field(default_factory=dict[int, Print])
    sources: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    ops: dict[int, tuple[Op, Event]] = field(default_factory=dict[int, tuple[Op, Event]])
    nearest: list[tuple[Prints, dict[int, float]]] = field(
        default_factory=list["tuple[Prints, dict[int, float]]"], repr=False
    )
    entrances_only: ClassVar[bool] = False

    def made_of(self, event: int) -> list[Print]:
        """The prints of the values of tokens that a value was made from."""
        prints = [self.prints[s] for s in self.sources.get(event, ()) if s in self.prints]
        return [one for one in prints if one.of_tokens]

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
        if value.dtype.is_complex and value.numel() and not why_unreadable(value):
            parts = torch.view_as_real(value.detach().resolve_conj()).double().cpu()
            self.prints[event] = self._print(parts, label)
        if value.dtype.is_floating_point and value.numel() and not why_unreadable(value):
            self.prints[event] = self._print(value.detach().double().cpu(), label)

    def _print(self, value: Tensor, label: Label | None) -> Print:
        x = value.nan_to_num(0.0, 0.0, 0.0)
        x = torch.where(x.abs() < INFINITE, x, 0.0).numpy()
        if label is None:
            groups, tokens = np.zeros(x.size, dtype=np.int64), np.zeros(1, dtype=np.int64)
        else:
            ids = self.numbers[label.q]
            ids = spread(ids.reshape(ids.shape + (1,) * (x.ndim - ids.ndim)), x.shape).reshape(-1)
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
        count = int(counts[0]) if len(counts) and (counts == counts[0]).all() else 0
        return Print(tokens, key, means, scales, tells, count)


def result_of(prints: Prints) -> int:
    """The last floating-point value: what the model returns."""
    outputs = [
        e for e in prints.prints if not prints.ops[e][0].module and prints.ops[e][0].function == "output"
    ]
    return max(outputs or prints.prints)


def met(mine: Prints, reference: Prints, tolerance: float) -> set[int]:
    """The values of one run that the other has, too: as they are, for some of its tokens, or in parts.

    Parts are values that the other run makes of the same value: a fused projection holds those of several.
    """
    return {event for event, apart in _nearest(mine, reference).items() if apart <= tolerance}


def _nearest(mine: Prints, reference: Prints) -> dict[int, float]:
    """How far each value of one run is from the nearest of the other; worked out once."""
    nearest = next((nearest for other, nearest in mine.nearest if other is reference), None)
    if nearest is None:
        there = _by_tokens(reference)
        nearest = {event: _least(one, there) for event, one in mine.prints.items()}
        for event, apart in _joined(mine, reference, nearest):
            nearest[event] = min(nearest[event], apart)
        mine.nearest.append((reference, nearest))
    return nearest


def _by_tokens(reference: Prints) -> dict[Hashable, Print]:
    """All values of the same tokens as one print, [values, 3, tokens]."""
    groups: dict[Hashable, list[Print]] = {}
    for one in reference.prints.values():
        groups.setdefault(one.key, []).append(one)
    return {
        key: Print(some[0].tokens, key, np.stack([p.means for p in some]), np.stack([p.scales for p in some]), True, 0)
        for key, some in groups.items()
    }  # fmt: skip


def _least(one: Print, there: dict[Hashable, Print]) -> float:
    """The distance to the nearest value of the same tokens; where there is none, of more tokens, at these."""
    if one.key in there:
        others = [(there[one.key], slice(None))]
    elif one.of_tokens:
        others = [
            (wider, at)
            for wider in there.values()
            if wider.of_tokens and len(wider.tokens) > len(one.tokens)
            and (at := np.searchsorted(wider.tokens, one.tokens)).max() < len(wider.tokens)
            and (wider.tokens[at] == one.tokens).all()
        ]  # fmt: skip
    else:
        others = []
    least = np.inf
    for other, at in others:
        scale = np.maximum(other.scales[..., at], one.scales)
        away = np.abs(other.means[..., at] - one.means) / np.where(scale > 0, scale, 1.0)
        least = min(least, float(away.max(axis=(1, 2), initial=0.0).min(initial=np.inf)))
    return least


def _joined(mine: Prints, reference: Prints, nearest: dict[int, float]) -> Iterable[tuple[int, float]]:
    """Values of one run that hold what the other makes of the same value in two or three calls, and how far they are apart."""
    families: dict[tuple[str, int], list[int]] = {}
    for event in reference.prints:
        op = reference.ops[event][0]
        sources = [s for s in reference.sources.get(event, ()) if s in reference.prints]
        if len(sources) == 1 and not op.is_boundary and op.function not in MOVES:
            families.setdefault((op.function, sources[0]), []).append(event)
    far = [event for event, apart in nearest.items() if apart > ROUNDED]
    for (_, source), members in families.items():
        if not 1 < len(members) <= MOST_PARTS:
            continue
        parts = [reference.prints[m] for m in members]
        wholes = [_together(some) for n in (2, 3) for some in combinations(parts, n) if _may_be_one(some)]
        for event in far:
            one = mine.prints[event]
            if any(
                x.apart(reference.prints[source]) <= ROUNDED
                for x in mine.made_of(event)
                if x.key == reference.prints[source].key
            ):
                fitting = (one.apart(w) for w in wholes if one.key == w.key and one.count == w.count)
                yield event, min(fitting, default=np.inf)


def _may_be_one(parts: Sequence[Print]) -> bool:
    return all(p.key == parts[0].key and p.count for p in parts)


def _together(parts: Sequence[Print]) -> Print:
    """The print of a value that holds the elements of some."""
    total = sum(p.count for p in parts)
    means = sum((p.means * (p.count / total) for p in parts), np.zeros_like(parts[0].means))
    scales = sum((p.scales * (p.count / total) for p in parts), np.zeros_like(parts[0].scales))
    return Print(parts[0].tokens, parts[0].key, means, scales, True, total)


def behind(prints: Prints, start: Iterable[int], but: AbstractSet[int] = frozenset()) -> set[int]:
    """Values that some were made from, and those themselves; not through some of them."""
    reached, queue = set(start), list(start)
    while queue:
        for source in prints.sources.get(queue.pop(), ()):
            if source not in reached and source not in but:
                reached.add(source)
                queue.append(source)
    return reached
