"""Trials: run B with some values put right, and how near to run A it comes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkpoint.capture.trace import Op
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.results import ResultComparison, compare_results
from forkpoint.explain.session import Results, Session
from forkpoint.probes.meetings import Meeting, Meetings
from forkpoint.probes.precision import Precision
from forkpoint.probes.watchers import Store, Values

MAX_TRIALS = 48
"""Runs with values put right."""
MAX_LAYERS = 8
"""Layers with the same origin up to which each is left out by itself; beyond it only all of them together."""
_CLOSES_MOST = 0.5
"""Share of the gap from which an origin explains it."""
_SAME = 1e-6
"""Share of the gap up to which two results are the same."""
_NEARLY_EVERY = 0.9
"""Share of the coordinates at which a cause that is put right leads nearer to run A; what does no good does by chance."""
_HUGE = 1e30
"""Stands for a gap that is infinite."""


@dataclass(eq=False)
class Round:
    """A run of B, with some values put right, and how its values meet those of A.

    Attributes:
        right: the values that were put in place.
    """

    store: Store
    meetings: Meetings
    right: Values


@dataclass(eq=False)
class Part:
    """An op at which a difference enters: all its passes are put right together.

    Attributes:
        root: the pass that is shown.
        seen: where its difference first shows.
        of: the round in which it was found.
    """

    passes: list[Meeting]
    root: Meeting
    seen: Meeting
    of: Round

    @property
    def numeric(self) -> bool:
        return self.root.numeric

    @property
    def of_tokens(self) -> bool:
        """Whether it is a number of known tokens: put in place, it can't do harm to others."""
        snapshots = [snapshot for meeting in self.passes for snapshot in (meeting.a, meeting.b)]
        return self.numeric and all(one.label is not None for one in snapshots)

    @property
    def site(self) -> object:
        """What the same op in other layers has, too."""
        return site(self.root.a.op)


def site(op: Op) -> object:
    return op.function, op.site.chain, op.output


@dataclass(frozen=True)
class Trial:
    """Run B with some values put right.

    Attributes:
        gap: the largest gap of the result to run A's.
        gaps: [coordinates of the results], the gap at each.
        closed: whether it is noise.
        moves: by how many times noise the result is another than that of run B; infinite where the gap is closed, and
            negative where nothing could be put right.
    """

    gap: float
    gaps: NDArray[np.float64]
    closed: bool
    moves: float

    def no_worse(self, than: Trial, noise: float) -> bool:
        """Whether the result is as near to run A's, over all coordinates, as in another trial."""
        if self.gaps.shape != than.gaps.shape:
            return False
        return self.closed or float(self.gaps.sum()) <= float(than.gaps.sum()) + noise

    def nearer_than(self, other: Trial, noise: float) -> bool:
        """Whether the result is as near to run A's as in another trial in nearly every coordinate."""
        if self.gaps.shape != other.gaps.shape:
            return False
        nearer = self.gaps <= other.gaps + noise
        return self.closed or int(nearer.sum()) >= _NEARLY_EVERY * len(nearer)

    def same(self, other: Trial, noise: float) -> bool:
        """Whether the result is as far from run A's in every coordinate."""
        if min(self.moves, other.moves) < 0 or self.gaps.shape != other.gaps.shape:
            return False
        return not len(self.gaps) or float(np.abs(self.gaps - other.gaps).max()) <= noise


_FAILED = Trial(float("inf"), np.zeros(0), False, -1.0)


def values(parts: Iterable[Part]) -> Values:
    """What puts run B right at some parts."""
    values: Values = {}
    for part in parts:
        for meeting in part.passes:
            values.setdefault(meeting.b.place, []).append((meeting.a.value, meeting.pairs))
    return values


def one_by_one(parts: Iterable[Part]) -> list[list[Part]]:
    """Parts in the order of execution, one by one; one op in very many layers together, where the first is."""
    by_site: dict[object, list[Part]] = {}
    for part in in_order(parts):
        by_site.setdefault(part.site, []).append(part)
    steps = [[part] for part in in_order(parts)]
    return [
        by_site[step[0].site] if are_many_layers(by_site[step[0].site]) else step
        for step in steps
        if step[0] is by_site[step[0].site][0] or not are_many_layers(by_site[step[0].site])
    ]


def are_many_layers(parts: Sequence[Part]) -> bool:
    """Whether they are one op in more layers than can be tried one by one."""
    return len(parts) > MAX_LAYERS and len({part.site for part in parts}) == 1


