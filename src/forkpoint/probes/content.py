"""The content probe: does a shared token notice what sits where the other run has nothing?

Other rows of numbers are put in place where an embedding looks them up, and other token ids where they go in: a model may
read ids besides. Where a model reads its layout from ids (which of them are pads) it may not be given others: ids of
padding that reach nothing but lookups and comparisons are such, and stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from forkpoint.capture.functions import ALWAYS_VIEWS, LOOKUPS
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.results import ResultComparison, compare_results
from forkpoint.explain.session import Results, Session, Traced
from forkpoint.probes.deciding import UnheldError
from forkpoint.probes.decisions import other_content
from forkpoint.probes.held import HeldRuns
from forkpoint.probes.precision import Precision
from forkpoint.probes.watchers import OtherContent, Store
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.runs.layout import DECODER, MAIN, token_tensor

_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "isin"})
_MOVES = ALWAYS_VIEWS | {
    "to", "type", "type_as", "long", "int", "clone", "contiguous", "reshape", "flatten", "getitem", "cat", "stack", "repeat",
    "repeat_interleave", "index_select", "output", "pad", "roll", "flip", "masked_fill", "new_zeros", "zeros_like", "ones_like",
    "full_like", "empty_like", "new_ones", "new_full", "new_empty", "rand_like", "randn_like", "new_tensor",
}  # fmt: skip
"""Functions that leave ids what they are, or read no more of them than their shape."""


@dataclass(frozen=True)
class ContentProbe:
    """Whether the result depends on the content of padding, batch mates or later tokens.

    Attributes:
        leaks: it does, in exact arithmetic too.
        asked: there was something to replace.
        run: `a` or `b`, the run whose other content was noticed.
        ids: the ids of tokens are what was noticed, and no row that was looked up for them.
        padding: ids of padding among them.
    """

    leaks: bool
    asked: bool
    run: str
    result: ProbeResult
    ids: bool = False
    padding: bool = False


def content(session: Session, exact: Precision, compared: ResultComparison) -> ContentProbe:
    """Replace what the other run lacks, and look for one changed bit at a shared coordinate.

    A changed bit alone is not a leak where content steers the size of a matrix product (routing to
    experts): it must remain in float64.
    """
    if isinstance(exact.runs, HeldRuns) or not any(map(id_names, (session.a, session.b))):
        return _rows(session, exact, compared)
    # where the runs differ in exact arithmetic by what their rows hold, nobody has to ask of ids
    rows = None if exact.vanishes or not _is_one_model(session) else _rows(session, exact, compared)
    if rows is not None and rows.leaks:
        return rows
    by_ids = _with_ids(session, exact, compared)
    if by_ids is not None and not by_ids.leaks:
        return by_ids
    rows = rows or _rows(session, exact, compared)
    if rows.leaks or by_ids is None:
        return rows
    mates = _with_ids(session, exact, compared, padding=False)
    if mates is not None and mates.leaks:
        return mates
    if not reads_ids(session.a if by_ids.run == "a" else session.b):
        return rows
    return by_ids


def _is_one_model(session: Session) -> bool:
    """Whether both runs are of one model, so that they differ by what they are given and by nothing else."""
    a, b = session.a.run, session.b.run
    return a.model is b.model and a.call is b.call


def _with_ids(
    session: Session, exact: Precision, compared: ResultComparison, *, padding: bool = True
) -> ContentProbe | None:
    """The same with other token ids as well; None where the model does not run with them."""
    try:
        probe = _rows(session, exact, compared, ids=True, padding=padding)
    except Exception as error:  # noqa: BLE001 - a model may count on what it was given
        reraise_out_of_memory(error)
        return None
    text = probe.result.text.replace("other content", "other token ids", 1)
    told = replace(probe, ids=True, padding=padding, result=replace(probe.result, text=text))
    return told if probe.leaks else probe


def id_names(traced: Traced) -> frozenset[str]:
    """Names of a run's inputs that hold token ids."""
    tensors = (token_tensor(call, stream) for call in traced.run.calls for stream in (MAIN, DECODER))
    return frozenset(
        name for name, value in filter(None, tensors) if not value.is_floating_point() and value.dim() > 1
    )


def reads_ids(traced: Traced) -> bool:
    """Whether token ids reach anything but lookups of rows and comparisons, which a layout is read by."""
    store, names = Store(0), {f"input:{name}" for name in id_names(traced)}
    traced.again(watcher=store)
    queue = [event for event, (op, _) in store.ops.items() if not op.module and op.function in names]
    made_from, seen = store.made_from, set(queue)
    while queue:
        for event in made_from.get(queue.pop(), ()):
            name = store.ops[event][0].function
            if event in seen or name in LOOKUPS or name in _COMPARISONS:
                continue
            if not (name in _MOVES or name.startswith("input:")):
                return True
            seen.add(event)
            queue.append(event)
    return False


def _rows(
    session: Session, exact: Precision, compared: ResultComparison, *, ids: bool = False, padding: bool = True
) -> ContentProbe:
    """Replace the rows that were looked up; token ids as well, if they are asked for."""
    changed = asked = False
    unheld = ""
    shared = session.shared
    for name, traced, keep in (("b", session.b, shared.may_enter_b), ("a", session.a, shared.may_enter_a)):
        if keep[traced.trace.table.columns].all():
            continue
        names = id_names(traced) if ids else frozenset[str]()
        watcher = OtherContent(keep, names=names, padding=padding)
        if exact.vanishes:
            results = traced.again(watcher=watcher)
            if not watcher.replaced + watcher.ids:
                continue
            asked = True
            if not _against(session, compared, name, traced.results, results).differs:
                continue
        changed = changed or exact.vanishes  # else nobody looked at the run's own precision
        watcher = OtherContent(keep, names=names, padding=padding)
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
        if not watcher.replaced + watcher.ids:
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
    comparison = compare_results(session, before, after, own=run)
    return replace(comparison, gaps=tuple(gap for gap in comparison.gaps if gap.result in both))
