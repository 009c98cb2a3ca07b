"""Passages: stretches of the tape whose like was read before, taken over as a whole.

The layers of a model do the same again and again, and so do its runs. So whatever is worked out entry by entry is also
noted down as a `Step` of the `History`: what the entry depended on, and what came of it. Where a later stretch of
the tape shows the same calls from the same places, a `Passage` compares all else that its rows depend on: the marks of
the tensors that come from before it, which of its own values goes into which call, every other argument, and dtype,
shape and stride of every output. If all of that is the same, so are the rows, the labels and how each value is to be
digested. All of this is done for the whole stretch at once, with loops that run inside the interpreter, at a tenth of
the cost. If anything differs, or was never seen, the entry is worked out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, compress, count, islice, repeat
from operator import attrgetter, is_, is_not, itemgetter
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn

from forkpoint.capture.digest.batch import Planned
from forkpoint.capture.functions import Function
from forkpoint.capture.labels import Label, Shape
from forkpoint.capture.marks import Entering, Frame, Known, Leaving, Mark, Treatment, version_of
from forkpoint.capture.sites import Place
from forkpoint.trace import Form, Op, Row

if TYPE_CHECKING:
    from forkpoint.capture.tape import Entry, Tape

SHORTEST = 24
"""Fewer entries are worked out one by one, so that the history has whole layers in it and not what small parts of them
have left over; unless they are what came next the last time."""
SHORTEST_NEXT = 4
MAX_STEPS = 1 << 14
"""Most steps of a history; what comes after them is worked out each time."""
MAX_TRIED = 4
"""How many earlier places are tried for a stretch that looks the same."""
MAX_TAKEN = 1 << 10
"""For how many calls and layers the rows of a passage are kept."""
PAUSE = 8
"""Entries that are worked out after a stretch turned out to be another, before the next is looked for."""

_CONSTANTS = frozenset(
    {int, bool, float, complex, str, type(None), type(...), slice, torch.dtype, torch.device, torch.layout,
     torch.memory_format, type}
)  # fmt: skip
"""Kinds of arguments that are the same if they are equal."""
_GROUPS = frozenset({tuple, list, torch.Size})
"""Kinds of arguments of which each entry is looked at."""

_histories = count()
_size: Callable[[Tensor], torch.Size] = torch.Tensor.size  # pyright: ignore[reportAssignmentType]
_stride: Callable[[Tensor], tuple[int, ...]] = torch.Tensor.stride  # pyright: ignore[reportAssignmentType]
_dtype: Callable[[Tensor], torch.dtype] = attrgetter("dtype")
_version: Callable[[Tensor], int] = attrgetter("_version")


class Columns:
    """The entries of a tape, each of their fields in a tuple of its own.

    Attributes:
        versions: for each function among them, how often its last output had been written to when the next was called;
            for the last of them that is told.
        calls: before each entry, and after the last, how many of those are functions.
    """

    def __init__(self, entries: list[Entry], version: int) -> None:
        self.whats, self.places, self.args, self.kwargs, self.made, before = zip(*entries, strict=True)
        functions = list(map(isinstance, self.made, repeat(tuple)))
        self.versions = [*islice(compress(before, functions), 1, None), version]
        self.calls = list(accumulate(functions, initial=0))


# ---------------------------------------------------------------------- steps


@dataclass(slots=True, eq=False)
class Used:
    """A tensor among the arguments of an entry.

    Attributes:
        home: the row of the history that holds its value; -1 for what no entry of it made.
        state: whether a row holds its value, whether all of it, and whether that is a view's: what a module's input or
            output becomes depends on it.
    """

    mark: Mark
    stride: tuple[int, ...]
    home: int
    state: tuple[bool, bool, bool]


@dataclass(slots=True, eq=False)
class Constant:
    """An argument that is no tensor; its value counts, but for a module's."""

    kind: type
    value: Any
    counts: bool


@dataclass(slots=True, eq=False)
class Group:
    """A list or tuple; what is in it follows after all the others."""

    kind: type
    size: int


Leaf = Used | Constant | Group


