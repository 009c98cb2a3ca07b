"""Compares the backward passes of two runs: which gradient differs first, and is it rounding?"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace

from forkpoint.backward import parameters
from forkpoint.backward.exact import Exact, in_float64
from forkpoint.backward.first import GradientJoin, described_exactly
from forkpoint.backward.going_back import GoingBack
from forkpoint.backward.recording import GradientTrace, RunGradients
from forkpoint.errors import ForkpointError, reraise_out_of_memory
from forkpoint.explain.locate import Tokens
from forkpoint.explain.session import Session, Traced
from forkpoint.explain.untraced import Untraced
from forkpoint.result import Backward, Divergence, ParameterGradient, ProbeResult
from forkpoint.runs.layout import STREAMS
from forkpoint.runs.randomness import RandomState
from forkpoint.runs.returned import all_results
from forkpoint.runs.run import Run
from forkpoint.support.equality import same_results
from forkpoint.support.memory import Shelf
from forkpoint.support.restoring import undone

_FALLS = 1e-3
"""Share of the native gap to which the gap has to fall in float64, for rounding."""
_TINY = 1e-9
"""Relative gap in float64 that is rounding whatever the native one is."""


# ---------------------------------------------------------------------- as the user makes it


@dataclass(frozen=True, eq=False)
class Plain:
    """The backward pass of a run that nobody watched.

    Attributes:
        loss: of all calls together.
        gradients: of parameters.
        like_without: whether the run returned the same as without gradients, bit for bit.
    """

    loss: float
    gradients: parameters.HostGradients
    like_without: bool


def go_back(run: Run, untraced: Untraced, shelf: Shelf, name: str) -> Plain:
    """Make a run with its backward pass as its user would; the random generators are left as they are.

    Raises:
        InputError: it returns no loss, or one without a gradient.
    """
    with undone(RandomState.take().restore):
        untraced.random.restore()
        backward = GoingBack(run, name)
        outputs = run.execute(backward=backward)
    alike = same_results(untraced.results, all_results(outputs))
    return Plain(sum(backward.losses), parameters.keep(backward.gradients, shelf), alike)


# ---------------------------------------------------------------------- compared


def compare_backward(
    session: Session, plain: tuple[Plain, Plain], tokens: Tokens, *, probes: bool
) -> Backward:
    """Compare the gradients of both runs.

    Args:
        session: both runs, traced.
        plain: their backward passes, which nobody watched.
        tokens: texts of tokens.
        probes: whether to look for what differs in float64, too.
    """
    session.progress.begin("comparing gradients")
    summing = not calls_alike(session)
    weights = parameters.compare(session, plain[0].gradients, plain[1].gradients)
    backward = Backward(plain[0].loss, plain[1].loss, None, None, None, weights)
    try:
        backward = _with_ops(session, plain, backward, tokens, summing=summing)
    except ForkpointError:
        raise
    except Exception as error:  # noqa: BLE001 - the runs go well unwatched, whatever it is that can't be looked at
        reraise_out_of_memory(error)
        note = f"the gradients of ops' outputs could not be watched: {_worded(error)}"
        backward = replace(backward, notes=(note,))
    differs = backward.first is not None or any(one.status == "differs" for one in weights)
    if not probes or not differs:
        return backward
    session.progress.begin("gradients in float64")
    return _judged(session, backward, tokens, summing=summing)


def _with_ops(
    session: Session, plain: tuple[Plain, Plain], backward: Backward, tokens: Tokens, *, summing: bool
) -> Backward:
    """The same with the gradients of ops' outputs."""
    a, b = (
        _watched(session, traced, one, name, summing=summing)
        for traced, one, name in zip((session.a, session.b), plain, "AB", strict=True)
    )
    join = GradientJoin(session, a.recorded, b.recorded)
    first = join.first(tokens, summing=summing)
    return replace(
        backward, first=first, evidence=(*a.evidence, *b.evidence), ops=join.ops(), notes=(*a.notes, *b.notes)
    )


@dataclass(frozen=True, eq=False)
class _Watched:
    """The backward pass of a run, every gradient of an op's output digested."""

    recorded: RunGradients
    evidence: tuple[ProbeResult, ...]
    notes: tuple[str, ...]


