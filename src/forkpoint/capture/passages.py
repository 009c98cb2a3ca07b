"""Passages: stretches of the tape whose like was read before, compared and taken over as a whole.

A passage compares all that its rows depend on: the marks of the tensors that come from before it, which of its own
values goes into which call, every other argument, and what every output is like. If all of that is the same, so are the
rows, the labels and how each value is to be digested. The whole stretch is compared at once (`pattern`), at a fraction
of what it costs to work each entry out. If anything differs it is left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, compress, count
from typing import TYPE_CHECKING, Any

from forkpoint.capture.digest.batch import DevicePlan, PlanGroup
from forkpoint.capture.functions import Function
from forkpoint.capture.marks import Entering, Frame, Leaving, Mark, Treatment, version_of
from forkpoint.capture.mode import outputs_in
from forkpoint.capture.pattern import Columns, Guards, Pattern, getter
from forkpoint.capture.sites import CallStack
from forkpoint.capture.steps import Constant, Group, Step, StepRow, Used
from forkpoint.capture.trace import Op, Row

if TYPE_CHECKING:
    from forkpoint.capture.ledger import Ledger

_numbers = count()
MAX_TAKEN = 1 << 6
"""For how many passages and calls the rows are kept with a module."""


@dataclass(slots=True, eq=False)
class _Frames:
    """The modules of a passage: those on the stack at its beginning, and those that it enters."""

    below: int = 0
    """How many of those on the stack are needed."""
    popped: int = 0
    """How many of them it leaves."""
    entered: int = 0
    open: list[int] = field(default_factory=list[int])
    """Entered, and not left."""

    def of(self, what: Function | Entering | Leaving) -> int:
        """The module that an entry's rows belong to.

        Returns:
            The number of an entered one; or -1 for the innermost of those on the stack, -2 for the one around it.
        """
        if isinstance(what, Entering):
            self.open.append(self.entered)
            self.entered += 1
        if self.open:
            return self.open.pop() if isinstance(what, Leaving) else self.open[-1]
        self.below = max(self.below, self.popped + 1)
        top = -1 - self.popped
        self.popped += isinstance(what, Leaving)
        return top


class Passage:
    """A stretch of the history, and all that has to be compared before another stretch is taken for the same."""

    def __init__(
        self, whats: list[Function | Entering | Leaving], places: list[CallStack], steps: list[Step]
    ) -> None:
        self.whats, self.places, self.length = whats, places, len(steps)
        self.number = next(_numbers)
        """By which frames keep its rows: they may live longer than the history that it is of."""
        self.first_home = steps[0].first_row
        self.guards = Guards()
        self.guards.entering = [i for i, what in enumerate(whats) if isinstance(what, Entering)]
        self._outputs(whats, steps)
        outputs = list(accumulate((len(step.sizes) for step in steps), initial=0))
        leaves = self._leaves(steps, outputs[-1])
        row_at: list[int] = []
        """For each row, where its value is in the pool."""
        for step, at, output in zip(steps, leaves, outputs, strict=False):
            tensors = [at[i] for i, leaf in enumerate(step.leaves) if isinstance(leaf, Used)]
            row_at += range(output, output + len(step.sizes)) if step.sizes else tensors
        self._arguments(steps, leaves, row_at, outputs[-1])
        self._rows_of(steps, leaves, outputs)
        self._digests(row_at)
        self.pattern = Pattern(self.guards)

    def _outputs(self, whats: list[Function | Entering | Leaving], steps: list[Step]) -> None:
        """What the outputs of the functions are like."""
        functions = [(i, what) for i, what in enumerate(whats) if isinstance(what, Function)]
        guards = self.guards
        guards.functions = [i for i, _ in functions]
        guards.n_outputs = [len(steps[i].sizes) for i in guards.functions]
        guards.dtypes = [dtype for step in steps for dtype in step.dtypes]
        looked_at = [
            n_outputs != 1 or not what.of_known_shape
            for n_outputs, (_, what) in zip(guards.n_outputs, functions, strict=True)
            for _ in range(n_outputs)
        ]
        guards.looked_at = list(compress(range(len(looked_at)), looked_at))
        guards.shapes = list(compress((size for step in steps for size in step.sizes), looked_at))
        guards.strides = list(compress((stride for step in steps for stride in step.strides), looked_at))
        guards.devices = list(compress((device for step in steps for device in step.devices), looked_at))
        self.pick_functions = getter(guards.functions)
        self.last = steps[functions[-1][0]].last if functions else None

    def _leaves(self, steps: list[Step], n_outputs: int) -> list[list[int]]:
        """Where in the pool each leaf of each step is."""
        self.guards.sizes = [step.n_args for step in steps]
        self.guards.names = [step.names or None for step in steps]
        by_position = n_outputs
        by_keyword = by_position + sum(self.guards.sizes)
        in_group = by_keyword + sum(len(step.names) for step in steps)
        found: list[list[int]] = []
        for step in steps:
            grouped = len(step.leaves) - step.n_args - len(step.names)
            at = [
                *range(by_position, by_position + step.n_args),
                *range(by_keyword, by_keyword + len(step.names)),
                *range(in_group, in_group + grouped),
            ]
            by_position += step.n_args
            by_keyword += len(step.names)
            in_group += grouped
            found.append(at)
        return found

    def _arguments(
        self, steps: list[Step], leaves: list[list[int]], row_at: list[int], n_outputs: int
    ) -> None:
        """What the arguments have to be: constants, values of the passage itself, and tensors from before it."""
        guards = self.guards
        self.external: dict[int, int] = {}
        """The number of each tensor from before by where it is in the pool."""
        self.source: dict[int, int] = {}
        """For values of the passage itself, by where they go in: where they were before."""
        for step, places in zip(steps, leaves, strict=True):
            grouped = step.n_args + len(step.names)
            for at, leaf in zip(places, step.leaves, strict=True):
                if isinstance(leaf, Constant):
                    guards.constants.append(at)
                    guards.kinds.append(leaf.kind)
                    if leaf.counts:
                        guards.valued.append(at)
                        guards.values.append(leaf.value)
                elif isinstance(leaf, Group):
                    guards.groups.append(at - n_outputs)
                    guards.group_kinds.append(leaf.kind)
                    guards.group_sizes.append(leaf.size)
                    items = step.leaves[grouped : grouped + leaf.size]
                    grouped += leaf.size
                    if any(isinstance(item, Used) for item in items):
                        guards.tensor_groups.append(at)
                elif self.first_home <= leaf.home < step.first_row:
                    self.source[at] = row_at[leaf.home - self.first_home]
                else:
                    self.external[at] = len(guards.externals)
                    guards.externals.append(at)
                    guards.external_marks.append(leaf.mark)
                    guards.external_strides.append(leaf.stride)
                    guards.external_states.append(None if step.sizes else leaf.state)
                    guards.external_forms.append(leaf.form)
        guards.inner, guards.sources = list(self.source), list(self.source.values())

    def _rows_of(self, steps: list[Step], leaves: list[list[int]], outputs: list[int]) -> None:
        """The rows, and what is known of values afterwards."""
        self.rows: list[tuple[int, Function | None, CallStack, StepRow]] = []
        """With the module that each belongs to, see `_Frames.of`."""
        self.backs: list[int] = []
        """For aliases, how many rows back their value is; 0 where it comes from before the passage."""
        self.far: list[tuple[int, int]] = []
        """Rows that are aliases of a tensor from before the passage, and the number of that."""
        self.frames = _Frames()
        updates: dict[int, tuple[Mark, int]] = {}
        for number, (step, at, output) in enumerate(zip(steps, leaves, outputs, strict=False)):
            what, place = self.whats[number], self.places[number]
            function = what if isinstance(what, Function) else None
            frame = self.frames.of(what)
            begin = len(self.rows)
            for row in step.rows:
                back = row.near
                if row.alias >= 0 and at[row.alias] in self.external:
                    self.far.append((len(self.rows), self.external[at[row.alias]]))
                elif row.alias >= 0:
                    leaf = step.leaves[row.alias]
                    assert isinstance(leaf, Used)
                    back = len(self.rows) - (leaf.home - self.first_home)
                self.backs.append(back)
                self.rows.append((frame, function, place, row))
            for which, mark, row in step.updates:
                updates[output + which if which >= 0 else at[-1 - which]] = (mark, begin + row)
        guards = self.guards
        guards.updated = list(updates)
        guards.updated_marks = [mark for mark, _ in updates.values()]
        guards.updated_rows = [row for _, row in updates.values()]
        guards.updated_homes = [self.first_home + row for row in guards.updated_rows]
        places = [*range(outputs[-1]), *self.source, *self.external]
        times = Counter(map(self._origin, places))
        guards.updated_holders = [2 * times[self._origin(at)] for at in guards.updated]

    def _origin(self, at: int) -> int:
        """Where a value of the pool is first, of those places where it is the same for sure."""
        while at in self.source:
            at = self.source[at]
        return at

    def _digests(self, row_at: list[int]) -> None:
        """Which values are queued for their digest, how, and with which version."""
        guards, n_outputs = self.guards, sum(self.guards.n_outputs)
        plans: list[DevicePlan] = []
        self.opened: list[tuple[int, Treatment]] = []
        self.odd: list[tuple[int, int, Treatment]] = []
        self.versions: list[int] = []
        """For each queued value, of which output it is; -1 for those from before the passage."""
        for number, ((*_, row), at) in enumerate(zip(self.rows, row_at, strict=True)):
            if row.treatment is None:
                continue
            guards.queued.append(at)
            guards.queued_rows.append(number)
            made = self._origin(at)
            self.versions.append(made if made < n_outputs else -1)
            if row.plan is None:
                self.odd.append((number, at, row.treatment))
                continue
            guards.pushed.append(at)
            plans.append(row.plan)
            if row.grid is not None:
                guards.pushed.append(at)
                plans.append(row.grid)
                self.opened.append((number, row.treatment))
        self.pick_queued = getter(guards.queued)
        self.settled = all(n == 1 for n in guards.n_outputs) and all(
            version >= 0 for version in self.versions
        )
        self.pick_versions = getter(self.versions if self.settled else [])
        self.plan_group = PlanGroup(plans)
        self.open_cells = sum(row.treatment.open_cells for *_, row in self.rows if row.treatment is not None)

    def looks_like(self, columns: Columns, position: int) -> bool:
        """Whether the entries from a position on are the same calls from the same places."""
        end = position + self.length
        return columns.whats[position:end] == self.whats and columns.places[position:end] == self.places

    def follow(self, tape: Ledger, columns: Columns, position: int) -> bool:
        """Put entries on the trace that look like this passage, if they are the same in all else; whether they are."""
        try:
            pool = self.pattern.pool(columns.args, columns.kwargs, columns.made, position)
            before = None if pool is None else self.pattern.rows_before(pool, tape.known, tape)
        except RuntimeError:  # a sparse tensor has no strides
            return False
        if pool is None or before is None:
            return False
        if self.open_cells and not tape.fits(self.open_cells):
            return False
        frames = self.pattern.frames(columns.made, position, tape.frames, tape.stack, self.frames.below)
        if frames is None:
            return False
        self._take(tape, columns, position, pool, before, frames)
        return True

    # ------------------------------------------------------------------ taking over

    def _take(
        self,
        tape: Ledger,
        columns: Columns,
        position: int,
        pool: list[Any],
        before: list[int],
        frames: tuple[Frame, ...],
    ) -> None:
        taken = frames[0].taken.get((self.number, tape.call))
        if taken is None or taken[0] != frames:
            if len(frames[0].taken) >= MAX_TAKEN:
                frames[0].taken.clear()
            taken = frames[0].taken[self.number, tape.call] = frames, self._rows(tape.call, frames)
        rows = taken[1]
        base = len(tape.rows)
        tape.rows += rows
        for row, number in self.far:
            op, call, form, _, slots = rows[row]
            tape.rows[base + row] = (op, call, form, base + row - before[number], slots)
        if self.last is not None:
            tape.resolver.last_outputs = self.last
        if self.frames.popped:
            del tape.stack[-self.frames.popped :]
            del tape.arguments[-self.frames.popped :]
        for number in self.frames.open:
            entry = position + self.guards.entering[number]
            tape.stack.append(frames[number])
            tape.arguments.append((columns.args[entry], columns.kwargs[entry] or {}))
        # once the arguments of modules that are still open are kept, and before anything else holds the values
        self.pattern.note(pool, tape.known, base, columns.args, columns.kwargs, columns.made, position)
        if tape.digests:
            self._queue(tape, columns, position, pool, base)
        columns.functions += len(self.guards.functions)

    def _rows(self, call: int, frames: tuple[Frame, ...]) -> list[Row]:
        rows: list[Row] = []
        for (frame, what, place, row), back in zip(self.rows, self.backs, strict=True):
            op = _op(frames[frame], what, place, row)
            rows.append((op, call, row.form, back, row.slots))
        return rows

    def _queue(self, tape: Ledger, columns: Columns, position: int, pool: list[Any], base: int) -> None:
        """Have the values digested with the next flush."""
        tape.batch.extend(self.pattern.queue(pool, base, tape.pending, tape.pending_rows), self.plan_group)
        tape.pending_versions += self._versions(columns, position, pool)
        tape.pending_bytes += self.plan_group.n_bytes
        if self.opened:
            tape.opened += [(base + row, treatment) for row, treatment in self.opened]
            tape.open_cells += self.open_cells
        for row, at, treatment in self.odd:
            tape.odd.append((base + row, pool[at].detach(), treatment))
            tape.pending_bytes += pool[at].nbytes

    def _versions(self, columns: Columns, position: int, pool: list[Any]) -> Sequence[int]:
        """How often the queued values had been written to when the function after the one that made them was called."""
        begin = columns.functions
        settled = columns.versions[begin : begin + len(self.guards.functions)]
        if self.settled:
            return self.pick_versions(settled)
        versions: list[int] = []  # of all outputs; that of the last one of each function is settled
        for made, last in zip(self.pick_functions(columns.made[position:]), settled, strict=True):
            versions += [*map(version_of, outputs_in(made)[:-1]), last]
        pairs = zip(self.versions, self.pick_queued(pool), strict=True)
        return [versions[made] if made >= 0 else version_of(value) for made, value in pairs]


def _op(frame: Frame, what: Function | None, place: CallStack, row: StepRow) -> Op:
    if isinstance(row.key, str):
        return frame.visits_in(row.key).ops[0]
    if what is None:
        return frame.visits_out(row.key).ops[0]
    return frame.visits_of(what, place, row.key + 1).ops[row.key]