@dataclass(slots=True, eq=False)
class Sketch:
    """What an entry depends on: its arguments, those by keyword after those by position."""

    names: tuple[str, ...]
    leaves: list[Leaf]
    values: list[Any]
    """Of all leaves; not kept."""


@dataclass(slots=True, eq=False)
class StepRow:
    """A row that an entry put on the trace.

    Attributes:
        key: the number of a function's or module's output, or the name of a module's input.
        alias: the leaf whose row holds the value, or -1.
        slots: how many the batch has for it.
        plan, grid: how it is digested, and how its open cells are; both None for a value that was not queued, plan
            alone for one whose treatment is neither plain nor open.
    """

    key: int | str
    form: Form
    alias: int
    slots: int
    treatment: Treatment | None
    plan: Planned | None
    grid: Planned | None


@dataclass(slots=True, eq=False)
class Step:
    """An entry that was worked out, and what came of it.

    Attributes:
        sizes, strides, dtypes: of a function's outputs.
        rows: a row for each output of a function, or for each tensor that goes into a module or comes out, in order.
        updates: what is known afterwards: of which output (from 0) or leaf (from -1 down), its mark, and the row.
        last: labels and shapes of a function's outputs.
    """

    n_args: int
    names: tuple[str, ...]
    leaves: list[Leaf]
    sizes: list[torch.Size]
    strides: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    first_row: int
    rows: list[StepRow]
    updates: list[tuple[int, Mark, int]]
    last: tuple[tuple[Label | None, Shape], ...]


