"""The catalogue of known causes: each is the answer of an experiment at the origin.

What ops are called, and what form a run has, chooses which experiment is made; the answer is the
experiment's. Where none fits, nothing is said but whether the two runs compute different functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from forkpoint.mechanisms.case import Case
from forkpoint.mechanisms.couplings import expert_capacity, int8_outliers, leak, scale, statistics_or_leak
from forkpoint.mechanisms.errors import (
    attention_mask,
    cache_state,
    length_dependent_rope,
    module_state,
    of_length,
    packing,
    pooling,
    position_ids,
)
from forkpoint.mechanisms.mechanism import (
    LOSS_NORMALISATION,
    NO_KNOWN_CAUSE,
    ONE_MODEL,
    ROUNDING_ADVICE,
    TWO_FUNCTIONS,
    UNTOLD,
    Mechanism,
)

_TESTS: tuple[Callable[[Case], Mechanism | None], ...] = (
    packing,
    module_state,
    attention_mask,
    length_dependent_rope,
    position_ids,
    int8_outliers,
    scale,
    pooling,
    expert_capacity,
    statistics_or_leak,
    cache_state,
    of_length,
    leak,
)
"""In the order in which they are asked: what takes no further run first."""

_MAX_ORIGINS = 8
"""How many origins after the first are asked for a cause of their own."""


def recognise(case: Case) -> Mechanism:
    """The known cause that explains a semantic difference; if none does, whether the runs compute one function."""
    mechanism = _everywhere(case, _first(case))
    if mechanism is None or mechanism.slug in (None, "padding_leak"):
        entered = case.entered
        better = None if entered is None else _everywhere(entered, _first(entered))
        if entered is not None and better is not None and better.slug is not None:
            case.evidence += entered.evidence
            return better
    if mechanism is not None:
        return mechanism
    if not case.swap.needed:
        return ONE_MODEL
    return {True: NO_KNOWN_CAUSE, False: TWO_FUNCTIONS, None: UNTOLD}[case.same_function]


def _everywhere(case: Case, mechanism: Mechanism | None) -> Mechanism | None:
    """A known cause that is called meant only if it, or another that is meant, explains every origin."""
    if mechanism is None or not mechanism.by_design or mechanism.whole or not case.each_origin:
        return mechanism
    among = case.each_origin[:_MAX_ORIGINS]
    rest = _unexplained(case, among)
    if not rest and len(among) == len(case.each_origin):
        return mechanism
    where = " and ".join(other.root.a.op.name for other in rest if other.root is not None)
    where = where or f"all of the other {len(case.each_origin)} origins"
    return replace(
        mechanism,
        by_design=None,
        summary=f"{mechanism.summary}; whether that explains {where}, where a difference enters as well, is not known",
        advice=f"That is one cause, and maybe not all: look at {where} first. {mechanism.advice}",
    )


def _unexplained(case: Case, among: Sequence[Case]) -> list[Case]:
    """Origins that were not shown to be meant, or to belong to one normalisation with the first.

    One of them is as good as all: after it no further experiments are made, and those first that keep the calls which are
    shown of an origin anyway.
    """
    rest = list(among)
    for other in sorted(among, key=lambda other: not other.attends):
        if not case.is_one_normalisation(other) and not _is_meant(other):
            break
        rest.remove(other)
    return rest


def _is_meant(case: Case) -> bool:
    """Whether experiments at an origin of its own show a coupling that is meant."""
    mechanism = _first(case)
    return mechanism is not None and mechanism.by_design is True


def _first(case: Case) -> Mechanism | None:
    """The first known cause that a test finds."""
    for test in _TESTS:
        mechanism = test(case)
        if mechanism is not None:
            unknown = (
                mechanism.by_design and case.same_function is None
            )  # maybe it is no coupling but another function
            return replace(mechanism, by_design=None) if unknown else mechanism
    return None


__all__ = [
    "LOSS_NORMALISATION",
    "ROUNDING_ADVICE",
    "TWO_FUNCTIONS",
    "Case",
    "Mechanism",
    "recognise",
]
