"""The history: every entry of the tape that was worked out, so that a later stretch that repeats it can be taken over.

The layers of a model do the same again and again, and so do its runs. So whatever is worked out entry by entry is also
noted down as a `HistoryStep`. Where a later stretch of the tape shows the same calls from the same places, it is compared as a
whole with the `Passage` of those steps and, if it is the same in all else, taken over.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import compress, count
from operator import is_not
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forkpoint.capture.functions import Function
from forkpoint.capture.marks import Entering, Leaving, Mark
from forkpoint.capture.mode import Entry, outputs_in
from forkpoint.capture.passages import Passage
from forkpoint.capture.pattern import TapeColumns, is_odd
from forkpoint.capture.sites import NOWHERE, CallStack
from forkpoint.capture.steps import (
    Constant,
    Group,
    HistoryStep,
    Leaf,
    Sketch,
    StepRow,
    TensorArgument,
    state_of,
)

if TYPE_CHECKING:
    from forkpoint.capture.ledger import Ledger

SHORTEST = 24
"""Entries that a passage has at least: shorter ones would cut layers into small pieces."""
SHORTEST_NEXT = 4
"""The same for a passage that comes right after the one before, as it did the last time."""
MAX_STEPS = 1 << 14
"""Most steps of a history; entries beyond them are worked out each time."""
MAX_TIMES = 4
"""A history of more steps than this many times the entries of the longest call (and `SPARE`) is given up: stretches too
short for a passage are worked out and noted anew in each run, so that it grows with every run."""
SPARE = 64
MAX_PASSAGES = 1 << 8
MAX_TRIED = 4
"""How many earlier steps are tried as the beginning of a passage."""
PAUSE = 8
"""Entries that are worked out after a comparison failed, before the next passage is tried."""

_CONSTANTS = frozenset(
    {int, bool, float, complex, str, type(None), type(...), slice, torch.dtype, torch.device, torch.layout,
     torch.memory_format, type}
)  # fmt: skip
"""Kinds of arguments that are the same if they are equal."""
_BOUNDS = frozenset({int, type(None)})
_GROUPS = frozenset({tuple, list, torch.Size})
"""Kinds of arguments of which each entry is looked at."""
_histories = count()
_GAP = Leaving()
"""Stands between steps that did not follow each other."""


class History:
    """The steps of all calls whose tokens lie alike, in the order in which they were worked out.

    `whats`, `places` and `steps` have an element for each: what ran, where it was called, and the step.
    """

    def __init__(self) -> None:
        self.whats: list[Function | Entering | Leaving] = []
        self.places: list[CallStack] = []
        self.steps: list[HistoryStep | None] = []
        """None for an entry that has to be worked out each time: no passage goes across it."""
        self.barriers: list[int] = []
        """The indices of those, ascending."""
        self.n_rows = next(_histories) << 32
        """The number of the next row; the numbers of two histories never meet."""
        self.starts: dict[tuple[Any, CallStack], list[int]] = {}
        """The steps at which something was called, by what it was and where."""
        self.passages: dict[tuple[int, int], Passage] = {}
        """By first step and length."""
        self.longest: dict[int, Passage] = {}
        """By first step."""
        self.expected = 0
        """The step that the next entry repeats, if the call goes on as it did the last time."""
        self.pause = 0
        """How many entries are still to be worked out before the next passage is tried; see `PAUSE`."""
        self.broken = False
        """Whether something that is no step came after the last one: the next doesn't follow it."""
        self.entries = self.most_entries = 0
        """Entries read in this call of the model, and in the longest call."""

    @property
    def full(self) -> bool:
        return len(self.steps) >= MAX_STEPS

    @property
    def overgrown(self) -> bool:
        """Whether it has grown so far that most of it can't be of use: it is better to begin a new one."""
        return len(self.steps) > MAX_TIMES * self.most_entries + SPARE

    # ------------------------------------------------------------------ writing

    def sketch(self, tape: Ledger, entry: Entry) -> Sketch | None:
        """What the result of an entry depends on, noted before it is worked out; None if that can't be told."""
        if self.full:
            return None
        what, _, args, kwargs, _ = entry
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

    def _leaf(self, tape: Ledger, value: Any, counts: bool) -> Leaf | None:
        if isinstance(value, Tensor):
            record = tape.tensors.get(id(value))
            if record is None or record[0]() is not value or is_odd(value):
                return None
            form = None if record[2] < 0 else tape.rows[record[2]][2]
            return TensorArgument(record[1], value.stride(), record[3], state_of(tape, record), form)
        kind = type(value)
        if not counts:
            return Constant(kind, None, False)
        if kind in _GROUPS:
            return Group(kind, len(value))
        if kind is slice and not all(type(part) in _BOUNDS for part in (value.start, value.stop, value.step)):
            return None
        return Constant(kind, value, True) if kind in _CONSTANTS else None

    def add(self, tape: Ledger, entry: Entry, sketch: Sketch | None, first: int) -> None:
        """Add a step: what an entry depended on, and the rows that came of it.

        Args:
            tape: which has just worked the entry out.
            entry: the entry.
            sketch: what `sketch` gave for it.
            first: the first of its rows in the trace.
        """
        self._count(1)
        if self.full:
            return
        step = None if sketch is None or not tape.lasting else self._step(tape, entry, sketch, first)
        self.pause -= 1
        if step is None and self._as_expected(entry) and self.steps[self.expected] is None:
            self.expected += 1
            self.broken = True
            return
        if self.broken and self.steps:
            self._append(_GAP, NOWHERE, None)
        self.broken = False
        number = len(self.steps)
        self._append(entry[0], entry[1], step)
        if step is not None:
            self.starts.setdefault((entry[0], entry[1]), []).append(number)
        self.expected = number + 1

    def _append(
        self, what: Function | Entering | Leaving, place: CallStack, step: HistoryStep | None
    ) -> None:
        if step is None:
            self.barriers.append(len(self.steps))
        self.whats.append(what)
        self.places.append(place)
        self.steps.append(step)

    def _as_expected(self, entry: Entry) -> bool:
        """Whether an entry is the same call from the same place as the expected step."""
        number = self._next()
        return number < len(self.steps) and self.whats[number] is entry[0] and self.places[number] is entry[1]

    def _next(self) -> int:
        """`expected`, moved past the gap if there is one."""
        if self.expected < len(self.steps) and self.whats[self.expected] is _GAP:
            self.expected += 1
        return self.expected

    def _step(self, tape: Ledger, entry: Entry, sketch: Sketch, first: int) -> HistoryStep | None:
        what, _, args, _, made = entry
        outputs: tuple[Tensor, ...] = outputs_in(made) if isinstance(what, Function) else ()
        if any(map(is_odd, outputs)) or (isinstance(what, Function) and what.may_or_may_not_view):
            return None
        tensors = [i for i, leaf in enumerate(sketch.leaves) if isinstance(leaf, TensorArgument)]
        queued = {row: (treatment, plan, grid) for row, treatment, plan, grid in tape.queued}
        rows: list[StepRow] = []
        for number, (op, _, form, back, slots) in enumerate(tape.rows[first:]):
            key = op.function.removeprefix("input:") if op.is_input else op.output
            near = back if back and back <= number else 0
            alias = tensors[number] if back and not near else -1
            rows.append(
                StepRow(key, form, alias, near, slots, *queued.get(first + number, (None, None, None)))
            )
        if len(rows) != (len(outputs) if isinstance(what, Function) else len(tensors)):
            return None
        updates: list[tuple[int, Mark, int]] = []
        touched = [(i, o) for i, o in enumerate(outputs)] or [(-1 - i, sketch.values[i]) for i in tensors]
        for place, value in touched:
            record = tape.tensors[id(value)]
            if record[2] >= first:
                row = record[2] - first
                tape.tensors[id(value)] = (record[0], record[1], record[2], self.n_rows + row)
                updates.append((place, record[1], row))
        step = HistoryStep(
            len(args), sketch.names, sketch.leaves, [o.size() for o in outputs], [o.stride() for o in outputs],
            [o.dtype for o in outputs], [o.get_device() for o in outputs], self.n_rows, rows, updates, tape.resolver.last_outputs,
        )  # fmt: skip
        self.n_rows += len(rows)
        return step

    # ------------------------------------------------------------------ reading

    def follow(self, tape: Ledger, columns: TapeColumns, position: int, whole: bool) -> int:
        """Put a whole stretch of entries on the trace, if it repeats a passage.

        Args:
            tape: gets the rows.
            columns: the entries that wait on it.
            position: the entry at which the stretch begins.
            whole: False to wait where the entries so far may be the beginning of a passage that is still coming.

        Returns:
            How many entries were taken over; 0 if this one has to be worked out; -1 to wait for more.
        """
        if self.pause > 0:
            return 0
        tried = False
        for start in self._candidates(columns, position):
            length = self._reach(columns, position, start)
            cut_off = position + length == len(columns.whats) and start + length < self._end(start)
            if cut_off and not whole and position:
                return -1
            shortest = SHORTEST_NEXT if start == self.expected else SHORTEST
            if length < shortest and not (cut_off and start == self.expected):
                continue
            if self._passage(start, length).follow(tape, columns, position):
                self.expected = start + length
                self.broken = True
                self._count(length)
                return length
            tried = True
        if tried:
            self.pause = PAUSE
        return 0

    def begin(self) -> None:
        """A call of the model begins."""
        self.expected = self.pause = self.entries = 0
        self.broken = True

    def _count(self, entries: int) -> None:
        self.entries += entries
        self.most_entries = max(self.most_entries, self.entries)

    def _candidates(self, columns: TapeColumns, position: int) -> list[int]:
        """The steps that are the same call from the same place as an entry, the expected one first, then the latest."""
        what, place = columns.whats[position], columns.places[position]
        starts = self.starts.get((what, place))
        if starts is None:
            return []
        candidates = starts[: -MAX_TRIED - 1 : -1]
        expected = self._next()
        if expected < len(self.whats) and self.whats[expected] is what and self.places[expected] is place:
            candidates = [expected, *(start for start in candidates if start != expected)]
        return candidates

    def _end(self, start: int) -> int:
        """Where a passage that begins at a step has to end: at the next barrier, or at the end of the history."""
        barrier = bisect_left(self.barriers, start)
        return self.barriers[barrier] if barrier < len(self.barriers) else len(self.steps)

    def _reach(self, columns: TapeColumns, position: int, start: int) -> int:
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
        """The passage of a number of steps, made if it isn't there yet."""
        passage = self.passages.get((start, length))
        if passage is None:
            if len(self.passages) >= MAX_PASSAGES:
                self.passages.clear()
                self.longest.clear()
            steps = [step for step in self.steps[start : start + length] if step is not None]
            whats, places = self.whats[start : start + length], self.places[start : start + length]
            passage = self.passages[start, length] = Passage(whats, places, steps)
        longest = self.longest.get(start)
        if longest is None or length > longest.length:
            self.longest[start] = passage
        return passage
