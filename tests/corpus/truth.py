"""Whether a case is what it claims to be, by plain forward passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .case import BITS, DIFFERS, NAN, SAME, UNCHECKED, UNSTEADY, Case
from .exact import gap, picked

NOISE = 2e-11
"""Relative gap that float64 may leave in these models (2e-16 to 1e-13 seen), far from any real one (1e-5)."""


@dataclass(frozen=True)
class Truth:
    """What the plain passes showed; gaps are relative to the largest value, None where not measured."""

    native: float | None
    exact: float | None


def prove(case: Case) -> Truth:
    """Measure a case and check that it is what it claims.

    Raises:
        AssertionError: it is not, as when transformers changed under it.
    """
    pair = case.pair()
    native = exact = None
    if case.check is not None:
        case.check(case.pair())
    with pair.patched():
        if case.truth in (SAME, DIFFERS, BITS, NAN):
            native = gap(picked(pair.a), picked(pair.b))
        if case.truth in (SAME, DIFFERS):
            exact = gap(picked(pair.a, exact=True), picked(pair.b, exact=True))
        if case.truth == SAME:
            assert exact is not None
            assert exact < NOISE, f"a gap of {exact:.2g} in float64"
        elif case.truth == DIFFERS:
            assert exact is not None
            assert exact > case.floor, f"only {exact:.2g} in float64, {case.floor:.2g} meant"
        elif case.truth == BITS:
            assert native == 0, f"a gap of {native:.2g}"
        elif case.truth == NAN:
            a, b = picked(pair.a), picked(pair.b)
            assert bool(a.isnan().any() ^ b.isnan().any()), "NaN in one run, not in the other"
        elif case.truth == UNSTEADY:
            first, again = picked(pair.a, seed=None), picked(pair.a, seed=None)
            assert not torch.equal(first, again), "the run repeats bit for bit"
        else:
            assert case.truth == UNCHECKED
    return Truth(native, exact)


def same_bits(case: Case) -> bool | None:
    """Whether the picked values of both runs are equal bit for bit; None where that decides nothing."""
    if case.truth not in (SAME, BITS):
        return None
    pair = case.pair()
    with pair.patched():
        return gap(picked(pair.a), picked(pair.b)) == 0
