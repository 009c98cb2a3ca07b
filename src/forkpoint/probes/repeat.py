"""The repeat probe: is the same run, made again, the same run bit for bit?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from forkpoint.capture.recorder import CopiedCall
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.locate import Located, locate
from forkpoint.explain.session import Session, Traced, plain, trace_run
from forkpoint.match import Join, Shared
from forkpoint.probes.replay import call_alone
from forkpoint.result import ProbeResult
from forkpoint.runs.oddities import odd_of
from forkpoint.runs.pairing import Pairing
from forkpoint.runs.randomness import RandomState
from forkpoint.runs.returned import all_results, results_of
from forkpoint.support.equality import same_results

_TIMES = 8
"""How often an op is repeated alone: the threads of a kernel may come by in one order several times."""


@dataclass(frozen=True)
class Repeat:
    """Whether each run repeats itself.

    Attributes:
        steady: both do.
        mechanism: for a run that does not, `random_state` if it repeats from the same random state, `atomics` if the
            first op that differs does so alone, on equal inputs; None where nothing is known.
    """

    steady: bool
    mechanism: str | None
    result: ProbeResult


def repeat(session: Session) -> Repeat:
    """Make each run again, without putting the random state back."""
    for name, traced in (("A", session.a), ("B", session.b)):
        if not traced.repeats:
            op = _unsteady_op(session, traced)
            text = f"run {name}, made again from the same random state, gives other bits"
            text += (
                f": {op} alone does so on equal inputs" if op else "; what changes between them was not found"
            )
            return Repeat(False, "atomics" if op else None, ProbeResult("repeat", "differs", None, text))
        if traced.draws and not _same_again(traced):
            text = f"run {name}, made again, gives other bits; from the same random state it repeats itself"
            return Repeat(False, "random_state", ProbeResult("repeat", "differs", None, text))
    return Repeat(True, None, ProbeResult("repeat", "same", 0.0, "each run, made again, gives the same bits"))


def _same_again(traced: Traced) -> bool:
    after = RandomState.take()
    try:
        return same_results(plain(traced.results), all_results(traced.run.execute()))
    finally:
        after.restore()


def _unsteady_op(session: Session, traced: Traced) -> str:
    """The first op that differs as a run is made twice, if it differs alone, on equal inputs; empty where none does."""
    after = RandomState.take()
    try:
        located = _first_apart(session, traced)
        if located is None or any(given.status == "differs" for given in located.divergence.inputs):
            return ""
        return located.row.op.name if _changes_alone(located.a) else ""
    except Exception as error:  # noqa: BLE001 - a run that does not repeat itself may go another way each time
        reraise_out_of_memory(error)
        return ""
    finally:
        after.restore()


def _first_apart(session: Session, traced: Traced) -> Located | None:
    """A run, made twice more from the same random state, against itself: the first op that differs."""
    again: list[Traced] = []
    for _ in range(2):
        traced.random.restore()
        again.append(trace_run(traced.run, functions=traced.functions, memory=session.memory))
    a, b = again
    itself = Pairing(tuple((sample, sample) for sample in traced.run.layout.samples), (), ())
    shared = Shared(a.trace.table, b.trace.table, itself)
    join = Join(a.trace, b.trace, shared)
    for each in again:
        each.trace.close()
    return locate(Session(a, b, shared, join, session.memory), lambda _, __: None)


def _changes_alone(call: CopiedCall) -> bool:
    """Whether a call gives other bits from time to time, on the same inputs and from the same random state."""
    if call.func is None:
        return False
    before = RandomState.take()
    given = [*call.args, *call.kwargs.values()]
    generators = [odd for value in given if isinstance(value, torch.Generator) and (odd := odd_of(value))]
    first = [results_of(call_alone(call))]
    for _ in range(_TIMES - 1):
        before.restore()
        for generator in generators:
            generator.restore()
        if not same_results(first, [results_of(call_alone(call))]):
            return True
    return False
