"""The decisions probe: is a gap rounding, where the model decides on rounded values?

Quantised activations, routing to experts and thresholds are *decisions* (`deciding`): one unit in the last place moves
one by a whole step. Then the gap does not fall in float64, where both runs decide anew, and float64's own noise is as
large as the gap: neither proves anything. So decisions are taken out of the question:

1. Run A is made in its own precision, and its decisions are noted.
2. Run B is made in its own precision, with each decision taken on run *A's values* wherever both runs have them, and on
   its own where A has nothing. What comes out otherwise than in A was moved by what A lacks, and by nothing else.
3. Both runs are made in float64 with these decisions held. Nothing is left to flip: the gap, and what float64's rounding
   makes, are those of smooth arithmetic. What the decisions would have been taken on is compared as well.

If the gap falls to noise, all that the runs differ by is rounding, and decisions that rounding moved. If it does not,
the runs differ in exact arithmetic, and the `origin` probe finds where, with the decisions held: at one that was moved,
or at an op.

What others may use:

- `decisions` gives a `Precision` whose `runs` hold the decisions; every probe that takes a `Precision` works with it.
- `other_content` asks, in one run's own layout, whether other content where the other run has nothing changes what both
  have, with decisions held but for those that the content moves.
- `coupling_at` asks the same of the value at an origin, and is evidence of a coupling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.results import ResultComparison, ResultGap, compare_results
from forkpoint.explain.session import Results, Session
from forkpoint.match import Shared
from forkpoint.match.align import gap, pair_elements
from forkpoint.probes.bench import Bench, benches
from forkpoint.probes.deciding import Decision, Forcing, Key, Noting, TooLargeError, UnheldError, may_decide
from forkpoint.probes.held import HeldRun, HeldRuns, Inputs64
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.moved import told
from forkpoint.probes.origin import Origin
from forkpoint.probes.precision import NOISE_RUNS, Precision, Rounding, excess, largest_changes
from forkpoint.probes.watchers import InTurn, OtherContent, Patch, Patched, Place, Snapshot, Store, Values
from forkpoint.result import ProbeResult

MAX_NOTED = 1 << 31
"""Bytes of decisions, and of what they were taken on, that are kept of each run."""
_TRIES = 3
"""How many other contents are tried at an origin."""
_AWAY = 8.0
"""How many times the gap between the runs may grow where one decides on the other's values."""
_UNCHANGED = 1e-9
"""Change of a value in float64, relative to its largest element, that is rounding."""


@dataclass
class Held:
    """Two runs with their decisions held.

    Attributes:
        runs: how they are made.
        a, b: what they returned.
        compared: that, compared.
        decided: what their decisions would have been taken on, compared.
        rounding: what float64's rounding does to both.
    """

    runs: HeldRuns
    a: Results
    b: Results
    compared: ResultComparison
    decided: tuple[ResultGap, ...]
    rounding: Rounding

    @property
    def beyond(self) -> dict[Key, float]:
        """By op, how far apart what it would have decided on is, where that is more than noise."""
        keys = {
            _name(link.other, link.index): decision.key
            for decision in self.runs.b.decisions
            for link in decision.links
        }
        largest: dict[Key, float] = {}
        for one in self.decided:
            if excess(replace(self.compared, gaps=(one,)), self.rounding) > 1:
                key = keys[one.result]
                largest[key] = max(largest.get(key, 0.0), one.gap.max_abs)
        return largest

    @property
    def excess(self) -> float:
        """The largest gap in multiples of what noise can be."""
        both = replace(self.compared, gaps=(*self.compared.gaps, *self.decided))
        return excess(both, self.rounding)


def decisions(
    session: Session, weights: tuple[Weight, ...] = ()
) -> tuple[Precision | None, ProbeResult | None]:
    """Both runs in float64 with the same decisions, and what that shows.

    Neither where the model makes none; evidence alone, with the reason, where they could not be held.
    """
    try:
        held = _hold(session, HeldRun(session.a), HeldRun(session.b), session.shared, None, weights)
    except UnheldError as error:
        text = f"decisions (quantised values, routing, thresholds) could not be held: {error}"
        return None, ProbeResult("decisions", "unheld", None, text)
    if held is None:
        return None, None
    with same_weights(weights):
        vanishes = held.excess <= 1
        noise = max(held.rounding.after(len(held.rounding.measurements) or NOISE_RUNS).values(), default=0.0)
    largest, relative = (
        held.compared.max_abs,
        max((g.gap.max_rel for g in held.compared.floating), default=0.0),
    )
    text = _text(session, held, vanishes, largest, noise)
    result = ProbeResult("decisions", "vanishes" if vanishes else "remains", largest, text)
    exact = Precision(
        held.a, held.b, held.compared, held.rounding, tuple(dict.fromkeys(held.runs.refused)), vanishes, largest,
        relative, result, held.runs,
    )  # fmt: skip
    return exact, result


