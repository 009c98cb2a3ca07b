"""What the terms of a loss are divided by: read off where the loss is their sum, else shown by moving the terms.

The same change of the same terms moves two losses alike if these differ in something that is added to the sum, as a
padding's terms are. Where the divisors differ, it moves them by other amounts, whichever terms are changed: the ratio
is that of the divisors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forkpoint.capture.labels import Label, spread
from forkpoint.capture.recorder import Recorder, Watcher
from forkpoint.explain.session import Results, Session, Traced
from forkpoint.probes.watchers import Key, Place, Snapshot
from forkpoint.promotion import Promotion
from forkpoint.support.arrays import tensor_of

MAX_CALLS = 4
"""Micro-batches whose divisors are looked at."""
_BY = 0.1
"""Share by which a term is moved at most."""
_EQUAL = 1e-7
"""Relative difference up to which two divisors, or what a loss moves by, are the same."""

Changes = NDArray[np.float64]
"""[draws, calls], what the loss of each call moves by."""


@dataclass(frozen=True)
class Loss:
    """One run's loss in float64 and what it was made from.

    Attributes:
        numbers: what each call returned.
        terms: floating-point values of single tokens that enter it.
        marks: integers and bools of single tokens that enter it: labels, masks.
    """

    numbers: tuple[float, ...]
    terms: tuple[Snapshot, ...]
    marks: tuple[Snapshot, ...]


def numbers_of(results: Results, name: str) -> dict[int, float]:
    """The one number that each call returned under a name."""
    return {i: float(call[name][0]) for i, call in enumerate(results) if name in call}


def counts(loss: Loss) -> list[int] | None:
    """For each call the count by which the sum of its terms was divided: of all, of tokens', of those that are not 0.

    None where the number is no sum of one value's elements over a count.
    """
    divisors: list[int] = []
    for call, number in enumerate(loss.numbers):
        terms = [term for term in loss.terms if term.event.call == call]
        if len(terms) != 1 or not number:
            return None
        value = terms[0].value.double()
        marks = [int(term.value.sum()) for term in loss.marks if term.event.call == call]
        candidates = [value.numel(), *value.shape[:1], int(torch.count_nonzero(value)), *marks, 1]
        divisor = float(value.sum()) / number
        count = next((n for n in candidates if n and abs(divisor - n) <= 1e-6 * abs(n)), None)
        if count is None:
            return None
        divisors.append(count)
    return divisors


def are_others(a: Iterable[float], b: Iterable[float], over_calls: str) -> bool:
    """Whether what the terms are divided by is not the same in both runs.

    Args:
        a, b: for each call of a run what its terms are divided by.
        over_calls: `mean` or `sum`, as the numbers of a run's calls are taken together; empty where calls meet one to one.
    """
    one, other = list(a), list(b)
    if not over_calls:
        return not np.allclose(one, other, rtol=_EQUAL, atol=0)
    times = (len(one), len(other)) if over_calls == "mean" else (1, 1)
    effective = [n * times[0] for n in one] + [n * times[1] for n in other]
    return not np.allclose(effective, effective[0], rtol=_EQUAL, atol=0)


# ---------------------------------------------------------------------- by moving the terms


def divide_otherwise(session: Session, name: str, a: Loss, b: Loss, over_calls: str) -> bool:
    """Whether the same changes of the same terms move two losses by amounts whose ratio is another than 1, and always the same.

    Where a run has more calls, each of them has a ratio of its own to the call of the other run that holds its tokens.

    Args:
        name: of the result.
        a, b: the losses.
        over_calls: as `are_others` takes it.
    """
    places = [_places(traced, loss) for traced, loss in ((session.a, a), (session.b, b))]
    calls = len(a.numbers), len(b.numbers)
    if places[0].keys() != places[1].keys() or not calls[0] or not calls[1]:
        return False
    fine = "a" if calls[0] > calls[1] else "b"
    draws = min(max(calls), MAX_CALLS) + 1
    usual = (
        min(calls) / max(calls) if over_calls == "mean" else 1.0
    )  # what the mean over a run's calls does to a ratio
    otherwise = False
    for key in places[0]:
        moved_a, moved_b = (
            np.asarray([_moves(session, side, fine, name, loss, at[key], draw) for draw in range(draws)])
            for side, loss, at in (("a", a, places[0]), ("b", b, places[1]))
        )
        ratios = _ratios(*((moved_b, moved_a) if fine == "a" else (moved_a, moved_b)))
        if ratios is None:
            return False
        otherwise = otherwise or not np.allclose(ratios, usual, rtol=_EQUAL, atol=0)
    return otherwise


def _places(traced: Traced, loss: Loss) -> dict[object, set[Place]]:
    """Where the terms pass, by the op that makes them."""
    places: dict[object, set[Place]] = {}
    for term in loss.terms:
        places.setdefault(traced.trace.key(term.op), set()).add(term.place)
    return places


def _moves(
    session: Session, side: str, fine: str, name: str, loss: Loss, places: set[Place], draw: int
) -> list[float]:
    """What the loss of each call moves by where a run's terms are other ones, of the first calls of the run with more."""
    shared = session.shared
    traced, numbers = (session.a, shared.a) if side == "a" else (session.b, shared.b)
    own, home = (shared.a, shared.home_a) if fine == "a" else (shared.b, shared.home_b)
    asked = np.zeros(len(shared.names), dtype=bool)
    asked[own[(own >= 0) & (home < MAX_CALLS)]] = True
    by = np.random.default_rng(draw).uniform(-_BY, _BY, len(asked)) * asked * _followed(session)
    factors = 1 + np.where(numbers >= 0, by[numbers], 0.0)
    return _moved_by(traced, name, loss, places, factors)