class History:
    """All entries that were worked out for calls whose tokens lie alike, one after the other."""

    def __init__(self) -> None:
        self.whats: list[Function | Entering | Leaving] = []
        self.places: list[Place] = []
        self.steps: list[Step | None] = []
        """None for what has to be worked out each time."""
        self.barriers: list[int] = []
        """The numbers of those."""
        self.n_rows = next(_histories) << 32
        """The number of the next row; each history has numbers of its own."""
        self.starts: dict[tuple[Any, Place], list[int]] = {}
        """By what ran and where from, the steps."""
        self.passages: dict[tuple[int, int], Passage] = {}
        """By first step and length."""
        self.longest: dict[int, Passage] = {}
        """By first step."""
        self.expected = 0
        """The step that would come next, if what comes is what came before."""
        self.pause = 0

    @property
    def full(self) -> bool:
        return len(self.steps) >= MAX_STEPS

    # ------------------------------------------------------------------ writing

    def sketch(self, tape: Tape, entry: Entry) -> Sketch | None:
        """What an entry that is about to be worked out depends on; None if that can't be told."""
        if self.full:
            return None
        what, _, args, kwargs, _, _ = entry
        sketch = Sketch(tuple(kwargs or ()), [], [*args, *(kwargs or {}).values()])
        counts = isinstance(what, Function)
        for value in sketch.values:  # grows by what is in groups
            leaf = self._leaf(tape, value, counts)
            if leaf is None:
                return None
            sketch.leaves.append(leaf)
            if isinstance(leaf, Group):
                if any(type(item) in _GROUPS for item in value):
                    return None
                sketch.values.extend(value)
        return sketch

    def _leaf(self, tape: Tape, value: Any, counts: bool) -> Leaf | None:
        if isinstance(value, Tensor):
            known = tape.known.get(id(value))
            if known is None or known[0]() is not value or value.layout is not torch.strided:
                return None
            return Used(known[1], value.stride(), known[3], state_of(tape, known))
        kind = type(value)
        if not counts:
            return Constant(kind, None, False)
        if kind in _GROUPS:
            return Group(kind, len(value))
        return Constant(kind, value, True) if kind in _CONSTANTS else None

    def add(self, tape: Tape, entry: Entry, sketch: Sketch | None, first: int) -> None:
        """Note what came of an entry.

        Args:
            tape: which has just worked it out.
            entry: the entry.
            sketch: what it depended on.
            first: the first of its rows in the trace.
        """
        number = len(self.steps)
        if number >= MAX_STEPS:
            return
        step = None if sketch is None or not tape.lasting else self._step(tape, entry, sketch, first)
        self.pause -= 1
        if step is None and self._as_expected(entry) and self.steps[self.expected] is None:
            self.expected += 1
            return
        self.whats.append(entry[0])
        self.places.append(entry[1])
        self.steps.append(step)
        if step is None:
            self.barriers.append(number)
        else:
            self.starts.setdefault((entry[0], entry[1]), []).append(number)
        self.expected = number + 1

    def _as_expected(self, entry: Entry) -> bool:
        """Whether an entry looks like the step that was expected."""
        number = self.expected
        return number < len(self.steps) and self.whats[number] is entry[0] and self.places[number] is entry[1]

    def _step(self, tape: Tape, entry: Entry, sketch: Sketch, first: int) -> Step | None:
        what, _, args, _, made, _ = entry
        outputs: tuple[Tensor, ...] = made if isinstance(what, Function) else ()
        if any(output.layout is not torch.strided for output in outputs):
            return None
        tensors = [i for i, leaf in enumerate(sketch.leaves) if isinstance(leaf, Used)]
        queued = {row: how for row, *how in tape.queued}
        rows: list[StepRow] = []
        for number, (op, _, form, back, slots) in enumerate(tape.rows[first:]):
            key = op.function.removeprefix("input:") if op.is_input else op.output
            alias = tensors[number] if back else -1
            rows.append(StepRow(key, form, alias, slots, *queued.get(first + number, (None, None, None))))
        if len(rows) != (len(outputs) if isinstance(what, Function) else len(tensors)):
            return None
        updates: list[tuple[int, Mark, int]] = []
        touched = [(i, o) for i, o in enumerate(outputs)] or [(-1 - i, sketch.values[i]) for i in tensors]
        for place, value in touched:
            known = tape.known[id(value)]
            if known[2] >= first:
                row = known[2] - first
                tape.known[id(value)] = (known[0], known[1], known[2], self.n_rows + row)
                updates.append((place, known[1], row))
        step = Step(
            len(args), sketch.names, sketch.leaves, [o.size() for o in outputs], [o.stride() for o in outputs],
            [o.dtype for o in outputs], self.n_rows, rows, updates, tape.last_outputs,
        )  # fmt: skip
        self.n_rows += len(rows)
        return step

    # ------------------------------------------------------------------ reading

    def follow(self, tape: Tape, columns: Columns, position: int, whole: bool) -> int:
        """Take over a passage that begins at an entry.

        Args:
            tape: whose entries they are.
            columns: its entries.
            position: the first of them.
            whole: False to wait for the rest of a passage of which the tape holds only a part.

        Returns:
            How many entries were taken over, 0 if this one has to be worked out, -1 to wait for more.
        """
        if self.pause > 0:
            return 0
        tried = False
        for start in self._candidates(columns, position):
            length = self._reach(columns, position, start)
            cut_off = position + length == len(columns.whats) and start + length < self._end(start)
            if cut_off and not whole and position:
                return -1
            if start == self.expected:
                shortest = 1 if cut_off else SHORTEST_NEXT
            else:
                shortest = SHORTEST
            if length < shortest:
                continue
            if self._passage(start, length).follow(tape, columns, position):
                self.expected = start + length
                return length
            tried = True
        if tried:
            self.pause = PAUSE
        return 0

    def begin(self) -> None:
        """A call of the model begins."""
        self.expected = self.pause = 0

    def _candidates(self, columns: Columns, position: int) -> list[int]:
        """Steps that an entry may repeat."""
        what, place = columns.whats[position], columns.places[position]
        starts = self.starts.get((what, place))
        if starts is None:
            return []
        found = starts[: -MAX_TRIED - 1 : -1]
        expected = self.expected
        if expected < len(self.whats) and self.whats[expected] is what and self.places[expected] is place:
            found = [expected, *(start for start in found if start != expected)]
        return found

    def _end(self, start: int) -> int:
        """The first step from one on that has to be worked out each time, or that is not there yet."""
        barrier = bisect_left(self.barriers, start)
        return self.barriers[barrier] if barrier < len(self.barriers) else len(self.steps)

    def _reach(self, columns: Columns, position: int, start: int) -> int:
        """How many entries from a position on are the same calls from the same places as those from a step on."""
        most = min(len(columns.whats) - position, self._end(start) - start)
        longest = self.longest.get(start)
        if longest is not None and longest.length == most and longest.looks_like(columns, position):
            return most
        end = start + most
        other = map(is_not, self.whats[start:end], columns.whats[position : position + most])
        most = next(compress(count(), other), most)
        other = map(is_not, self.places[start:end], columns.places[position : position + most])
        return next(compress(count(), other), most)

    def _passage(self, start: int, length: int) -> Passage:
        """The passage of so many steps."""
        found = self.passages.get((start, length))
        if found is None:
            steps = [step for step in self.steps[start : start + length] if step is not None]
            whats, places = self.whats[start : start + length], self.places[start : start + length]
            found = self.passages[start, length] = Passage(whats, places, steps)
        longest = self.longest.get(start)
        if longest is None or length > longest.length:
            self.longest[start] = found
        return found


