"""The content probe: does a shared token notice what sits where the other run has nothing?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from forkpoint.explain.results import ResultComparison, compare_results
from forkpoint.explain.session import Results, Session
from forkpoint.probes.deciding import UnheldError
from forkpoint.probes.decisions import other_content
from forkpoint.probes.held import HeldRuns
from forkpoint.probes.precision import Precision
from forkpoint.probes.watchers import OtherContent
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult


@dataclass(frozen=True)
class ContentProbe:
    """Whether the result depends on the content of padding, batch mates or later tokens.

    Attributes:
        leaks: it does, in exact arithmetic too.
        asked: there was something to replace.
        run: `a` or `b`, the run whose other content was noticed.
    """

    leaks: bool
    asked: bool
    run: str
    result: ProbeResult


def content(session: Session, exact: Precision, compared: ResultComparison) -> ContentProbe:
    """Replace what the other run lacks, and look for one changed bit at a shared coordinate.

    A changed bit alone is not a leak where content steers the size of a matrix product (routing to
    experts): it must remain in float64.
    """
    changed = asked = False
    unheld = ""
    for name, traced, numbers in (("b", session.b, session.shared.b), ("a", session.a, session.shared.a)):
        keep = np.asarray(numbers >= 0)
        if keep[traced.trace.table.columns].all():
            continue
        watcher = OtherContent(keep)
        if exact.vanishes:
            results = traced.again(watcher=watcher)
            if not watcher.replaced:
                continue
            asked = True
            if not _against(session, compared, name, traced.results, results).differs:
                continue
        changed = changed or exact.vanishes  # else nobody looked at the run's own precision
        watcher = OtherContent(keep)
        if isinstance(exact.runs, HeldRuns):
            try:
                held = other_content(session, name, watcher)
            except UnheldError as error:
                held, unheld, asked = None, str(error), True
            asked |= watcher.replaced > 0
            if held is not None and held.excess > 1:
                return _leak(name, held.compared, "decisions held in float64 but for those that it moves")
            continue
        moved = traced.again(watcher=watcher, promotion=Promotion())
        if not watcher.replaced:
            continue
        asked = True
        in_float64 = _against(session, compared, name, exact.b if name == "b" else exact.a, moved)
        if exact.beyond_noise(in_float64) > 1:
            return _leak(name, in_float64, "in float64 too")
    if not asked:
        text = "both runs hold the same tokens: nothing to replace"
        return ContentProbe(False, False, "", ProbeResult("content", "nothing", None, text))
    if unheld:
        text = f"whether other content changes more than decisions can't be told, as they could not be held: {unheld}"
        return ContentProbe(False, True, "", ProbeResult("content", "unheld", None, text))
    if changed:
        text = "other content in the padding or the batch changes bits, but not in float64"
        return ContentProbe(False, True, "", ProbeResult("content", "rounding", None, text))
    if not exact.vanishes:
        text = "other content in the padding or the batch changes no shared token in float64"
        return ContentProbe(False, True, "", ProbeResult("content", "unmoved", 0.0, text))
    text = "other content in the padding or the batch changes not one bit of a shared token"
    return ContentProbe(False, True, "", ProbeResult("content", "untouched", 0.0, text))


def _leak(run: str, moved: ResultComparison, how: str) -> ContentProbe:
    what = f"the result of run {run.upper()} by {moved.max_abs:.2g}"
    if not moved.max_abs:
        what = f"{moved.discrete_differing} of {moved.discrete_compared} integer results of run {run.upper()}"
    text = f"other content where the other run has none changes {what}, {how}"
    return ContentProbe(True, True, run, ProbeResult("content", "changes", moved.distance, text))


def _against(
    session: Session, compared: ResultComparison, run: str, before: Results, after: Results
) -> ResultComparison:
    """Compare two results of one run with each other, at the coordinates that both runs have.

    A result that the two runs can't be compared in (a vector for each row, its rows unknown) tells nothing of
    a shared token: a batch mate's own vector may change.
    """
    both = {gap.result for gap in compared.gaps}
    found = compare_results(session, before, after, own=run)
    return replace(found, gaps=tuple(gap for gap in found.gaps if gap.result in both))
