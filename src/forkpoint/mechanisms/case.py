"""What a semantic difference is asked about: its origin in both runs, and the experiments made there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from forkpoint.capture.trace import Op
from forkpoint.explain.results import ResultComparison
from forkpoint.explain.session import Session
from forkpoint.probes.attention import sees_other_keys
from forkpoint.probes.bench import Bench, benches
from forkpoint.probes.content import ContentProbe
from forkpoint.probes.coupling import LATER, OTHERS, PADDING, ROWS, Coupling, coupling
from forkpoint.probes.decisions import coupling_at
from forkpoint.probes.entrance import entrance
from forkpoint.probes.given import Masked, masked_module
from forkpoint.probes.length import changes_with_length
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.origin import Origin
from forkpoint.probes.pooling import for_the_call
from forkpoint.probes.statistics import MEAN, NORMALISED, normalises_up_to, statistics
from forkpoint.probes.swap import Swap
from forkpoint.probes.unrounded import vanishes_unrounded
from forkpoint.probes.watchers import Store
from forkpoint.result import ProbeResult

_ATTENTION = frozenset({"scaled_dot_product_attention", "flex_attention", "multi_head_attention_forward"})


@dataclass
class Case:
    """A semantic difference.

    Attributes:
        compared: the results, in float64 where they differ there.
        content: what the content probe found, where it was asked.
        origin: where the difference enters; None if it could not be located.
        held: whether the origin was found with decisions on rounded values held.
        evidence: what the experiments showed so far.
        among: all origins, where this is about one of them.
    """

    session: Session
    compared: ResultComparison
    content: ContentProbe | None
    origin: Origin | None
    held: bool = False
    evidence: list[ProbeResult] = field(default_factory=list[ProbeResult])
    among: tuple[Origin, ...] = ()

    @property
    def root(self) -> Meeting | None:
        return self.origin.root if self.origin is not None else None

    @property
    def ids_enter(self) -> bool:
        """Whether other token ids where the other run has none move the result: numbers made of ids are no positions."""
        return self.content is not None and self.content.leaks and self.content.ids

    @property
    def held_alone(self) -> tuple[str, ...]:
        """The one kind of content that a run holds alone, whichever run; empty where there are several kinds."""
        pairing, kinds = self.session.pairing, set[str]()
        for run, mates in ((self.session.a.run, pairing.only_a), (self.session.b.run, pairing.only_b)):
            kinds |= {ROWS} if mates else set()
            cells = (c.sample for entry in run.layout.calls for c in entry.values())
            kinds |= {PADDING} if any(bool((sample < 0).any()) for sample in cells) else set()
        if any(self._longest(0, a) != self._longest(1, b) for a, b in pairing.pairs):
            kinds.add(LATER)
        return tuple(kinds) if len(kinds) == 1 else ()

    def _longest(self, side: int, sample: int) -> int:
        """The last position of a sample in one run."""
        run = (self.session.a, self.session.b)[side].run
        cells = (c for entry in run.layout.calls for c in entry.values())
        places = (c.position[c.sample == sample] for c in cells)
        return max((int(p.max()) for p in places if p.numel()), default=-1)

    # ------------------------------------------------------------------ experiments

    @cached_property
    def benches(self) -> tuple[Bench, Bench]:
        """Runs A and B at the origin."""
        assert self.origin is not None
        b, a = benches(self.session, self.origin)
        return a, b

    @cached_property
    def of_layout(self) -> bool:
        """Whether no token's content enters the origin, in either run."""
        return self.origin is not None and all(bench.of_layout(bench.root) for bench in self.benches)

    @cached_property
    def by_length(self) -> ProbeResult | None:
        """That the origin, which no token's content enters, changes with a longer row."""
        if self.root is None or self.ids_enter or not self.of_layout:
            return None
        return changes_with_length(self.session, self.root, *self.benches, real=True)

    @cached_property
    def coupling(self) -> Coupling | None:
        """What couples tokens at the origin, by an op that both models have; None where nothing does."""
        if self.origin is None:
            return None
        # decided anew in float64 the origin would be another value
        coupled = None if self.held else coupling(self.session, self.origin)
        if not coupled:  # what is drawn from others seldom crosses a threshold that content itself does
            shown = coupling_at(self.session, self.origin)
            coupled = None if shown is None else Coupling((OTHERS,), shown.figure or 0.0, frozenset(), shown)
        if coupled is None or not coupled or self.same_function is False:
            return None
        self.evidence.append(coupled.result)
        return coupled

    @cached_property
    def vanishes_unrounded(self) -> bool:
        """Whether the runs agree in float64 if nothing is rounded to steps: what couples tokens is that rounding alone."""
        vanishes = vanishes_unrounded(self.session)
        if vanishes and self.coupling is not None:
            self._tell("with no value rounded to steps the runs agree")
        return vanishes

    @cached_property
    def entered(self) -> Case | None:
        """The same question of one run alone, where what the other lacks first moves a token; None where that is not known.

        Asked where the runs agree in exact arithmetic, or do with decisions held: at the origin's own module then.
        """
        if self.content is None or not self.content.leaks or not (self.origin is None or self.held):
            return None
        entered_at = entrance(self.session, self.content)
        if entered_at is None or (self.origin is not None and entered_at[1].seen.a.op.module != self.module):
            return None
        alone, origin = entered_at
        return Case(alone, self.compared, self.content, origin, evidence=[origin.result])

    @cached_property
    def same_function(self) -> bool | None:
        """Whether both runs compute the same at the origin, given the same inputs; None where that is not known."""
        evidence = self.swap.evidence(self.root)
        if evidence is not None:
            self.evidence.append(evidence)
        return self.swap.same(self.root)

    def are_two_functions(self, part: Origin | None) -> bool:
        """Whether the runs are known to compute something else at an origin, given the same inputs."""
        if part is None or part is self.origin:
            return self.same_function is False
        return self.swap.same(part.root) is False

    @cached_property
    def swap(self) -> Swap:
        """Run B's model with run A's inputs."""
        return Swap(self.session, tuple(part.root for part in self.parts), held=self.held)

    @property
    def parts(self) -> tuple[Origin, ...]:
        """All origins, in the order of execution."""
        return () if self.origin is None else (self.origin, *self.origin.others)

    @cached_property
    def each_origin(self) -> tuple[Case, ...]:
        """The same question of each origin after the first."""
        others = tuple(
            Case(self.session, self.compared, self.content, part, held=self.held, among=self.parts)
            for part in self.parts[1:]
        )
        for other in others:
            other.swap = self.swap
        return others

    def is_one_normalisation(self, other: Case) -> bool:
        """Whether another origin belongs to the statistics of this one: up to it tokens are but normalised."""
        if self.statistics != NORMALISED or self.coupling is None or other.root is None:
            return False
        return normalises_up_to(self.coupling, other.root)

    @cached_property
    def sees_other_keys(self) -> ProbeResult | None:
        """That a query sees other keys in one run than in the other, in an attention at the origin; None where it does not."""
        if self.origin is None or not (self.attends or self.of_layout):
            return None
        shown = sees_other_keys(self.session, self.origin, self.among or self.parts)
        return shown if shown is not None and shown.outcome == "other keys" else None

    # ------------------------------------------------------------------ what is at the origin

    @property
    def of_the_call(self) -> bool:
        """Whether the origin's value is one of the whole call, and no value of a token is made from it."""
        return self.root is not None and for_the_call(self.session, self.root, *self.benches)

    @cached_property
    def alone(self) -> tuple[tuple[Store, frozenset[int]], ...]:
        """For each run, the events behind the root that tell nothing of its difference.

        Those that no event of the other run meets, or does as a whole alone, or at which the tokens that differ pass in one
        run alone.
        """
        origin = self.origin
        if origin is None:
            return ()
        root, by_a, by_b = origin.root, origin.meetings, {m.event_b: m for m in origin.meetings.values()}

        def silent(meetings: Mapping[int, Meeting], event: int) -> bool:
            if event not in meetings:
                return True
            passing = meetings[event].equal | meetings[event].differing
            if meetings[event].differs and not passing - {0} and root.differing - {0}:
                return True  # it differs as a whole, whichever of its tokens do
            return bool(passing & root.equal) and not passing & root.differing

        return tuple(
            (store, frozenset(store.behind([start], partial(silent, meetings))))
            for store, start, meetings in (
                (origin.store_a, root.event_a, by_a),
                (origin.store_b, root.event_b, by_b),
            )
        )

    @cached_property
    def chain(self) -> tuple[Op, ...]:
        """The root, what the difference is first seen in, and the ops behind them that one run alone has."""
        if self.origin is None:
            return ()
        behind = (
            store.ops[event][0] for store, events in self.alone for event in sorted(events, reverse=True)
        )
        return (self.origin.root.a.op, self.origin.seen.a.op, *behind)

    @cached_property
    def names(self) -> frozenset[str]:
        """Functions of the chain, without the namespace of `torch.ops`."""
        return frozenset(op.function.removeprefix("aten.") for op in self.chain)

    def behind(self, steps: int = 12, *, seen: bool = False) -> frozenset[str]:
        """Functions up to so many steps behind the root, or what it is first seen in, in run B."""
        origin = self.origin
        if origin is None:
            return frozenset()
        start = origin.seen.event_b if seen else origin.root.event_b
        return _walk(origin.store_b.sources, origin.store_b, [start], steps)

    def after(self, steps: int = 12) -> frozenset[str]:
        """Functions up to so many steps after the root and what it is first seen in, in run B."""
        origin = self.origin
        if origin is None:
            return frozenset()
        start = [origin.root.event_b, origin.seen.event_b]
        return _walk(origin.store_b.made_from, origin.store_b, start, steps)

    @cached_property
    def attends(self) -> bool:
        """Whether the difference is first seen in attention: in its weights, or in a mask for them."""
        origin = self.origin
        if origin is None:
            return False
        seen = origin.seen.a, origin.seen.b
        if self.names & _ATTENTION or all(
            snapshot.label is not None and snapshot.label.k is not None for snapshot in seen
        ):
            return True
        of_no_token = any(snapshot.label is None for snapshot in seen) or origin.root.a.dtype == torch.bool
        return of_no_token and bool(self.after(4) & (_ATTENTION | {"softmax"}))

    @cached_property
    def decisions(self) -> frozenset[str]:
        """Functions that made the choices (whole numbers, masks) by which the difference enters, in run B."""
        origin = self.origin
        if origin is None:
            return frozenset()
        store, root, seen = origin.store_b, origin.root.event_b, origin.seen.event_b
        between = store.reached([root]) & (store.behind([seen]) | {seen})
        start = {root, seen} | self.alone[1][1] | between

        def decides(event: int) -> bool:
            return event in store.snapshots and _is_whole(store.snapshots[event].value)

        deciding = store.behind(start, decides) | {event for event in start if decides(event)}
        return frozenset(store.ops[event][0].function.removeprefix("aten.") for event in deciding)

    @cached_property
    def masked(self) -> Masked | None:
        """The module that is given a mask: that of the origin, the one whose code calls it, or one around them."""
        if self.origin is None:
            return None
        return masked_module(self.benches, self.module)

    @property
    def masked_itself(self) -> bool:
        """Whether the module of the origin, or the one whose code calls it, is given a mask in its own call."""
        return self.masked is not None and self.masked.own

    @property
    def module(self) -> str:
        """Path of the module of the origin."""
        assert self.origin is not None
        return self.origin.seen.a.op.module

    @cached_property
    def statistics(self) -> str | None:
        """By what statistics tokens are coupled at the origin; None where by none."""
        kind = None if self.coupling is None else statistics(self.coupling)
        if kind == NORMALISED:
            self._tell("a constant added to all values there changes nothing, doubled values no more than the scale, and each "
                       "of the others counts: a mean, or a mean and a variance, is taken away")  # fmt: skip
        elif kind == MEAN:
            self._tell("a constant added to all values there adds one number to them, doubled values are doubled, and each of "
                       "the others counts: a mean or a sum of them is taken")  # fmt: skip
        return kind

    def _tell(self, more: str) -> None:
        """Add to the evidence of the coupling what was shown of it besides."""
        coupling = self.coupling
        assert coupling is not None
        extended = replace(coupling.result, text=f"{coupling.result.text}; {more}")
        self.evidence[self.evidence.index(coupling.result)] = extended
        self.coupling = replace(coupling, result=extended)


def _is_whole(value: Tensor) -> bool:
    if value.is_floating_point():
        return bool((value == value.round()).all())
    return not value.is_complex()


def _walk(edges: dict[int, list[int]], store: Store, start: list[int], steps: int) -> frozenset[str]:
    functions: set[str] = set()
    frontier, seen = list(start), set(start)
    for _ in range(steps):
        following: list[int] = []
        for event in frontier:
            if event in store.ops:
                functions.add(store.ops[event][0].function.removeprefix("aten."))
            for other in edges.get(event, ()):
                if other not in seen:
                    seen.add(other)
                    following.append(other)
        frontier = following
    return frozenset(functions)
