"""A trace: the table op × token coordinate → 64-bit digest of one run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.series import Series
from forkpoint.capture.sites import Site
from forkpoint.runs.modules import unwrapped
from forkpoint.support.memory import Shelf, Shelved, load_array

WHOLE = -2
"""Id of the cell of a value that has no token coordinate at all."""

Digests = NDArray[np.int64]
Width = int | NDArray[np.int64]


@dataclass(frozen=True)
class Op:
    """One op of a model: in another run of it the same op has the same `key`, and of a wrapped one the same `Trace.key`.

    Attributes:
        module: path of the module in the model, empty for the root.
        function: public name of the torch function; `input:NAME` and `output` for what goes into and
            comes out of a module.
        site: where the source calls it.
        output: which of its outputs, from 0.
    """

    module: str
    function: str
    site: Site
    output: int = 0

    @property
    def key(self) -> Hashable:
        return (self.module, self.function, self.site.chain, self.output)

    @property
    def name(self) -> str:
        """`module/function`, as reports name it."""
        return f"{self.module or '(model)'}/{self.function}"

    @property
    def place(self) -> str:
        """`module/function (file.py:line)`; the name alone for what no line of source calls, as a module's output."""
        return self.name if self.is_boundary or not self.site.line else f"{self.name} ({self.site.short})"

    @property
    def is_input(self) -> bool:
        return self.function.startswith("input:")

    @property
    def is_boundary(self) -> bool:
        """Whether it stands for a module's input or output, not for a torch function."""
        return self.is_input or self.function == "output"


@dataclass(frozen=True, eq=False)
class Cells:
    """Which coordinate each digest of a value stands for; shared by all values laid out alike.

    Attributes:
        kind: `rows` (a digest per coordinate), `pair` (per query, over the keys of its sample, at or
            before it and after it), or `open` (some dimensions are as long as the call's tokens
            though no token is known to be in them: a digest for each index along them, too).
        ids: the coordinate of each cell; `WHOLE` alone for a value that has none.
        open_dims: for `open`, the dimensions of the value in question, ascending.
        open_sizes: and their sizes.
        row_dims: dimensions of the value along which the coordinates vary, ascending.
        keys: for `pair`, [cells, 4]: how many keys at or before the query, the sum of their
            positions, and the same for keys after it.
    """

    kind: str
    ids: NDArray[np.int32]
    open_dims: tuple[int, ...] = ()
    open_sizes: tuple[int, ...] = ()
    keys: NDArray[np.int64] | None = None
    row_dims: tuple[int, ...] = ()


@dataclass(eq=False, slots=True)
class Event:
    """One value of one op, as it passed by.

    Attributes:
        op: index of the op in `Trace.ops`.
        call: index of the forward call.
        status: `digest`, `view` (another value's elements), `alias` (another event's value, whole),
            or `skipped` with a reason.
        width: elements in each cell: one number, or [cells] where they differ.
        digests: [cells] for `rows`; [cells, 2] for `pair`; [cells, *open_sizes] for `open`.
        flat: for `open`, [cells], the digests of the cells with those dimensions taken in.
        alias: for `alias`, the index of the event whose value this is.
        nth: how often the op had run in this call before.
    """

    op: int
    call: int
    status: str
    shape: tuple[int, ...]
    dtype: str
    floating: bool
    nth: int
    cells: Cells | None = None
    width: Width = 0
    digests: Digests | None = None
    flat: Digests | None = None
    alias: int = -1
    reason: str = ""


@dataclass(eq=False, slots=True)
class Form:
    """What many events have in common; the fields are those of `Event`."""

    status: str
    shape: tuple[int, ...]
    dtype: str
    floating: bool
    cells: Cells
    width: Width
    reason: str


Row = tuple[Op, int, Form, int, int]
"""An event as it is recorded: (op, call, form, back, slots).

`back` says for an alias how many rows back its value is, else it is 0; `slots` how many slots of the batch of digests it takes.
Nothing in a row says where in the trace it is, so that the same rows serve each time a passage is repeated.
"""