def _gaps(compared: ResultComparison) -> NDArray[np.float64]:
    """The gap of the results at each of their coordinates; where none has numbers, whether they differ there."""
    gaps = [result.gap.largest for result in compared.floating]
    gaps = gaps or [(result.gap.largest > 0).astype(np.float64) for result in compared.gaps]
    return np.nan_to_num(np.concatenate([np.zeros(0), *gaps]), nan=_HUGE, posinf=_HUGE)


def percent(share: float) -> str:
    """A share in whole percent, or with two digits where that is less than one; empty for none.

    >>> percent(0.994), percent(0.0042), percent(1e-6)
    ('99', '0.42', '')
    """
    if share < 1e-4:
        return ""
    return f"{100 * share:.0f}" if share >= 0.01 else f"{100 * share:.2g}"


def in_order(parts: Iterable[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: part.root.event_a)


class Trials:
    """Runs of B with values of A put in place at some ops; each is made once.

    Attributes:
        before: run B as it is.
        noise: gap up to which two results are the same.
    """

    def __init__(self, session: Session, exact: Precision) -> None:
        self.session, self.exact = session, exact
        self.made: dict[frozenset[Part], Trial] = {}
        compared = exact.compared
        self.before = Trial(compared.distance, _gaps(compared), False, 0.0)
        times = exact.beyond_noise(compared)
        self.noise = compared.distance * max(_SAME, 1 / times) if np.isfinite(times) and times else 0.0

    @property
    def spent(self) -> bool:
        """Whether no more are made."""
        return len(self.made) >= MAX_TRIALS

    def note(self, parts: Sequence[Part], patched: Results) -> None:
        """Take in a run that was made otherwise."""
        self.made.setdefault(frozenset(parts), self.look(patched))

    def of(self, parts: Sequence[Part]) -> Trial:
        """What was found with some parts put right, or that it can't be done."""
        if not parts:
            return self.before
        if any(part.root.absent for part in parts):
            return _FAILED  # other tokens can't be put in place
        key = frozenset(parts)
        if key not in self.made:
            if self.spent:
                return _FAILED
            self.made[key] = self._try(values(parts))
        return self.made[key]

    def _try(self, values: Values) -> Trial:
        try:
            patched = self.exact.runs.patched(values)
        except Exception as error:  # noqa: BLE001 - a value put in place may steer the model's code anywhere
            reraise_out_of_memory(error)
            return _FAILED
        return _FAILED if patched is None else self.look(patched)

    def look(self, patched: Results) -> Trial:
        after = compare_results(self.session, self.exact.a, patched)
        if self.exact.beyond_noise(after) <= 1:
            return Trial(after.distance, _gaps(after), True, float("inf"))
        moved = compare_results(self.session, self.exact.b, patched, own="b")
        return Trial(after.distance, _gaps(after), False, self.exact.beyond_noise(moved))

    def closes(self, trial: Trial) -> float:
        """The share of the gap that a trial closes; NaN where the gap is infinite, which has no shares."""
        before = self.before.gap
        if not np.isfinite(before):
            return float("nan")
        if trial.closed:
            return 1.0
        return max(0.0, 1 - trial.gap / before) if np.isfinite(trial.gap) else 0.0

    def outcome(self, trial: Trial) -> str:
        """A slug: whether a trial closes most of the gap, or moves the result at all.

        An infinite gap closes where the results are the same, NaN and infinities and all.
        """
        closes = self.closes(trial)
        if trial.closed or closes > _CLOSES_MOST:
            return "closes"
        return "moves" if trial.moves > 1 else "nothing"

    def told(self, trial: Trial) -> str:
        """What becomes of the gap in a trial, in words that go on after a comma."""
        before, closes = self.before.gap, self.closes(trial)
        if not np.isfinite(before):
            if trial.closed:
                return "the NaN and infinities are the same in both runs"
            if np.isfinite(trial.gap):
                return (
                    f"the NaN and infinities are the same in both runs and a gap of {trial.gap:.2g} is left"
                )
            return "some of the NaN remain"
        if percent(closes):
            return f"{percent(closes)} % of the gap of {before:.2g} closes"
        return "the result moves and is no nearer" if trial.moves > 1 else "the result stays as it was"

    def nearer(self, trial: Trial) -> float:
        """The share by which the result comes nearer to run A's, over all coordinates; negative if it does not."""
        before = float(self.before.gaps.sum())
        if trial.moves < 0 or trial.gaps.shape != self.before.gaps.shape or not before:
            return -1.0
        return 1 - float(trial.gaps.sum()) / before
