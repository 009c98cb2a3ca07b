"""The patch probe: where something other than rounding enters, proved by putting it right.

Both runs are made in float64 with every value kept. A *root* is a value that differs though nothing
that it was made from does: there a difference enters. Whether it matters is asked of the model: the
other run's value is put in place at that root, and the rest runs on. Roots are put right until the
result is run A's; then every one is left out that the result does not need (every `arange` over
columns that left padding shifts cancels later). What remains are the *origins*: together they close
the gap, and without any one of them it stays open.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from forkpoint.capture.trace import Op, Trace
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.drift import layer_paths
from forkpoint.explain.session import Session
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.meetings import Meeting, Meetings, first_seen, meet_values
from forkpoint.probes.origins import Account, Origin
from forkpoint.probes.precision import Precision
from forkpoint.probes.trials import (
    Part,
    Round,
    Trials,
    are_many_layers,
    in_order,
    one_by_one,
    site,
    values,
)
from forkpoint.probes.watchers import Place, Store, Values

MAX_STORED = 1 << 31
"""Bytes of values kept of each run at once; beyond it only the first layer that differs is looked into."""
MAX_ROUNDS = 6
"""Runs with values put right in which every value is kept, to find the roots behind them."""
MAX_IDLE_ROUNDS = 12
"""The same, where only numbers that belong to no token were put right, and the result stayed as it was."""
_CLOSES_SOME = 0.01
"""Share below which roots have closed nothing."""
_RELATIVE_NOISE = 1e3
"""How many times a result's relative noise a single value may differ, relative to its largest element."""


def origin(session: Session, exact: Precision, weights: tuple[Weight, ...] = ()) -> Origin | None:
    """Find the ops at which the runs begin to differ in exact arithmetic; None if none can be located."""
    with same_weights(weights):
        store_a, store_b = (
            Store(MAX_STORED, select, session.memory.shelf()) for select in _selections(session)
        )
        exact.runs.run("a", store_a)
        exact.runs.run("b", store_b)
        return _Search(session, exact, store_a, store_b).run()


def _threshold(exact: Precision) -> float:
    """What a value may differ by, relative to its largest element, and still be float64's rounding."""
    relative = 0.0
    for result in exact.compared.floating:
        scale = result.gap.max_abs / result.gap.max_rel if result.gap.max_rel else 0.0
        if scale:
            relative = max(relative, exact.measured.get(result.result, 0.0) / scale)
    return min(max(_RELATIVE_NOISE * relative, 1e-13), 1e-6)


def _selections(session: Session) -> tuple[Callable[[Op], bool], Callable[[Op], bool]]:
    """For each run: keep everything if there is room; else what lies outside the layers and the first that differs."""
    total = 0
    for event in session.a.trace.events:
        if event.status in ("digest", "view"):
            total += 8 * int(np.prod(event.shape, dtype=np.int64))
    if total <= MAX_STORED:
        return (lambda _: True), (lambda _: True)
    trace_a, trace_b = session.a.trace, session.b.trace
    paths = [trace_a.plain(path) for path in layer_paths(session.a.run.modules)]
    first = next(
        (r for r in sorted(session.join.rows, key=lambda r: r.order) if r.differing and r.floating), None
    )
    at = trace_a.plain(first.op.module) if first is not None else ""
    inside = next((p for p in paths if at.startswith(f"{p}.")), None)

    def select(op: Op, trace: Trace) -> bool:
        module = trace.plain(op.module)
        layer = next((p for p in paths if module == p or module.startswith(f"{p}.")), None)
        return layer is None or layer == inside or (op.is_boundary and module == layer)

    return (lambda op: select(op, trace_a)), (lambda op: select(op, trace_b))


# ---------------------------------------------------------------------- the search