@dataclass(eq=False)
class Trace:
    """All events of a run, in the order of execution, and the ops that they are of.

    Attributes:
        table: the coordinates of the run.
        rows: the events as they were recorded.
        digests: gives the digests in a slot of the batch.
        completion: waits for the device and sorts the digests; called once, when somebody asks for one. None before the end of
            the run, and afterwards.
        odd: by row, the digests that were computed one by one (pairs, cells of several rows, open cells), and those without
            the open dimensions.
        skipped: by row, why a value that was to be digested wasn't.
        shelf: where the digests are, if not all of them may stay in memory; events then hold none, see `held`.
    """

    table: CoordinateTable
    rows: list[Row] = field(default_factory=list[Row])
    digests: Callable[[int], Digests] = field(default=lambda _: np.zeros(0, dtype=np.int64))
    completion: Callable[[], None] | None = None
    odd: dict[int, tuple[Digests | Shelved, Digests | Shelved | None]] = field(default_factory=dict[int, Any])
    skipped: dict[int, str] = field(default_factory=dict[int, str])
    shelf: Shelf | None = None
    lengths: list[frozenset[int]] = field(default_factory=list[frozenset[int]])
    """For each call, the sizes that a dimension over its tokens (or over all so far) can have."""
    opaque: list[str] = field(default_factory=list[str])
    """Paths of modules whose functions were not seen, since that would have changed their bits."""
    uncompiled: bool = False
    """Whether functions that are compiled ran as the Python that they were made from."""
    wrapping: str = ""
    """The path below which this model holds the one that the other run has without a wrapper; see `modules.wrappings`."""
    completed: bool = False
    """Whether its digests are at hand."""
    _nths: list[int] = field(default_factory=list[int])
    """`Event.nth` of the first rows, as far as somebody asked."""
    _times: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    """By (id of an op, call), how often the op ran in the rows of `_nths`."""
    _ops: list[Op] = field(default_factory=list[Op])
    _numbered: int = 0
    """How many rows have their ops in `_ops`."""
    _numbers: dict[int, int] = field(default_factory=dict[int, int])
    """By the id of an op, its index in `_ops`; recorders keep one object for each op."""

    @cached_property
    def events(self) -> Sequence[Event]:
        """All events of a finished trace."""
        self.complete()
        return [self.event(index) for index in range(len(self.rows))]

    @property
    def ops(self) -> list[Op]:
        """The ops of a finished trace, in the order in which they were first executed."""
        for row in itertools.islice(self.rows, self._numbered, None):
            self._number(row[0])
        self._numbered = len(self.rows)
        return self._ops

    def by_op(self) -> list[Sequence[int]]:
        """For each of `ops`, the indices of its events in the order of execution."""
        indices: list[list[int]] = [[] for _ in self.ops]
        for index, event in enumerate(self.events):
            indices[event.op].append(index)
        return [*indices]

    def op_of(self, index: int) -> int:
        """The number of the op of an event."""
        return self.events[index].op

    def series(self, events: Sequence[int]) -> Series | None:  # noqa: ARG002 - that of a trace on disk needs them
        """The passes of an op as columns; None where they have to be looked at one by one."""
        return None

    def complete(self) -> None:
        """Wait for the digests, if the run is over and nobody has done so."""
        completion, self.completion = self.completion, None
        if completion is not None:
            completion()
            self.completed = True

    @cached_property
    def slots(self) -> list[int]:
        """For every row of a finished trace, the first slot of its digests, if it has any."""
        return list(itertools.accumulate(map(itemgetter(4), self.rows), initial=0))

    def event(self, index: int) -> Event:
        """One event, also of a trace that is not finished; that one's has no digests yet."""
        op, call, form, back, slots = self.rows[index]
        nth = self.nth(index)
        event = Event(self._number(op), call, form.status, form.shape, form.dtype, form.floating, nth)
        event.reason = form.reason
        if back:
            event.alias, event.status, event.reason = index - back, "alias", ""
        elif index in self.skipped:
            event.status, event.reason = "skipped", self.skipped[index]
        elif index in self.odd:
            event.cells, event.width = form.cells, form.width
            if self.shelf is None:
                event.digests, event.flat = self._odd(index)
        elif slots:
            event.cells, event.width = form.cells, form.width
            if self.completed and self.shelf is None:
                event.digests = self.digests(self.slots[index])
        return event

    def nth(self, index: int) -> int:
        """How often the op of a row had run in its call before."""
        for row in self.rows[len(self._nths) : index + 1]:
            key = (id(row[0]), row[1])
            times = self._times.get(key, 0)
            self._times[key] = times + 1
            self._nths.append(times)
        return self._nths[index]

    def _odd(self, index: int) -> tuple[Digests, Digests | None]:
        digests, flat = self.odd[index]
        return load_array(digests), None if flat is None else load_array(flat)

    def plain(self, module: str) -> str:
        """A module's path as the other run has it."""
        return unwrapped(module, self.wrapping)

    def key(self, op: Op) -> Hashable:
        """The key of an op, equal for the same op of the other run."""
        return (self.plain(op.module), op.function, op.site.chain, op.output)

    def _number(self, op: Op) -> int:
        number = self._numbers.get(id(op))
        if number is None:
            number = self._numbers[id(op)] = len(self._ops)
            self._ops.append(op)
        return number

    def resolve(self, event: Event) -> Event:
        """The event that holds the digests of this one's value."""
        while event.status == "alias":
            event = self.events[event.alias]
        return event

    def held(self, index: int) -> Event:
        """The event that holds the digests of an event's value; with a shelf, a copy of it with the digests read back."""
        event = self.events[index]
        while event.status == "alias":
            index = event.alias
            event = self.events[index]
        if self.shelf is None or event.cells is None:
            return event
        digests, flat = self._odd(index) if index in self.odd else (self.digests(self.slots[index]), None)
        return replace(event, digests=digests, flat=flat)

    def close(self) -> None:
        """Let go of digests that are on a shelf."""
        if self.shelf is not None:
            self.shelf.close()