def _moved_by(
    traced: Traced, name: str, loss: Loss, places: set[Place], factors: NDArray[np.float64]
) -> list[float]:
    results = traced.again(promotion=Promotion(), watcher=_Scaled(places, factors))
    after = numbers_of(results, name)
    return [after[call] - number for call, number in enumerate(loss.numbers)]


def own_terms_enter(traced: Traced, numbers: NDArray[np.int64], name: str, loss: Loss) -> bool:
    """Whether a loss moves with terms of what its run alone has, such as padding's: the shared ones are not all of it.

    Args:
        numbers: the shared number of each of the run's ids, -1 for those that it alone has.
        name: of the result.
    """
    by = np.random.default_rng(0).uniform(_BY, 2 * _BY, len(numbers))
    table = traced.trace.table
    ids = np.arange(min(len(numbers), len(table.kinds)), dtype=np.int32)
    own = np.zeros(len(numbers), dtype=bool)
    own[ids] = (numbers[ids] < 0) & table.is_slot(ids)
    if not own.any():
        return False
    moved = _moved_by(traced, name, loss, {term.place for term in loss.terms}, 1 + by * own)
    return any(abs(by) > _EQUAL * abs(number) for by, number in zip(moved, loss.numbers, strict=True))


def _ratios(coarse: Changes, fine: Changes) -> Changes | None:
    """By how much more each call of the one run moves than the calls of the other that its tokens are in.

    None where no ratio explains all draws, or where a call did not move.
    """
    fine = fine[:, :MAX_CALLS]
    scale = np.abs(coarse).max()
    solved = np.linalg.lstsq(fine, coarse, rcond=None)[0]
    if not scale or np.abs(fine @ solved - coarse).max() > _EQUAL * scale:
        return None
    solved[np.abs(solved) <= _EQUAL * np.abs(solved).max()] = 0.0
    if (solved < 0).any() or ((solved > 0).sum(1) != 1).any():
        return None
    return solved.sum(1)


def _followed(session: Session) -> NDArray[np.bool_]:
    """For each shared number whether it is a token with another behind it: what the last one predicts may be padding."""
    places = [session.shared.coordinate(number) for number in range(len(session.shared.names))]
    last: dict[int | None, int] = {}
    for sample, position in places:
        last[sample] = max(last.get(sample, -1), -1 if position is None else position)
    return np.asarray([position is not None and position < last[sample] for sample, position in places])


@dataclass
class _Scaled(Watcher):
    """Multiplies values at chosen ops, each token's by a factor of its own.

    Attributes:
        places: the calls whose results are changed.
        factors: for each id.
    """

    places: set[Place]
    factors: NDArray[np.float64]

    def __post_init__(self) -> None:
        self._keys = {place[0] for place in self.places}

    def edits(self, key: Key) -> bool:
        return key in self._keys

    def edit(
        self, recorder: Recorder, key: Key, nth: int, output: int, value: Tensor, label: Label | None
    ) -> Tensor | None:
        if (key, nth, output, recorder.call) not in self.places or label is None or label.k is not None:
            return None
        by_id = np.append(self.factors, np.ones(max(len(recorder.table.kinds) + 2 - len(self.factors), 0)))
        factors = tensor_of(spread(by_id[label.q], tuple(value.shape)).copy())
        return value * factors.to(value.device, value.dtype)