def state_of(tape: Tape, known: Known) -> tuple[bool, bool, bool]:
    """See `Used`."""
    event = known[2]
    if event < 0:
        return False, False, False
    form = tape.rows[event][2]
    return True, form.shape == known[1].size, form.status == "view"


# ---------------------------------------------------------------------- passages


@dataclass(slots=True, eq=False)
class External:
    """A tensor that comes from before a passage.

    Attributes:
        at: where it is in the pool.
        state: see `Used`; None where nothing depends on it.
    """

    at: int
    mark: Mark
    stride: tuple[int, ...]
    state: tuple[bool, bool, bool] | None


@dataclass(slots=True, eq=False)
class _Frames:
    """The modules of a passage: those on the stack at its beginning that it returns to, the innermost first, then those
    that are entered.
    """

    below: int = 0
    """How many of those on the stack are needed."""
    popped: int = 0
    """How many of them it leaves."""
    entered: int = 0
    open: list[int] = field(default_factory=list[int])
    """Entered, and not left."""

    def top(self) -> int:
        """The innermost module: -1 - depth for one of those on the stack, else the number of an entered one."""
        if self.open:
            return self.open[-1]
        self.below = max(self.below, self.popped + 1)
        return -1 - self.popped

    def enter(self) -> int:
        self.open.append(self.entered)
        self.entered += 1
        return self.open[-1]

    def leave(self) -> int:
        top = self.top()
        if self.open:
            self.open.pop()
        else:
            self.popped += 1
        return top


