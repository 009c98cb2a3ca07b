"""The first gradient that differs in the order of the backward pass, and the ops whose backward made it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import closing
from dataclasses import replace

from torch import Tensor

from forkpoint.backward.exact import Exact
from forkpoint.backward.going_back import GoingBack
from forkpoint.backward.keeping import Chosen, place_of
from forkpoint.backward.recording import RunGradients
from forkpoint.backward.watching import NO_GRADIENT, Awaited, Graph
from forkpoint.capture.recorder import CopiedCall
from forkpoint.capture.trace import Trace
from forkpoint.explain.locate import Tokens, describe_values
from forkpoint.explain.rows import op_row
from forkpoint.explain.session import Session, Traced
from forkpoint.match import Join, Joined
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.watchers import Place
from forkpoint.result import Divergence, InputComparison, OpRow

CANDIDATES = 8
"""How many gradients a pass keeps at once: the first may turn out equal by value (-0.0, dtypes)."""

SUMS = "its gradient adds up over a call's tokens, and the runs' calls hold others"
"""Why the gradient of a value that does not hold every token is not compared."""


class GradientJoin:
    """The gradients of two runs, op by op.

    Args:
        session: both runs.
        a, b: their gradients.
    """

    def __init__(self, session: Session, a: RunGradients, b: RunGradients) -> None:
        self.session, self.a, self.b = session, a, b
        rows = Join(a.trace, b.trace, session.shared).rows
        summed = {r.trace.key(op) for r in (a, b) for op in r.left_out}
        dropped = (_without(a) & _without(b)) | summed
        self.rows = [row for row in rows if a.trace.key(row.op) not in dropped]
        self._by_key = {a.trace.key(row.op): row for row in self.rows}

    def ops(self) -> tuple[OpRow, ...]:
        """How the gradient of each op's output compares, in the order of the backward pass of run A."""
        rows = sorted(self.rows, key=lambda row: (row.status == "only in b", row.order))
        op_rows = [op_row(row) for row in rows]
        listed = {(one.op, one.source, one.output) for one in op_rows}
        for op in dict.fromkeys((*self.a.left_out, *self.b.left_out)):
            if (op.name, op.site.short, op.output) not in listed:
                row = Joined(op, "not compared", None, None, 0, 1, reason=SUMS)
                op_rows.append(replace(op_row(row), floating=True))
        return tuple(op_rows)

    def first(self, tokens: Tokens, *, summing: bool) -> Divergence | None:
        """The first op, from the loss on, whose output's gradient differs; None where none does."""
        differing = [row for row in self.rows if row.difference is not None]
        differing.sort(key=lambda row: row.difference.event_a if row.difference else 0)
        for start in range(0, len(differing), CANDIDATES):
            chosen = differing[start : start + CANDIDATES]
            places = [
                (self.a.awaited[d.event_a], self.b.awaited[d.event_b])
                for row in chosen
                if (d := row.difference) is not None
            ]
            gradients_a = self._gradients(self.session.a, "A", [a for a, _ in places], summing=summing)
            gradients_b = self._gradients(self.session.b, "B", [b for _, b in places], summing=summing)
            for row, (a, b) in zip(chosen, places, strict=True):
                shown = self._described(
                    row, gradients_a.get(place_of(a)), gradients_b.get(place_of(b)), tokens
                )
                if shown is not None:
                    return shown
                row.status, row.differing = "equal", 0  # of other dtypes, or of another zero
        return None

    def _gradients(
        self, traced: Traced, name: str, awaited: list[Awaited], *, summing: bool
    ) -> dict[Place, tuple[Awaited, Tensor]]:
        """Some gradients of a run, by another pass."""
        backward = GoingBack(traced.run, name)
        chosen = Chosen(backward, [place_of(one) for one in awaited], summing=summing)
        with closing(chosen):
            traced.again(watcher=chosen, backward=backward)
        return chosen.gradients

    def _described(
        self, row: Joined, a: tuple[Awaited, Tensor] | None, b: tuple[Awaited, Tensor] | None, tokens: Tokens
    ) -> Divergence | None:
        difference = row.difference
        assert difference is not None
        if a is None or b is None:
            return None  # it did not come again
        place = difference.sample, difference.position
        shown = describe_values(self.session, row.op, 0, _as_call(*a), _as_call(*b), tokens, place)
        if shown is None:
            return None
        missing = [
            run
            for run, recorded, event in (
                ("A", self.a, self.a.awaited[difference.event_a].event),
                ("B", self.b, self.b.awaited[difference.event_b].event),
            )
            if event in recorded.absent
        ]
        note = f"no gradient arrives in run {missing[0]}" if missing else ""
        graphs = (
            (self.a.graph, self.a.awaited[difference.event_a].event, self.a.trace),
            (self.b.graph, self.b.awaited[difference.event_b].event, self.b.trace),
        )
        return replace(shown, inputs=made_by(graphs, self._status), note=note)

    def _status(self, key: Hashable) -> tuple[str, str]:
        row = self._by_key.get(key)
        return NO_GRADIENT if row is None else (row.status, row.reason)


