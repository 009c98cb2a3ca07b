"""Both runs with their backward pass in float64: which gradients still differ, beyond float64's own rounding?"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from forkpoint.backward.going_back import GoingBack
from forkpoint.backward.keeping import Every, PerturbedArrivals
from forkpoint.backward.parameters import all_by_name, dense
from forkpoint.backward.watching import NO_GRADIENT, Graph
from forkpoint.explain.session import Session, Traced
from forkpoint.match.align import gap
from forkpoint.match.pairs import Pairs
from forkpoint.probes.inputs import inputs, same_weights
from forkpoint.probes.meetings import Meeting, meet_values
from forkpoint.probes.noise import Noise
from forkpoint.probes.precision import NOISE_MARGIN
from forkpoint.probes.watchers import Place, Snapshot, Store
from forkpoint.promotion import Promotion

MAX_STORED = 1 << 31
"""Bytes of gradients kept of each run; what comes after them is not looked at."""
_FLOOR = 64 * 2.0**-52
"""Relative to the largest element: noise below which no measurement is needed."""
_SUMMED = 16
"""Units in the last place of the parameter's dtype, relative to its norm, by which its gradient may be rounded on the way."""


@dataclass(frozen=True, eq=False)
class Exact:
    """The gradients of two runs in float64.

    Attributes:
        a, b: what was made of what in each run.
        differing: of ops' outputs that differ beyond noise, in the order of the backward pass of run A.
        compared: how many of them met.
        relative: the largest gap, over the largest element there.
        gaps: by place in run A, how far they are apart.
        parameters: for each that was asked for, whether it agrees up to noise; None where that can't be told.
        complete: whether all could be kept.
        refused: operations that were not done in float64.
    """

    a: Graph
    b: Graph
    differing: tuple[Meeting, ...]
    compared: int
    relative: float
    gaps: Mapping[Place, float]
    parameters: tuple[bool | None, ...]
    complete: bool
    refused: tuple[str, ...]
    compared_ops: frozenset[Hashable]
    """Keys of the ops that met."""
    apart: frozenset[Hashable]
    """Keys of those that differ beyond noise."""
    seen: frozenset[tuple[str, str | None]]
    """Module and function of those that met, as a divergence names them."""

    def status(self, key: Hashable) -> tuple[str, str]:
        """By the key of an op, how its output's gradient compares, and why it was not."""
        if key in self.apart:
            return "differs", ""
        return ("equal", "") if key in self.compared_ops else NO_GRADIENT


def in_float64(session: Session, weights: Sequence[str], *, summing: bool) -> Exact:
    """Make both runs and their backward passes in float64, with the same weights where one run has the other's rounded.

    Args:
        session: both runs.
        weights: parameters that both models have, by run A's names.
        summing: see `Arrivals`.
    """
    with same_weights(inputs(session).rounded):
        return _in_float64(session, weights, summing)


def _in_float64(session: Session, names: Sequence[str], summing: bool) -> Exact:
    mine, theirs = all_by_name(session.a), all_by_name(session.b)
    weights = [(mine[name], theirs[name]) for name in names]
    a, b = (_Side(session, traced, name, summing) for traced, name in ((session.a, "A"), (session.b, "B")))
    summed = {side.traced.trace.key(op) for side in (a, b) for op in side.every.left_out}
    meetings = [
        m
        for m in meet_values(session, a.store, b.store, _FLOOR).every
        if m.numeric and len(m.pairs) and session.a.trace.key(m.a.op) not in summed
    ]
    pairs = [_paired(a.exact(x), b.exact(y)) for x, y in weights]
    if any(m.differs for m in meetings) or any(
        pair is not None and pair.apart > pair.noise for pair in pairs
    ):
        noise = a.moved(0), b.moved(1)
        meetings = [
            replace(m, noise=m.noise + NOISE_MARGIN * max(noise[0].at(m.a), noise[1].at(m.b)))
            for m in meetings
        ]
        pairs = [
            pair and replace(pair, noise=pair.noise + NOISE_MARGIN * max(noise[0].of(x), noise[1].of(y)))
            for pair, (x, y) in zip(pairs, weights, strict=True)
        ]
    key = session.a.trace.key
    return Exact(
        a.every.graph,
        b.every.graph,
        tuple(sorted((m for m in meetings if m.differs), key=lambda m: (-m.event_a, m.event_b))),
        len(meetings),
        max((m.gap.max_rel for m in meetings), default=0.0),
        {m.a.place: m.gap.max_abs for m in meetings},
        tuple(None if pair is None else pair.agrees for pair in pairs),
        a.every.complete and b.every.complete,
        tuple(dict.fromkeys((*a.refused, *b.refused))),
        frozenset(key(m.a.op) for m in meetings),
        frozenset(key(m.a.op) for m in meetings if m.differs),
        frozenset((m.a.op.module, None if m.a.op.is_boundary else m.a.op.function) for m in meetings),
    )