class Passage:
    """A stretch of the history, and all that has to be compared before another stretch is taken for the same.

    The *pool* holds all values of the stretch that is compared: the outputs of its functions, then the arguments by
    position of all entries, those by keyword, and what is in lists and tuples.
    """

    def __init__(
        self, whats: list[Function | Entering | Leaving], places: list[Place], steps: list[Step]
    ) -> None:
        self.whats, self.places, self.length = tuple(whats), tuple(places), len(steps)
        functions = [i for i, what in enumerate(whats) if isinstance(what, Function)]
        self.entering = [i for i, what in enumerate(whats) if isinstance(what, Entering)]
        self.n_functions = len(functions)
        self.pick_functions, self.pick_modules = _getter(functions), _getter(self.entering)
        self.sizes = [step.n_args for step in steps]
        self.keyworded = [(i, step.names) for i, step in enumerate(steps) if step.names]
        self.n_outputs = [len(steps[i].sizes) for i in functions]
        self.many = any(n != 1 for n in self.n_outputs)
        open_shapes = [
            not (what.of_known_shape and len(step.rows) == 1)
            for step, what in zip(steps, whats, strict=True)
            if isinstance(what, Function)
            for _ in step.sizes
        ]
        self.pick_open = _getter([i for i, is_open in enumerate(open_shapes) if is_open])
        self.shapes = list(compress((size for step in steps for size in step.sizes), open_shapes))
        self.strides = list(compress((stride for step in steps for stride in step.strides), open_shapes))
        self.dtypes = [dtype for step in steps for dtype in step.dtypes]
        self.last = steps[functions[-1]].last if functions else None
        self.first_home = steps[0].first_row

        places_of = self._positions(steps)
        outputs = list(accumulate((len(step.sizes) for step in steps), initial=0))
        row_at: list[int] = []
        """For each row, where its value is in the pool."""
        self.groups: list[tuple[int, type, int]] = []
        self.externals: list[External] = []
        self.rows: list[tuple[int, Function | None, Place, StepRow]] = []
        """With the module that each belongs to, see `_Frames.top`."""
        self.backs: list[int] = []
        """For aliases, how many rows back their value is; 0 where it comes from before the passage."""
        self.far: list[tuple[int, int]] = []
        """Rows that are aliases of a tensor from before the passage, and the number of that."""
        inner: list[int] = []
        sources: list[int] = []
        constants: list[tuple[int, Constant]] = []
        updates: dict[int, tuple[Mark, int]] = {}
        frames = _Frames()
        for step, what, place, at, output in zip(steps, whats, places, places_of, outputs, strict=False):
            is_function = isinstance(what, Function)
            external: dict[int, int] = {}
            for number, leaf in enumerate(step.leaves):
                if isinstance(leaf, Constant):
                    constants.append((at[number], leaf))
                elif isinstance(leaf, Group):
                    self.groups.append((at[number] - outputs[-1], leaf.kind, leaf.size))
                elif 0 <= leaf.home - self.first_home < len(row_at):
                    inner.append(at[number])
                    sources.append(row_at[leaf.home - self.first_home])
                else:
                    external[number] = len(self.externals)
                    state = None if is_function else leaf.state
                    self.externals.append(External(at[number], leaf.mark, leaf.stride, state))
            if is_function:
                frame = frames.top()
            else:
                frame = frames.enter() if isinstance(what, Entering) else frames.leave()
            tensors = [at[i] for i, leaf in enumerate(step.leaves) if isinstance(leaf, Used)]
            begin = len(self.rows)
            for number, row in enumerate(step.rows):
                back = 0
                if row.alias in external:
                    self.far.append((len(self.rows), external[row.alias]))
                elif row.alias >= 0:
                    leaf = step.leaves[row.alias]
                    assert isinstance(leaf, Used)
                    back = len(row_at) - (leaf.home - self.first_home)
                self.backs.append(back)
                self.rows.append((frame, what if is_function else None, place, row))
                row_at.append(output + number if is_function else tensors[number])
            for which, mark, row in step.updates:
                updates[output + which if which >= 0 else at[-1 - which]] = (mark, begin + row)
        self.frames = frames
        self.pick_inner, self.pick_sources = _getter(inner), _getter(sources)
        self.pick_constants = _getter([at for at, _ in constants])
        self.kinds = [constant.kind for _, constant in constants]
        valued = [(at, constant.value) for at, constant in constants if constant.counts]
        self.pick_valued = _getter([at for at, _ in valued])
        self.values = tuple(value for _, value in valued)
        self._known_afterwards(updates)
        self._to_be_digested(row_at, inner, sources)
        self.taken: dict[tuple[int, tuple[Frame, ...]], list[Row]] = {}
        """By call and modules, the rows."""

    def _positions(self, steps: list[Step]) -> list[list[int]]:
        """Where in the pool each leaf of each step is."""
        n_outputs = sum(len(step.sizes) for step in steps)
        by_position = n_outputs
        by_keyword = by_position + sum(step.n_args for step in steps)
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

    def _known_afterwards(self, updates: dict[int, tuple[Mark, int]]) -> None:
        self.pick_updated = _getter(list(updates))
        self.updated_marks = [mark for mark, _ in updates.values()]
        self.updated_rows = [row for _, row in updates.values()]
        self.updated_homes = [self.first_home + row for row in self.updated_rows]

    def _to_be_digested(self, row_at: list[int], inner: list[int], sources: list[int]) -> None:
        """Which values are queued, how, and with which version."""
        source = dict(zip(inner, sources, strict=True))
        n_outputs = sum(self.n_outputs)
        queued: list[int] = []
        pushed: list[int] = []
        self.queued_rows: list[int] = []
        self.plans: list[Planned] = []
        self.opened: list[tuple[int, Treatment]] = []
        self.odd: list[tuple[int, int, Treatment]] = []
        self.versions: list[int] = []
        """For each queued value, of which output it is; -1 for those from before the passage."""
        for number, ((_, _, _, row), at) in enumerate(zip(self.rows, row_at, strict=True)):
            if row.treatment is None:
                continue
            queued.append(at)
            self.queued_rows.append(number)
            while at in source:
                at = source[at]
            self.versions.append(at if at < n_outputs else -1)
            if row.plan is None:
                self.odd.append((number, queued[-1], row.treatment))
                continue
            pushed.append(queued[-1])
            self.plans.append(row.plan)
            if row.grid is not None:
                pushed.append(queued[-1])
                self.plans.append(row.grid)
                self.opened.append((number, row.treatment))
        self.pick_queued, self.pick_pushed = _getter(queued), _getter(pushed)
        self.all_settled = all(version >= 0 for version in self.versions)
        self.pick_versions = _getter(self.versions) if self.all_settled else _getter([])
        self.n_bytes = sum(plan.n_bytes for plan in self.plans)
        self.open_cells = sum(row.treatment.open_cells for *_, row in self.rows if row.treatment is not None)

    def looks_like(self, columns: Columns, position: int) -> bool:
        """Whether the entries from a position on are the same calls from the same places."""
        end = position + self.length
        return columns.whats[position:end] == self.whats and columns.places[position:end] == self.places

    def follow(self, tape: Tape, columns: Columns, position: int) -> bool:
        """Put entries on the trace that look like this passage, if they are the same in all else; whether they are."""
        pool = self._pool(columns, position)
        if pool is None:
            return False
        externals = self._externals(tape, pool)
        if externals is None:
            return False
        frames = self._modules(tape, columns.made[position : position + self.length])
        if frames is None:
            return False
        self._take(tape, columns, position, pool, externals, frames)
        return True

    # ------------------------------------------------------------------ comparing

    def _pool(self, columns: Columns, position: int) -> list[Any] | None:
        """The values of a stretch, if they go where those of the passage went, and look alike."""
        end = position + self.length
        args, kwargs = columns.args[position:end], columns.kwargs[position:end]
        if list(map(len, args)) != self.sizes or kwargs.count(None) != self.length - len(self.keyworded):
            return None
        given = list(chain.from_iterable(args))
        for index, names in self.keyworded:
            keywords = kwargs[index]
            if keywords is None or tuple(keywords) != names:
                return None
            given += keywords.values()
        for index, kind, size in self.groups:
            group = given[index]
            if type(group) is not kind or len(group) != size:
                return None
            given += group
        made = self.pick_functions(columns.made[position:end])
        if self.many and list(map(len, made)) != self.n_outputs:
            return None
        outputs = list(chain.from_iterable(made))
        pool = outputs + given
        same = (
            len(outputs) == len(self.dtypes)
            and list(map(type, self.pick_constants(pool))) == self.kinds
            and self.pick_valued(pool) == self.values
            and all(map(is_, self.pick_inner(pool), self.pick_sources(pool)))
            and list(map(_dtype, outputs)) == self.dtypes
        )
        if not same:
            return None
        outputs = self.pick_open(outputs)
        same = list(map(_size, outputs)) == self.shapes and list(map(_stride, outputs)) == self.strides
        return pool if same else None

    def _externals(self, tape: Tape, pool: list[Any]) -> list[int] | None:
        """The rows of the tensors from before, if their marks are the same."""
        rows: list[int] = []
        for external in self.externals:
            value = pool[external.at]
            known = tape.known.get(id(value))
            if (
                known is None
                or known[1] is not external.mark
                or known[0]() is not value
                or _stride(value) != external.stride
                or (external.state is not None and state_of(tape, known) != external.state)
            ):
                return None
            rows.append(known[2])
        return rows

    def _modules(self, tape: Tape, made: Sequence[Any]) -> tuple[Frame, ...] | None:
        """The frames of all modules that the rows belong to, if there are as many on the stack."""
        below, stack = self.frames.below, tape.stack
        modules: tuple[nn.Module, ...] = self.pick_modules(made)
        entered = tuple(map(tape.frames.get, map(id, modules)))
        if below > len(stack) or None in entered:
            return None
        if self.open_cells and not tape.fits(self.open_cells):
            return None
        return (*entered, *stack[len(stack) - below :])  # pyright: ignore[reportReturnType]

    # ------------------------------------------------------------------ taking over

    def _take(
        self,
        tape: Tape,
        columns: Columns,
        position: int,
        pool: list[Any],
        externals: list[int],
        frames: tuple[Frame, ...],
    ) -> None:
        rows = self.taken.get((tape.call, frames))
        if rows is None:
            if len(self.taken) >= MAX_TAKEN:
                self.taken.clear()
            rows = self.taken[tape.call, frames] = self._rows(tape.call, frames)
        base = len(tape.rows)
        tape.rows += rows
        for row, number in self.far:
            op, call, form, _, slots = rows[row]
            tape.rows[base + row] = (op, call, form, base + row - externals[number], slots)
        updated = self.pick_updated(pool)
        known = zip(map(ref, updated), self.updated_marks, map(base.__add__, self.updated_rows), self.updated_homes, strict=True)
        tape.known.update(zip(map(id, updated), known, strict=True))
        if tape.digests:
            self._queue(tape, columns, position, pool, base)
        if self.last is not None:
            tape.last_outputs = self.last
        if self.frames.popped:
            del tape.stack[-self.frames.popped :]
            del tape.arguments[-self.frames.popped :]
        for number in self.frames.open:
            entry = position + self.entering[number]
            tape.stack.append(frames[number])
            tape.arguments.append((columns.args[entry], columns.kwargs[entry] or {}))

    def _rows(self, call: int, frames: tuple[Frame, ...]) -> list[Row]:
        rows: list[Row] = []
        for (frame, what, place, row), back in zip(self.rows, self.backs, strict=True):
            op = _op(frames[frame], what, place, row)
            rows.append((op, call, row.form, back, row.slots))
        return rows

    def _queue(self, tape: Tape, columns: Columns, position: int, pool: list[Any], base: int) -> None:
        """Have the values digested with the next flush."""
        tape.batch.extend(self.pick_pushed(pool), self.plans)
        tape.opened += [(base + row, treatment) for row, treatment in self.opened]
        for row, at, treatment in self.odd:
            tape.odd.append((base + row, pool[at].detach(), treatment))
            tape.pending_bytes += pool[at].nbytes
        queued = self.pick_queued(pool)
        tape.pending += queued
        tape.pending_rows += map(base.__add__, self.queued_rows)
        tape.pending_versions += self._versions(tape, columns, position, queued)
        tape.pending_bytes += self.n_bytes
        tape.open_cells += self.open_cells

    def _versions(
        self, tape: Tape, columns: Columns, position: int, queued: Sequence[Tensor]
    ) -> Sequence[int]:
        """How often the queued values had been written to when the function after the one that made them was called."""
        begin = columns.calls[position]
        settled = columns.versions[begin : begin + self.n_functions]
        if self.all_settled and not self.many:
            return self.pick_versions(settled)
        outputs = list(chain.from_iterable(self.pick_functions(columns.made[position : position + self.length])))
        ends = set(accumulate(self.n_outputs))
        now = [settled.pop(0) if at + 1 in ends else version_of(o) for at, o in enumerate(outputs)]
        return [
            now[at] if at >= 0 else version_of(value)
            for at, value in zip(self.versions, queued, strict=True)
        ]


def _op(frame: Frame, what: Function | None, place: Place, row: StepRow) -> Op:
    if isinstance(row.key, str):
        return frame.visits_in(row.key).ops[0]
    if what is None:
        return frame.visits_out(row.key).ops[0]
    return frame.visits_of(what, place, row.key + 1).ops[row.key]


def _getter(positions: list[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What picks several entries of a sequence."""
    if not positions:
        return lambda _: ()
    if len(positions) == 1:
        (position,) = positions
        return lambda values: (values[position],)
    return itemgetter(*positions)  # pyright: ignore[reportReturnType]
