"""Passages: stretches of steps that a later stretch of the tape may repeat, compared and taken over as a whole.

The rows of a stretch depend on the marks of the tensors that come from before it, on which of its own values goes into
which call, on every other argument, and on size, stride and dtype of every output. If all of that is the same, so are the
rows, the labels and how each value is digested. It is compared for the whole stretch at once (`pattern`), at a fraction of
what it costs to work each entry out. If anything differs, the entries are worked out one by one.
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
from forkpoint.capture.pattern import Guards, Pattern, TapeColumns, getter
from forkpoint.capture.sites import CallStack
from forkpoint.capture.steps import Constant, Group, HistoryStep, StepRow, TensorArgument
from forkpoint.capture.trace import Op, Row

if TYPE_CHECKING:
    from forkpoint.capture.ledger import Ledger

_numbers = count()
MAX_TAKEN = 1 << 6
"""Most entries of `Frame.passage_rows`."""


@dataclass(slots=True, eq=False)
class _Frames:
    """Which modules the entries of a passage belong to: some on the stack at its beginning, and those that it enters."""

    below: int = 0
    """How many modules on the stack its rows belong to."""
    popped: int = 0
    """How many of those it leaves."""
    entered: int = 0
    """How many modules it enters."""
    open: list[int] = field(default_factory=list[int])
    """Numbers of the modules that it enters and doesn't leave."""

    def of(self, what: Function | Entering | Leaving) -> int:
        """The module that an entry's rows belong to; asked for each entry in turn.

        Returns:
            From 0: the number of a module that the passage enters. Below: -1 for the innermost on the stack at its
            beginning, -2 for the one around it, and so on.
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
    """A stretch of the history, with the guards that another stretch must pass to be taken over.

    Args:
        whats, places, steps: of each entry what ran, where it was called, and the step.
    """

    def __init__(
        self, whats: list[Function | Entering | Leaving], places: list[CallStack], steps: list[HistoryStep]
    ) -> None:
        self.whats, self.places, self.length = whats, places, len(steps)
        self.number = next(_numbers)
        """Unique in the process: the key under which frames, which may outlive the history, keep its rows."""
        self.first_home = steps[0].first_row
        self.guards = Guards()
        self.guards.entering = [i for i, what in enumerate(whats) if isinstance(what, Entering)]
        self._outputs(whats, steps)
        outputs = list(accumulate((len(step.sizes) for step in steps), initial=0))
        leaves = self._leaves(steps, outputs[-1])
        row_at: list[int] = []
        """For each row, where its value is in the pool."""
        for step, at, output in zip(steps, leaves, outputs, strict=False):
            tensors = [at[i] for i, leaf in enumerate(step.leaves) if isinstance(leaf, TensorArgument)]
            row_at += range(output, output + len(step.sizes)) if step.sizes else tensors
        self._arguments(steps, leaves, row_at, outputs[-1])
        self._rows_of(steps, leaves, outputs)
        self._digests(row_at)
        self.pattern = Pattern(self.guards)

    def _outputs(self, whats: list[Function | Entering | Leaving], steps: list[HistoryStep]) -> None:
        """Fill the guards of the functions' outputs: how many, their dtypes, and shape, stride and device where these vary."""
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

    def _leaves(self, steps: list[HistoryStep], n_outputs: int) -> list[list[int]]:
        """The position in the pool of each leaf of each step; fills the guards of how arguments are passed."""
        self.guards.sizes = [step.n_args for step in steps]
        self.guards.names = [step.names or None for step in steps]
        by_position = n_outputs
        by_keyword = by_position + sum(self.guards.sizes)
        in_group = by_keyword + sum(len(step.names) for step in steps)
        positions: list[list[int]] = []
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
            positions.append(at)
        return positions

    def _arguments(
        self, steps: list[HistoryStep], leaves: list[list[int]], row_at: list[int], n_outputs: int
    ) -> None:
        """Fill the guards of the arguments: constants, values of the passage itself, and tensors from before it."""
        guards = self.guards
        self.external: dict[int, int] = {}
        """By position in the pool, the number of a tensor from before the passage."""
        self.source: dict[int, int] = {}
        """By the position of an argument in the pool, the earlier position of the same value, made in the passage."""
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
                    if any(isinstance(item, TensorArgument) for item in items):
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

    def _rows_of(self, steps: list[HistoryStep], leaves: list[list[int]], outputs: list[int]) -> None:
        """The rows of the passage, and the records of tensors that they lead to."""
        self.rows: list[tuple[int, Function | None, CallStack, StepRow]] = []
        """(module as `_Frames.of` numbers it, function, place, row)."""
        self.backs: list[int] = []
        """For aliases, how many rows back their value is; 0 where it comes from before the passage."""
        self.far: list[tuple[int, int]] = []
        """(row, number of the tensor) for aliases of tensors from before the passage."""
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
                    assert isinstance(leaf, TensorArgument)
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
        """The first position in the pool of the value at a position."""
        while at in self.source:
            at = self.source[at]
        return at

    def _digests(self, row_at: list[int]) -> None:
        """Fill the guards of the values that are queued for their digests, and plan how."""
        guards, n_outputs = self.guards, sum(self.guards.n_outputs)
        plans: list[DevicePlan] = []
        self.opened: list[tuple[int, Treatment]] = []
        self.odd: list[tuple[int, int, Treatment]] = []
        self.versions: list[int] = []
        """For each queued value, the output that it is; -1 for a value from before the passage."""
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

    def looks_like(self, columns: TapeColumns, position: int) -> bool:
        """Whether the entries from a position on are the same calls from the same places."""
        end = position + self.length
        return columns.whats[position:end] == self.whats and columns.places[position:end] == self.places

    def follow(self, tape: Ledger, columns: TapeColumns, position: int) -> bool:
        """Compare entries with the passage and, if they pass all guards, put their rows on the trace; returns whether they do.

        Args:
            tape: gets the rows.
            columns: the entries; from `position` on they are the same calls from the same places.
            position: the first of the stretch.
        """
        try:
            pool = self.pattern.pool(columns.args, columns.kwargs, columns.made, position)
            before = None if pool is None else self.pattern.rows_before(pool, tape.tensors, tape)
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
        columns: TapeColumns,
        position: int,
        pool: list[Any],
        before: list[int],
        frames: tuple[Frame, ...],
    ) -> None:
        cached = frames[0].passage_rows.get((self.number, tape.call))
        if cached is None or cached[0] != frames:
            if len(frames[0].passage_rows) >= MAX_TAKEN:
                frames[0].passage_rows.clear()
            cached = frames[0].passage_rows[self.number, tape.call] = frames, self._rows(tape.call, frames)
        rows = cached[1]
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
        self.pattern.note(pool, tape.tensors, base, columns.args, columns.kwargs, columns.made, position)
        if tape.digests:
            self._queue(tape, columns, position, pool, base)
        columns.functions += len(self.guards.functions)

    def _rows(self, call: int, frames: tuple[Frame, ...]) -> list[Row]:
        rows: list[Row] = []
        for (frame, what, place, row), back in zip(self.rows, self.backs, strict=True):
            op = _op(frames[frame], what, place, row)
            rows.append((op, call, row.form, back, row.slots))
        return rows

    def _queue(self, tape: Ledger, columns: TapeColumns, position: int, pool: list[Any], base: int) -> None:
        """Queue the stretch's values for the next flush."""
        tape.batch.extend(self.pattern.queue(pool, base, tape.pending, tape.pending_rows), self.plan_group)
        tape.pending_versions += self._versions(columns, position, pool)
        tape.pending_bytes += self.plan_group.n_bytes
        if self.opened:
            tape.opened += [(base + row, treatment) for row, treatment in self.opened]
            tape.open_cells += self.open_cells
        for row, at, treatment in self.odd:
            tape.odd.append((base + row, pool[at].detach(), treatment))
            tape.pending_bytes += pool[at].nbytes

    def _versions(self, columns: TapeColumns, position: int, pool: list[Any]) -> Sequence[int]:
        """The version of each queued value when the function after the one that made it was called."""
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