@dataclass
class _Search:
    """Puts right root after root until the gap is closed, then leaves out what it doesn't need.

    Attributes:
        right: what is put right, in the order in which it was found.
        needed: what of it, from earlier rounds, was seen to matter.
        chosen: choices of other tokens, which can only be put right behind them.
        worse: what made the result no better, or could not be put in place.
        unpatched: the first value that could not be put in place.
        seen_events: events of A that were roots already.
    """

    session: Session
    exact: Precision
    store_a: Store
    store_b: Store
    right: list[Part] = field(default_factory=list[Part])
    needed: list[Part] = field(default_factory=list[Part])
    chosen: list[Part] = field(default_factory=list[Part])
    worse: list[Part] = field(default_factory=list[Part])
    unpatched: Part | None = None
    seen_events: set[int] = field(default_factory=set[int])

    def __post_init__(self) -> None:
        self._limits = _threshold(self.exact)
        self._met: Meetings | None = None
        self.trials = Trials(self.session, self.exact)
        self.account = Account(self.trials, self.store_a, self.chosen, self.worse)

    def run(self) -> Origin | None:
        current, rounds, idle = self._round(self.store_b, {}), 0, 0
        while rounds < MAX_ROUNDS and idle < MAX_IDLE_ROUNDS:
            parts = self._parts(current)
            before = self.trials.of(self.right)
            new = self._put_right(parts)
            if self.trials.of(self.right).closed:
                return self.account.of(self._minimal(new))
            if not (parts or self.chosen) or self.trials.spent:
                break
            if parts and not new and not any(part.of_tokens for part in parts):
                continue  # numbers of columns, all of them harmless: run B is as it was, and what they go into comes next
            after = self.trials.of(self.right)
            if any(part.of_tokens for part in parts) or not after.same(before, self.trials.noise):
                rounds += 1
            else:
                idle += 1
            has_alike = any(part.of_tokens for part in (*self.right, *parts))
            if not has_alike:
                self.needed += self._that_matter(new)
                if self._suffices(self.needed):
                    return self.account.of(self._minimal([]))
            current, alike = self._further(current, parts)
            if has_alike:
                self.needed += self._that_matter([*new, *alike])
            if self.trials.of(self.right).closed or self._suffices(self.needed):
                return self.account.of(self._minimal([]))
        return self._fallback()

    def _round(self, store: Store, right: Values) -> Round:
        self._met = meet_values(self.session, self.store_a, store, self._limits, self._met)
        return Round(store, self._met, right)

    def _parts(self, current: Round) -> list[Part]:
        """The ops of roots not met before, in the order of execution."""
        by_op: dict[object, list[Meeting]] = {}
        for root in current.meetings.roots(self.store_a, current.store, self.seen_events):
            by_op.setdefault(root.a.op.key, []).append(root)
        parts: list[Part] = []
        for passes in by_op.values():
            self.seen_events |= {root.event_a for root in passes}
            part = self._part(passes, current)
            if part is not None:
                (self.chosen if part.root.absent else parts).append(part)
        return in_order(parts)

    def _part(self, passes: list[Meeting], current: Round) -> Part | None:
        shown = ((root, first_seen(root, current.meetings.by_a, self.store_a)) for root in passes)
        return next((Part(passes, root, seen, current) for root, seen in shown if seen is not None), None)

    # ------------------------------------------------------------------ putting right

    def _put_right(self, parts: list[Part]) -> list[Part]:
        """Put right the roots of a round, those with numbers first: the others are many, and mostly harmless."""
        before = len(self.right)
        for numeric in (True, False):
            if not self.trials.of(self.right).closed:
                self._add([part for part in parts if part.numeric is numeric])
        return self.right[before:]

    def _add(self, more: list[Part]) -> None:
        """Put more right: all of it, or as much as there is without what makes the result worse.

        In a table that several samples share, a value put right for one of them can make a mess of the others.
        """
        if not more:
            return
        trial = self.trials.of([*self.right, *more])
        fits = trial.moves >= 0 and all(part.of_tokens for part in more)
        if fits or trial.no_worse(self.trials.of(self.right), self.trials.noise):
            self.right += more
        elif len(more) > 1:
            half = len(more) // 2
            self._add(more[:half])
            self._add(more[half:])
        else:
            self.worse += more
            if trial.moves < 0 and not more[0].root.a.op.is_boundary:
                self.unpatched = self.unpatched or more[0]

    def _further(self, current: Round, parts: list[Part]) -> tuple[Round, list[Part]]:
        """Run B again with everything right so far, and keep its values: behind them are further roots.

        Layers repeat themselves: the same op in other layers is put right along with a root. It is a root itself if
        what it makes there, of inputs that are right, still is not run A's value.
        """
        alike = self._alike(current, [*self.right, *parts])
        right = values([*self.right, *alike])
        apart: dict[Place, float] = {}
        store = Store(MAX_STORED, self.store_b.select, self.session.memory.shelf())
        try:
            patched = self.exact.runs.patched(right, store, apart)
        except Exception as error:  # noqa: BLE001 - as above
            reraise_out_of_memory(error)
            return current, []
        behind = self._round(store, right)
        wrong = behind.meetings.tainted(self.store_a, store)
        roots = [part for part in alike if self._is_root(part, apart, wrong, store)]
        self.seen_events |= {meeting.event_a for part in roots for meeting in part.passes}
        if len(roots) == len(alike) and patched is not None:
            self.trials.note([*self.right, *roots], patched)
        if roots and self.trials.of([*self.right, *roots]).moves < 0:
            roots = []
        self.right += roots
        return behind, roots

    def _alike(self, current: Round, roots: list[Part]) -> list[Part]:
        """The op of each root with numbers as other layers have it, where it differs."""
        sites = {part.site for part in roots if part.of_tokens}
        by_op: dict[object, list[Meeting]] = {}
        for meeting in current.meetings.every:
            alike = site(meeting.a.op) in sites and not meeting.a.op.is_boundary
            if alike and meeting.differs and meeting.event_a not in self.seen_events:
                by_op.setdefault(meeting.a.op.key, []).append(meeting)
        return [part for passes in by_op.values() if (part := self._part(passes, current)) is not None]

    def _is_root(
        self, part: Part, apart: dict[Place, float], wrong: tuple[set[int], set[int]], store: Store
    ) -> bool:
        for meeting in part.passes:
            made_of_a = self.store_a.sources.get(meeting.event_a, ())
            made_of_b = store.sources.get(meeting.event_b, ())
            if not wrong[0].isdisjoint(made_of_a) or not wrong[1].isdisjoint(made_of_b):
                return False
        return any(apart.get(m.b.place, 0.0) > m.noise for m in part.passes)

    # ------------------------------------------------------------------ what is needed

    def _that_matter(self, parts: list[Part]) -> list[Part]:
        """Those of a round that change the result, put right one after the other in the order of execution.

        Nothing behind them is right then: what is put right further on is run A's value whatever goes in there, and
        would hide them. Where the result is again what it was some steps before, what lies between cancels. Where the gap is
        closed, what comes later is not asked: it can only open it again.
        """
        behind = self._behind(parts)
        beside = [part for part in self.right if part not in parts and part not in behind]
        steps = one_by_one(parts)
        after = [self.trials.of(beside)]
        for number in range(1, len(steps) + 1):
            ahead = [*beside, *(part for step in steps[:number] for part in step)]
            after.append(self.trials.of(ahead))
            if self._suffices(ahead):
                steps = steps[:number]
                break
        mattering: list[Part] = []
        at = 0
        while at < len(steps):
            last = max(
                n for n in range(at, len(after)) if n == at or after[n].same(after[at], self.trials.noise)
            )
            if last == at:
                mattering += steps[at]
            at = max(last, at + 1)
        return [part for part in mattering if self._may_be_right(part, beside)]

    def _may_be_right(self, part: Part, beside: list[Part]) -> bool:
        """Whether run A's value puts a part right: not if that, by itself, leads farther away at some coordinates.

        A number of columns, say, means another token in a row with padding: run A's is wrong there, and what comes of
        it is as far away as it happens to be.
        """
        if part.of_tokens:
            return True
        before, after = self.trials.of(beside), self.trials.of([*beside, part])
        return min(before.moves, after.moves) < 0 or after.nearer_than(before, self.trials.noise)

    def _suffices(self, parts: list[Part]) -> bool:
        """Whether some of what is put right closes the gap by itself, and nothing of the rest leads to it."""
        if not parts or not self.trials.of(parts).closed:
            return False
        rest = [part for part in self.right if part not in parts]
        return not any(part in parts for part in self._behind(rest))

    def _behind(self, some: list[Part]) -> list[Part]:
        """What is put right at ops that some parts go into.

        What a module returns goes on as the value of the op inside that made it, to what comes later.
        """
        sources, made_from = self.store_a.sources, self.store_a.made_from
        events: set[int] = set()
        for meeting in (meeting for part in some for meeting in part.passes):
            events.add(meeting.event_a)
            if meeting.a.op.is_boundary and not meeting.a.op.is_input:
                goes_into = (
                    e for source in sources.get(meeting.event_a, ()) for e in made_from.get(source, ())
                )
                events.update(event for event in goes_into if event > meeting.event_a)
        reached = self.store_a.reached(events)
        return [part for part in self.right if part not in some and part.root.event_a in reached]

    def _minimal(self, new: list[Part]) -> list[Part]:
        """Some of what is put right that close the gap together, and from which none can be left out.

        Args:
            new: what was put right in the last round; of what came before, only what matters is there.
        """
        remaining = [*self.needed, *new]
        if not self.trials.of(remaining).closed:
            remaining = list(self.right)

        def leave_out(some: list[Part]) -> None:
            rest = [part for part in remaining if part not in some]
            if rest and self._needless(some, rest):
                remaining[:] = rest
            elif len(some) > 1 and not are_many_layers(some):
                half = len(some) // 2
                leave_out(some[half:])
                leave_out([part for part in some[:half] if part in remaining])

        for numeric in (False, True):
            if some := [part for part in remaining if part.numeric is numeric]:
                leave_out(some)
        return in_order(remaining)

    def _needless(self, some: list[Part], rest: list[Part]) -> bool:
        """Whether the rest closes the gap without some parts, and these don't matter either where it lies behind them.

        If it does, and they were seen to matter, that is known without a trial: what is put right behind them hides them.
        """
        hides = any(part in rest for part in self._behind(some))
        if hides and any(part in self.needed for part in some):
            return False
        return self.trials.of(rest).closed and not (hides and self._that_matter(some))

    def _fallback(self) -> Origin | None:
        """What closes some of the gap where nothing found closes all of it."""
        if self.needed and self.trials.nearer(self.trials.of(self.needed)) > _CLOSES_SOME:
            return self.account.of(in_order(self.needed))
        moving = next((p for p in self.right if p.numeric and self.trials.of([p]).moves > 1), self.unpatched)
        moving = moving or next(iter(self.chosen), None)
        return None if moving is None else self.account.of([moving])


__all__ = ["MAX_ROUNDS", "MAX_STORED", "Origin", "origin"]