@dataclass(frozen=True)
class _Pair:
    """How far two gradients of a parameter are apart, and what of it is noise.

    Attributes:
        whole: whether both are in float64; else they were rounded to the parameter's dtype at their end.
    """

    apart: float
    noise: float
    whole: bool

    @property
    def agrees(self) -> bool | None:
        """Whether they are equal up to noise; None where that can't be told."""
        return False if self.apart > self.noise else (True if self.whole else None)


def _paired(a: tuple[Tensor, float] | None, b: tuple[Tensor, float] | None) -> _Pair | None:
    """Two gradients of one parameter, each with what it may be rounded by, relative to its largest element."""
    if a is None or b is None or a[0].shape != b[0].shape:
        return None
    apart = gap(a[0], b[0], Pairs.whole(a[0].numel()))
    rounded = max(a[1], b[1])
    if math.isinf(
        apart.max_abs
    ):  # in one run alone: NaN is no noise, and infinity only where a narrow dtype ends
        return _Pair(math.inf, 0.0, True) if apart.nan_in_one or not rounded else None
    scale = apart.max_abs / apart.max_rel if apart.max_rel else 0.0
    return _Pair(apart.max_abs, max(_FLOOR, rounded) * scale, not rounded)


class _Side:
    """One run in float64, every gradient kept."""

    def __init__(self, session: Session, traced: Traced, name: str, summing: bool) -> None:
        self.traced, self.name, self.summing = traced, name, summing
        self.store = Store(MAX_STORED, shelf=session.memory.shelf())
        promotion = Promotion()
        self.backward = GoingBack(traced.run, name, promotion)
        self.every = Every(self.backward, self.store, summing=summing)
        with closing(self.every):
            traced.again(watcher=self.every, promotion=promotion, backward=self.backward)
            self.every.finish()
        self.refused = [str(refusal) for refusal in promotion.refused]

    def exact(self, weight: nn.Parameter) -> tuple[Tensor, float] | None:
        """The gradient of a parameter; see `exact_gradient`."""
        return exact_gradient(self.backward, weight)

    def moved(self, seed: int) -> _Noise:
        """The same run with every rounding moved by one unit in the last place."""
        promotion = Promotion()
        backward = GoingBack(self.traced.run, self.name, promotion)
        before = {snapshot.place: snapshot for snapshot in self.store.snapshots.values()}
        moved = PerturbedArrivals(backward, before, seed, summing=self.summing)
        noisy = Noise(seed, promotion.value)
        with closing(moved):
            self.traced.again(watcher=moved, promotion=promotion, under=lambda: noisy, backward=backward)
        return _Noise(moved.apart, self.backward, backward)


@dataclass(frozen=True, eq=False)
class _Noise:
    """How far rounding moves gradients in float64."""

    apart: Mapping[Place, float]
    before: GoingBack
    after: GoingBack

    def at(self, snapshot: Snapshot) -> float:
        """That of an op's output."""
        return self.apart.get(snapshot.place, 0.0)

    def of(self, weight: nn.Parameter) -> float:
        """That of a parameter."""
        pair = _paired(exact_gradient(self.before, weight), exact_gradient(self.after, weight))
        return 0.0 if pair is None or not math.isfinite(pair.apart) else pair.apart


def exact_gradient(backward: GoingBack, weight: nn.Parameter) -> tuple[Tensor, float] | None:
    """The gradient of a parameter, and what it may be rounded by, relative to its largest element; None for another kind.

    In float64 if all of it could be added up: then it is as near to what the parameter got as rounding each part once leaves
    it. Else as it was rounded to the parameter's dtype in the end.
    """
    narrow, wide = backward.gradients[id(weight)], backward.exact.get(id(weight))
    if narrow is None:
        return torch.zeros(weight.shape, dtype=torch.float64, device=weight.device), 0.0
    if not narrow.is_floating_point():
        return None
    eps = torch.finfo(narrow.dtype).eps
    narrow = dense(narrow).double()
    if wide is not None:
        wide = dense(wide)
        finite = wide.isfinite()
        apart = torch.linalg.vector_norm((wide - narrow)[finite])
        alike = torch.equal(finite, narrow.isfinite())
        parts = backward.added[id(weight)]
        if alike and bool(apart <= parts * eps * torch.linalg.vector_norm(wide[finite])):
            return wide, 0.0
    return narrow, _SUMMED * eps