def made_by(
    graphs: Sequence[tuple[Graph, int, Trace]], status: Callable[[Hashable], tuple[str, str]]
) -> tuple[InputComparison, ...]:
    """The ops that read a value, whose backward made its gradient, each with how its own output's gradient compares.

    With them the functions of autograd that were not seen, by the names of their backward.

    Args:
        graphs: of run A and run B, what was made of what, and the event of the value.
        status: by the key of an op, how the gradient of its output compares, and why it was not.
    """
    readers = [{trace.key(op): op for op in graph.readers(event)} for graph, event, trace in graphs]
    comparisons: list[InputComparison] = []
    for key, op in {**readers[1], **readers[0]}.items():
        outcome, reason = status(key)
        alone = [run for run, read in zip("ab", readers, strict=True) if key in read]
        if len(alone) == 1 and outcome in ("equal", "differs"):
            reason = f"in run {alone[0].upper()} alone it reads this value"
        elif len(alone) == 1 and outcome == "not compared":
            outcome, reason = f"only in {alone[0]}", ""
        comparisons.append(InputComparison(op.place, outcome, None, None, reason=reason))
    unseen = {
        name: None for graph, event, _ in graphs for name in graph.unseen.get(graph.first_of(event), ())
    }
    comparisons += [
        InputComparison(name, NO_GRADIENT[0], None, None, reason=NO_GRADIENT[1]) for name in unseen
    ]
    return tuple(comparisons)


def described_exactly(session: Session, meeting: Meeting, exact: Exact, tokens: Tokens) -> Divergence | None:
    """The divergence of a gradient that differs in float64 beyond noise."""
    taken_a, taken_b = (
        CopiedCall(one.op, one.event.call, one.event.nth, None, (), {}, (one.value,), {}, (one.label,))
        for one in (meeting.a, meeting.b)
    )
    shown = describe_values(session, meeting.a.op, 0, taken_a, taken_b, tokens, beyond=meeting.noise)
    if shown is None:
        return None
    graphs = (
        (exact.a, meeting.event_a, session.a.trace),
        (exact.b, meeting.event_b, session.b.trace),
    )
    return replace(shown, inputs=made_by(graphs, exact.status))


def _as_call(awaited: Awaited, gradient: Tensor) -> CopiedCall:
    """A gradient as if it were what the op made."""
    return CopiedCall(awaited.op, awaited.call, awaited.nth, None, (), {}, (gradient,), {}, (awaited.label,))


def _without(recorded: RunGradients) -> set[Hashable]:
    """Keys of ops at whose outputs no gradient arrived in any pass."""
    arrived = {recorded.trace.key(one.op) for one in recorded.awaited if one.event not in recorded.absent}
    return {recorded.trace.key(one.op) for one in recorded.awaited} - arrived
