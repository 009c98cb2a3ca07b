"""The history: all entries of tapes that were worked out, so that a stretch whose like was read before is found.

The layers of a model do the same again and again, and so do its runs. So whatever is worked out entry by entry is also
noted down as a `Step`. Where a later stretch of the tape shows the same calls from the same places, it is compared as a
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
from forkpoint.capture.pattern import Columns, is_odd
from forkpoint.capture.sites import NOWHERE, CallStack
from forkpoint.capture.steps import Constant, Group, Leaf, Sketch, Step, StepRow, Used, state_of

if TYPE_CHECKING:
    from forkpoint.capture.ledger import Ledger

SHORTEST = 24
"""Fewer entries are worked out one by one, so that the history has whole layers in it and not what small parts of them
have left over; unless they are what came next the last time."""
SHORTEST_NEXT = 4
MAX_STEPS = 1 << 14
"""Most steps of a history; what comes after them is worked out each time."""
MAX_TIMES = 4
"""How many times as many steps as the longest call has entries are kept for the next call. What lies between others
and is too short for a passage is worked out and noted each time anew, so that a history grows with every run."""
SPARE = 64
"""Steps that are kept besides."""
MAX_PASSAGES = 1 << 8
MAX_TRIED = 4
"""How many earlier places are tried for a stretch that looks the same."""
PAUSE = 8
"""Entries that are worked out after a stretch turned out to be another, before the next is looked for."""

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
    """All entries that were worked out for calls whose tokens lie alike, one after the other."""

    def __init__(self) -> None:
        self.whats: list[Function | Entering | Leaving] = []
        self.places: list[CallStack] = []
        self.steps: list[Step | None] = []
        """None for what has to be worked out each time."""
        self.barriers: list[int] = []
        """The numbers of those."""
        self.n_rows = next(_histories) << 32
        """The number of the next row; each history has numbers of its own."""
        self.starts: dict[tuple[Any, CallStack], list[int]] = {}
        """By what ran and where from, the steps."""
        self.passages: dict[tuple[int, int], Passage] = {}
        """By first step and length."""
        self.longest: dict[int, Passage] = {}
        """By first step."""
        self.expected = 0
        """The step that would come next, if what comes is what came before."""
        self.pause = 0
        self.broken = False
        """Whether the next step does not follow the last: something came in between that is no step."""
        self.entries = self.most_entries = 0
        """Of the call that runs, and of the longest call."""

    @property
    def full(self) -> bool:
        return len(self.steps) >= MAX_STEPS

    @property
    def overgrown(self) -> bool:
        """Whether most of what it holds can't be of use: it is better to begin anew."""
        return len(self.steps) > MAX_TIMES * self.most_entries + SPARE

    # ------------------------------------------------------------------ writing

    def sketch(self, tape: Ledger, entry: Entry) -> Sketch | None:
        """What an entry that is about to be worked out depends on; None if that can't be told."""
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
            known = tape.known.get(id(value))
            if known is None or known[0]() is not value or is_odd(value):
                return None
            form = None if known[2] < 0 else tape.rows[known[2]][2]
            return Used(known[1], value.stride(), known[3], state_of(tape, known), form)
        kind = type(value)
        if not counts:
            return Constant(kind, None, False)
        if kind in _GROUPS:
            return Group(kind, len(value))
        if kind is slice and not all(type(part) in _BOUNDS for part in (value.start, value.stop, value.step)):
            return None
        return Constant(kind, value, True) if kind in _CONSTANTS else None

    def add(self, tape: Ledger, entry: Entry, sketch: Sketch | None, first: int) -> None:
        """Note what came of an entry.

        Args:
            tape: which has just worked it out.
            entry: the entry.
            sketch: what it depended on.
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

    def _append(self, what: Function | Entering | Leaving, place: CallStack, step: Step | None) -> None:
        if step is None:
            self.barriers.append(len(self.steps))
        self.whats.append(what)
        self.places.append(place)
        self.steps.append(step)

    def _as_expected(self, entry: Entry) -> bool:
        """Whether an entry looks like the step that was expected."""
        number = self._next()
        return number < len(self.steps) and self.whats[number] is entry[0] and self.places[number] is entry[1]

    def _next(self) -> int:
        """The step that would come next; not a barrier that only stands where something else came in between."""
        if self.expected < len(self.steps) and self.whats[self.expected] is _GAP:
            self.expected += 1
        return self.expected

    def _step(self, tape: Ledger, entry: Entry, sketch: Sketch, first: int) -> Step | None:
        what, _, args, _, made = entry
        outputs: tuple[Tensor, ...] = outputs_in(made) if isinstance(what, Function) else ()
        if any(map(is_odd, outputs)) or (isinstance(what, Function) and what.may_or_may_not_view):
            return None
        tensors = [i for i, leaf in enumerate(sketch.leaves) if isinstance(leaf, Used)]
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
            known = tape.known[id(value)]
            if known[2] >= first:
                row = known[2] - first
                tape.known[id(value)] = (known[0], known[1], known[2], self.n_rows + row)
                updates.append((place, known[1], row))
        step = Step(
            len(args), sketch.names, sketch.leaves, [o.size() for o in outputs], [o.stride() for o in outputs],
            [o.dtype for o in outputs], [o.get_device() for o in outputs], self.n_rows, rows, updates, tape.resolver.last_outputs,
        )  # fmt: skip
        self.n_rows += len(rows)
        return step

    # ------------------------------------------------------------------ reading

    def follow(self, tape: Ledger, columns: Columns, position: int, whole: bool) -> int:
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

    def _candidates(self, columns: Columns, position: int) -> list[int]:
        """Steps that an entry may repeat."""
        what, place = columns.whats[position], columns.places[position]
        starts = self.starts.get((what, place))
        if starts is None:
            return []
        found = starts[: -MAX_TRIED - 1 : -1]
        expected = self._next()
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
            if len(self.passages) >= MAX_PASSAGES:
                self.passages.clear()
                self.longest.clear()
            steps = [step for step in self.steps[start : start + length] if step is not None]
            whats, places = self.whats[start : start + length], self.places[start : start + length]
            found = self.passages[start, length] = Passage(whats, places, steps)
        longest = self.longest.get(start)
        if longest is None or length > longest.length:
            self.longest[start] = found
        return found