def _hold(
    session: Session,
    a: HeldRun,
    b: HeldRun,
    shared: Shared,
    own: str | None,
    weights: tuple[Weight, ...] = (),
) -> Held | None:
    """Note the decisions of one run, have the other take its own on the same values, and make both with them held.

    None where there are none.

    Raises:
        UnheldError: they could not all be held, or taking them so leads farther away.
    """
    try:
        noted = _noted(session, a, b, shared)
        if noted is None:
            return None
        noting, forcing, forced = noted
        if own is None:
            _check_nearer(session, forced)
        with same_weights(weights):
            return _held(session, a, b, shared, own, noting, forcing)
    except UnheldError:
        raise
    except TooLargeError:
        raise UnheldError(f"they take more than {MAX_NOTED >> 30} GiB") from None
    except Exception as error:  # other values may steer the model's code anywhere
        reraise_out_of_memory(error)
        raise UnheldError(f"with them the model's code fails ({type(error).__name__})") from error


def _noted(
    session: Session, a: HeldRun, b: HeldRun, shared: Shared
) -> tuple[Noting, Forcing, Results] | None:
    """Both runs in their own precision, the second with its decisions taken on the first's values; what that returned."""
    if not may_decide(a.traced.trace):
        return None
    shelf = session.memory.shelf()
    noting = Noting(a.traced.trace, shelf, MAX_NOTED, a.other)
    a.traced.again(watcher=noting)
    if not noting.decisions:
        return None
    one_to_one = len(a.traced.run.calls) == len(b.traced.run.calls)
    forcing = Forcing(
        b.traced.trace, shelf, MAX_NOTED, b.other, others=tuple(noting.decisions), shared=shared, one_to_one=one_to_one
    )  # fmt: skip
    return noting, forcing, b.traced.again(watcher=forcing)


def _check_nearer(session: Session, forced: Results) -> None:
    """Raise `UnheldError` where run B is much farther from run A with A's values in its decisions than without.

    They were not A's, then.
    """
    before, after = compare_results(session), compare_results(session, None, forced)
    if after.max_abs > _AWAY * before.max_abs:
        raise UnheldError("taken on run A's values, they lead run B farther away")


def _held(
    session: Session, a: HeldRun, b: HeldRun, shared: Shared, own: str | None, noting: Noting, forcing: Forcing
) -> Held:  # fmt: skip
    """Both runs in float64 with what was noted.

    Raises:
        UnheldError: the runs decide more often there, or less often.
    """
    runs = HeldRuns(replace(a, decisions=noting.decisions), replace(b, decisions=forcing.decisions), shared)
    exact_a = runs.run("a")
    inputs_a, complete = runs.inputs, runs.complete
    exact_b = runs.run("b")
    if not complete or not runs.complete:
        raise UnheldError("in float64 the runs decide more often, or less often")
    compared = compare_results(session, exact_a, exact_b, own=own)
    decided = tuple(_decided(forcing.decisions, inputs_a, runs.inputs))

    def measure(seed: int) -> dict[str, float]:
        moved = largest_changes(exact_a, runs.noisy(seed))
        for decision in noting.decisions:
            for index, before in inputs_a.get(decision.place, {}).items():
                after = runs.inputs.get(decision.place, {}).get(index)
                if after is not None and after.shape == before.shape:
                    change = (after - before).abs().nan_to_num(0.0, 0.0, 0.0)
                    moved[_name(decision, index)] = float(change.max()) if change.numel() else 0.0
        return moved

    return Held(runs, exact_a, exact_b, compared, decided, Rounding(measure))


def other_content(session: Session, name: str, watcher: OtherContent) -> Held | None:
    """One run against the same with other content where the other run has nothing, decisions held but for those it moves.

    Args:
        name: `a` or `b`, the run.
        watcher: puts the other content in place.

    Returns:
        None where nothing was replaced, or nothing is decided.

    Raises:
        UnheldError: the decisions could not be held.
    """
    traced = session.a if name == "a" else session.b
    held = _hold(session, HeldRun(traced), HeldRun(traced, other=watcher), session.shared.within(name), name)
    return held if watcher.replaced else None


def coupling_at(session: Session, origin: Origin) -> ProbeResult | None:
    """Whether other content where the other run has nothing moves a shared token's value at the origin, by a decision.

    Asked in the layout of the run that has more, of the first floating-point op that shows the difference. Decisions are
    taken in the run's own precision, on the values that they were taken on before wherever both runs have them; all else
    is computed in float64, so that no other size of a product counts. Where both runs have it, what comes right before the
    origin stays as it was: what else couples them before does not come there.

    Returns:
        None where nothing moves, where there is nothing to replace, or the run decides nothing.
    """
    for bench in benches(session, origin):
        name, keep = bench.side, bench.may_enter
        if keep[bench.traced.trace.table.columns].all():
            continue
        met = origin.seen.b if name == "b" else origin.seen.a
        try:
            moved = _moved(bench, met, keep)
        except Exception as error:  # noqa: BLE001 - other values may steer the model's code anywhere
            reraise_out_of_memory(error)
            continue
        if moved:
            text = (
                f"other content where the other run has none moves {met.op.name} by {moved:.2g} at tokens that both runs "
                f"have, in run {name.upper()}'s own layout and with decisions taken in its own precision"
            )
            return ProbeResult("coupling", "coupled", moved, text)
    return None