def _watched(session: Session, traced: Traced, plain: Plain, name: str, *, summing: bool) -> _Watched:
    backward = GoingBack(traced.run, name)
    shelf = session.memory.shelf() if session.memory.limited else None
    watcher = GradientTrace(backward, traced.trace.table, shelf, summing=summing)
    with closing(watcher):
        traced.again(watcher=watcher, backward=backward)
        recorded = watcher.finish()
    recorded.trace.wrapping = traced.trace.wrapping
    evidence: tuple[ProbeResult, ...] = ()
    notes = () if plain.like_without else (f"with gradients on, run {name} returns other bits than without",)
    if not parameters.same(plain.gradients, backward.gradients):
        again = GoingBack(traced.run, name)
        traced.unwatched(again)
        if parameters.same(plain.gradients, again.gradients):
            notes += (f"watching the backward pass of run {name} changes its gradients",)
        else:
            text = f"the gradients of run {name} do not repeat themselves bit for bit, from the same random state"
            evidence = (ProbeResult("repeat", "differs", None, text),)
    return _Watched(recorded, evidence, notes)


def calls_alike(session: Session) -> bool:
    """Whether the runs have the same tokens in each call, padding aside: what adds up over them then means the same."""
    tables = session.a.trace.table, session.b.trace.table
    calls = [len(table.layout.calls) for table in tables]
    if calls[0] != calls[1]:
        return False
    for call in range(calls[0]):
        for stream in STREAMS:
            held: list[set[int]] = []
            for table, numbers in zip(tables, (session.shared.a, session.shared.b), strict=True):
                slots = table.slots(call, stream)
                own = () if slots is None else slots[~table.are_padding(slots)]
                held.append({int(numbers[item]) for item in own})
            if held[0] != held[1] or -1 in held[0]:
                return False
    return True


# ---------------------------------------------------------------------- in float64


def _judged(session: Session, backward: Backward, tokens: Tokens, *, summing: bool) -> Backward:
    """The same with what float64 says of it."""
    names = [one.name for one in backward.parameters if one.status != "not compared"]
    try:
        exact = in_float64(session, names, summing=summing)
    except Exception as error:  # noqa: BLE001 - whatever the model says of float64: then it is not known
        reraise_out_of_memory(error)
        text = f"the backward pass could not be made in float64: {_worded(error)}"
        return replace(
            backward, evidence=(*backward.evidence, ProbeResult("precision", "failed", None, text))
        )
    agrees = dict(zip(names, exact.parameters, strict=True))
    rest = tuple(replace(one, rounding=agrees.get(one.name)) for one in backward.parameters)
    rounding, probe = _rounding(backward.first, rest, exact)
    origin = None
    if exact.differing and not exact.refused:
        origin = described_exactly(session, exact.differing[0], exact, tokens)
    return replace(
        backward, origin=origin, rounding=rounding, parameters=rest, evidence=(*backward.evidence, probe)
    )


def _worded(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _rounding(
    first: Divergence | None, weights: tuple[ParameterGradient, ...], exact: Exact
) -> tuple[bool | None, ProbeResult]:
    """Whether the gradients agree up to noise, and the experiment in words."""
    apart = [one.name for one in weights if one.rounding is False]
    unknown = [one.name for one in weights if one.status == "differs" and one.rounding is None]
    n, among = len({m.event_a for m in exact.differing}), f"{exact.compared:,}"
    rest = f"; {len(exact.refused)} operations were not done in float64" if exact.refused else ""
    if n or apart:
        text = f"in float64 {n:,} of {among} gradients of ops' outputs and {len(apart):,} of parameters still differ, beyond float64's own rounding"
        return (None if exact.refused else False), ProbeResult(
            "precision", "remains", float(n or len(apart)), text + rest
        )
    text = f"in float64 no gradient differs beyond float64's own rounding: of {among} of ops' outputs, the farthest are {exact.relative:.2g} of their largest element apart"
    if not exact.complete:
        text += "; there were more than could be kept, and those of the first layers were not looked at"
    if unknown:
        text += f"; of {len(unknown)} parameters it could not be told"
    falls = first is None or exact.relative <= _TINY or _has_fallen(first, exact)
    if not falls:
        text += "; it is no nearer than the native dtype"
    met_too = first is None or (first.module, first.function) in exact.seen
    beyond = [one.max_abs for one in weights if one.status == "differs"] + ([first.max_abs] if first else [])
    finite = all(apart is None or math.isfinite(apart) for apart in beyond)
    if not finite:
        text += "; in the native dtype gradients are NaN or infinite in one run alone, which is no rounding"
    anything = exact.compared > 0 or any(one.rounding for one in weights)
    proved = exact.complete and falls and finite and met_too and anything and not unknown
    return (True if proved else None), ProbeResult("precision", "vanishes", exact.relative, text + rest)


def _has_fallen(first: Divergence, exact: Exact) -> bool:
    """Whether every gap is orders of magnitude below that of the first gradient that differs natively."""
    return bool(first.max_rel) and exact.relative <= _FALLS * first.max_rel
