"""The repeat probe: is the same run, made again, the same run bit for bit?"""

from __future__ import annotations

from dataclasses import dataclass

from forkpoint.explain.session import Session, Traced, plain
from forkpoint.result import ProbeResult
from forkpoint.runs.returned import all_results
from forkpoint.runs.run import RandomState
from forkpoint.support.equality import same_results


@dataclass(frozen=True)
class Repeat:
    """Whether each run repeats itself.

    Attributes:
        steady: both do.
        mechanism: for a run that does not, `random_state` if it repeats from the same random state, else `atomics`.
    """

    steady: bool
    mechanism: str | None
    result: ProbeResult


def repeat(session: Session) -> Repeat:
    """Make each run again, without putting the random state back."""
    for name, traced in (("A", session.a), ("B", session.b)):
        if not traced.repeats:
            text = f"run {name}, made again from the same random state, gives other bits"
            return Repeat(False, "atomics", ProbeResult("repeat", "differs", None, text))
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