def _moved(bench: Bench, met: Snapshot, keep: NDArray[np.bool_]) -> float:
    """How far other content moves the value of an op at coordinates that both runs have; 0 for rounding.

    Args:
        bench: a run at the origin.
        met: the value.
        keep: for each id whether both runs have it.

    Raises:
        TooLargeError: there are more decisions than there is room for.
    """
    traced, shared, shelf = bench.traced, bench.shared, bench.session.memory.shelf()
    snapshots = bench.store.snapshots
    comes_in = {snapshots[event].place for event in bench.before & bench.content if event in snapshots}
    keys = {met.op.key, *(snapshots[event].op.key for event in bench.before if event in snapshots)}

    def store() -> Store:
        return Store(MAX_NOTED, lambda op: op.key in keys, shelf)

    before = store()
    noting = Noting(traced.trace, shelf, MAX_NOTED, before)
    traced.again(watcher=noting)
    for seed in range(_TRIES if noting.decisions else 0):
        after, other = store(), OtherContent(keep, seed)
        forcing = Forcing(
            traced.trace,
            shelf,
            MAX_NOTED,
            Patched(other, after),
            others=tuple(noting.decisions),
            shared=shared,
        )
        traced.again(watcher=forcing)
        if not other.replaced:
            return 0.0
        if not _gap(before, after, met, shared)[0]:
            continue
        runs = HeldRuns(HeldRun(traced, noting.decisions), HeldRun(traced, forcing.decisions), shared)
        exact, changed = store(), store()
        runs.run("a", exact)
        stays = Patch(_where_shared(exact, comes_in, shared))
        runs.run("b", Patched(InTurn(OtherContent(keep, seed), stays), changed))
        largest, relative = _gap(exact, changed, met, shared)
        if relative > _UNCHANGED:
            return largest
    return 0.0


def _where_shared(store: Store, places: AbstractSet[Place], shared: Shared) -> Values:
    """What puts values of a run in place where both runs have them."""
    chosen = (snapshot for snapshot in store.snapshots.values() if snapshot.place in places)
    return {
        snapshot.place: [
            (
                snapshot.value,
                pair_elements(snapshot.value, snapshot.label, snapshot.value, snapshot.label, shared),
            )
        ]
        for snapshot in chosen
    }


def _gap(before: Store, after: Store, met: Snapshot, shared: Shared) -> tuple[float, float]:
    """The largest gap of an op in two passes of a run where both runs have it, and relative to the largest value."""
    largest = 0.0, 0.0
    for x in before.snapshots.values():
        for y in after.snapshots.values():
            if x.place == y.place == met.place:
                pairs = pair_elements(x.value, x.label, y.value, y.label, shared)
                apart = gap(x.value, y.value, pairs)
                largest = max(largest, (apart.max_abs, apart.max_rel))
    return largest


def _decided(forced: Sequence[Decision], a: Inputs64, b: Inputs64) -> Iterator[ResultGap]:
    """What the decisions of both runs would have been taken on in float64, compared."""
    for decision in forced:
        for link in decision.links:
            mine, theirs = (
                a.get(link.other.place, {}).get(link.index),
                b.get(decision.place, {}).get(link.index),
            )
            if mine is None or theirs is None:
                continue
            name = _name(link.other, link.index)
            count = len(link.pairs.distinct)
            yield ResultGap(name, mine, theirs, link.pairs, gap(mine, theirs, link.pairs), count)


def _name(decision: Decision, index: int) -> str:
    """What stands for an input of a decision among the names of results."""
    return f"{decision.place}#{index}"


def _text(session: Session, held: Held, vanishes: bool, largest: float, noise: float) -> str:
    keys, plain = {decision.key for decision in held.runs.a.decisions}, session.a.trace.plain
    rows = [
        row
        for row in session.join.rows
        if not row.floating and (plain(row.op.module), row.op.function, row.op.site.chain) in keys
    ]
    differing, compared = sum(r.differing for r in rows), sum(r.compared for r in rows)
    text = f"{differing:,} of {compared:,} decisions on tokens that both runs have differ"
    moved, each = told(session, held.runs.b.decisions, held.beyond)
    each = f"; {each}" if each else ""
    if vanishes:
        how = ", each by the rounding of what it was taken on" if differing else ""
        return f"{text}{how}; with the same decisions in both runs the float64 gap is {largest:.2g}{each}"
    return (
        f"{text}; taken on the same values in both runs, {moved or 'none'} still do{'es' * (moved <= 1)}, and with all of "
        "them held the float64 gap is "
        f"{largest:.2g}, where rounding makes {noise:.2g}{each}"
    )
