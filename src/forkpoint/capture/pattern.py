"""Patterns: what a stretch of the tape has to be like before it is taken for a passage, compared as a whole.

The comparison is made for every layer of every run, so that it is also written in C (`native/passage.c`), which is
taken where it was compiled. What it does is said here, in loops that run inside the interpreter; both do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from forkpoint.capture.functions import Function
from forkpoint.capture.marks import Entering, Frame, Known, Leaving, Mark
from forkpoint.capture.mode import Entry, outputs_in
from forkpoint.capture.sites import CallStack
from forkpoint.capture.steps import state_of
from forkpoint.capture.trace import Form
from forkpoint.native import compiled
from forkpoint.native.choice import choose

if TYPE_CHECKING:
    from forkpoint.capture.ledger import Ledger

Arguments = tuple[Any, ...]
Keywords = dict[str, Any] | None

size_of: Callable[[Tensor], torch.Size] = torch.Tensor.size  # pyright: ignore[reportAssignmentType]
stride_of: Callable[[Tensor], tuple[int, ...]] = torch.Tensor.stride  # pyright: ignore[reportAssignmentType]
device_of: Callable[[Tensor], int] = torch.Tensor.get_device
_dtype: Callable[[Tensor], torch.dtype] = attrgetter("dtype")


@dataclass(slots=True, eq=False)
class Columns:
    """What is read of a tape in one go: the entries on it, each of their fields in a list of its own.

    Attributes:
        versions: for each function among them, how often its last output had been written to when the next was called;
            for the last of them that is told.
        functions: how many of those that were read so far are functions.
    """

    whats: list[Function | Entering | Leaving]
    places: list[CallStack]
    args: list[Arguments]
    kwargs: list[Keywords]
    made: list[Any]
    versions: list[int]
    functions: int = 0

    def entry(self, position: int) -> Entry:
        """One of the entries."""
        return (
            self.whats[position], self.places[position], self.args[position], self.kwargs[position],
            self.made[position],
        )  # fmt: skip


@dataclass(slots=True, eq=False)
class Guards:
    """What a stretch has to be like.

    Its *pool* holds all its values: the outputs of its functions, then the arguments by position of all entries, those
    by keyword, and what is in lists and tuples.

    Attributes:
        entering: which of its entries enter a module.
        functions: which are functions.
        n_outputs: how many outputs each of them has.
        sizes: how many arguments by position each entry has.
        names: what its arguments by keyword are called; None without any.
        groups: which arguments are lists or tuples, counted from the first argument.
        group_kinds, group_sizes: of which kind, and how long.
        tensor_groups: where in the pool those are that hold tensors.
        constants: where in the pool values are that are no tensors.
        kinds: the class of each.
        valued: where those are whose value counts.
        values: what they are equal to.
        inner: where the stretch uses what it made or met before.
        sources: where that was.
        dtypes: of each output.
        looked_at: which outputs may have another shape though all went in as it did.
        shapes, strides, devices: what those have.
        externals: where tensors are that come from before it.
        external_marks, external_strides: what they have to have.
        external_states: see `Used`; None where nothing depends on it.
        external_forms: what had those states; None for what has no row.
        updated: where those are of which something is known after it.
        updated_marks, updated_rows, updated_homes: their marks, the rows that hold their values, counted from its
            first, and the rows of the history that those repeat.
        updated_holders: how often the pool and what the tape holds of the stretch hold each.
        queued: where those are that are digested.
        queued_rows: their rows, counted from the first.
        pushed: which of them a batch gets, some of them twice.
    """

    entering: list[int] = field(default_factory=list[int])
    functions: list[int] = field(default_factory=list[int])
    n_outputs: list[int] = field(default_factory=list[int])
    sizes: list[int] = field(default_factory=list[int])
    names: list[tuple[str, ...] | None] = field(default_factory=list[Any])
    groups: list[int] = field(default_factory=list[int])
    group_kinds: list[type] = field(default_factory=list[type])
    group_sizes: list[int] = field(default_factory=list[int])
    tensor_groups: list[int] = field(default_factory=list[int])
    constants: list[int] = field(default_factory=list[int])
    kinds: list[type] = field(default_factory=list[type])
    valued: list[int] = field(default_factory=list[int])
    values: list[Any] = field(default_factory=list[Any])
    inner: list[int] = field(default_factory=list[int])
    sources: list[int] = field(default_factory=list[int])
    dtypes: list[torch.dtype] = field(default_factory=list[torch.dtype])
    looked_at: list[int] = field(default_factory=list[int])
    shapes: list[torch.Size] = field(default_factory=list[torch.Size])
    strides: list[tuple[int, ...]] = field(default_factory=list[Any])
    devices: list[int] = field(default_factory=list[int])
    externals: list[int] = field(default_factory=list[int])
    external_marks: list[Mark] = field(default_factory=list[Mark])
    external_strides: list[tuple[int, ...]] = field(default_factory=list[Any])
    external_states: list[tuple[bool, bool, bool] | None] = field(default_factory=list[Any])
    external_forms: list[Form | None] = field(default_factory=list[Any])
    updated: list[int] = field(default_factory=list[int])
    updated_marks: list[Mark] = field(default_factory=list[Mark])
    updated_rows: list[int] = field(default_factory=list[int])
    updated_homes: list[int] = field(default_factory=list[int])
    updated_holders: list[int] = field(default_factory=list[int])
    queued: list[int] = field(default_factory=list[int])
    queued_rows: list[int] = field(default_factory=list[int])
    pushed: list[int] = field(default_factory=list[int])


class PythonPattern:
    """Compares stretches of the tape with what one has to be like."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.keyworded = [(i, names) for i, names in enumerate(guards.names) if names is not None]
        self.many = any(n != 1 for n in guards.n_outputs)
        self.values = tuple(guards.values)
        self.pick_functions = getter(guards.functions)
        self.pick_constants, self.pick_valued = getter(guards.constants), getter(guards.valued)
        self.pick_inner, self.pick_sources = getter(guards.inner), getter(guards.sources)
        self.pick_looked_at, self.pick_updated = getter(guards.looked_at), getter(guards.updated)
        self.pick_entering = getter(guards.entering)
        self.pick_queued, self.pick_pushed = getter(guards.queued), getter(guards.pushed)

    def pool(
        self,
        args: list[Arguments],
        kwargs: list[Keywords],
        made: list[Any],
        position: int,
    ) -> list[Any] | None:
        """The values of a stretch, if they went where they should, and look as they should.

        Args:
            args, kwargs, made: of all entries, see `Columns`.
            position: the first of the stretch; as many entries as it needs are there.

        Raises:
            RuntimeError: a sparse tensor has no strides.
        """
        guards = self.guards
        end = position + len(guards.sizes)
        args, kwargs = args[position:end], kwargs[position:end]
        if list(map(len, args)) != guards.sizes or kwargs.count(None) != len(kwargs) - len(self.keyworded):
            return None
        given = list(chain.from_iterable(args))
        for index, names in self.keyworded:
            keywords = kwargs[index]
            if keywords is None or tuple(keywords) != names:
                return None
            given += keywords.values()
        for index, kind, size in zip(guards.groups, guards.group_kinds, guards.group_sizes, strict=True):
            group = given[index]
            if type(group) is not kind or len(group) != size:
                return None
            given += group
        outputs = list(self.pick_functions(made[position:end]))
        if self.many or tuple in set(map(type, outputs)):
            results = list(map(outputs_in, outputs))
            if list(map(len, results)) != guards.n_outputs:
                return None
            outputs = list(chain.from_iterable(results))
        pool = outputs + given
        same = (
            len(outputs) == len(guards.dtypes)
            and list(map(type, self.pick_constants(pool))) == guards.kinds
            and self.pick_valued(pool) == self.values
            and all(map(is_, self.pick_inner(pool), self.pick_sources(pool)))
            and list(map(_dtype, outputs)) == guards.dtypes
        )
        if not same:
            return None
        looked_at = self.pick_looked_at(outputs)
        same = (
            list(map(size_of, looked_at)) == guards.shapes
            and list(map(stride_of, looked_at)) == guards.strides
            and list(map(device_of, looked_at)) == guards.devices
        )
        return pool if same else None

    def rows_before(self, pool: list[Any], known: dict[int, Known], tape: Ledger) -> list[int] | None:
        """The rows of the tensors from before, if their marks are what they should be.

        Raises:
            RuntimeError: a sparse tensor has no strides.
        """
        guards = self.guards
        rows: list[int] = []
        for at, mark, stride, state in zip(
            guards.externals,
            guards.external_marks,
            guards.external_strides,
            guards.external_states,
            strict=True,
        ):
            value = pool[at]
            found = known.get(id(value))
            if (
                found is None
                or found[1] is not mark
                or found[0]() is not value
                or stride_of(value) != stride
                or is_odd(value)
                or (state is not None and state_of(tape, found) != state)
            ):
                return None
            rows.append(found[2])
        return rows

    def note(
        self,
        pool: list[Any],
        known: dict[int, Known],
        first: int,
        args: list[Arguments],  # noqa: ARG002 - looked at in C
        kwargs: list[Keywords],  # noqa: ARG002
        made: list[Any],  # noqa: ARG002
        position: int,  # noqa: ARG002
    ) -> None:
        """Note what is known of the stretch's tensors, now that its rows are on the trace from one on.

        The C leaves out what nobody but the tape holds any longer: it can't be met again.
        """
        guards = self.guards
        updated = self.pick_updated(pool)
        rows = map(first.__add__, guards.updated_rows)
        entries = zip(map(ref, updated), guards.updated_marks, rows, guards.updated_homes, strict=True)
        known.update(zip(map(id, updated), entries, strict=True))

    def frames(
        self, made: list[Any], position: int, frames: dict[int, Frame], stack: list[Frame], below: int
    ) -> tuple[Frame, ...] | None:
        """The frames of the modules that the stretch enters, and of those on the stack that it needs, if they are there.

        Args:
            made: of all entries, see `Columns`.
            position: the first of the stretch.
            frames: of the model's own modules, by their ids.
            stack: of the modules that were entered, and not left.
            below: how many of them the stretch needs.
        """
        modules = self.pick_entering(made[position : position + len(self.guards.sizes)])
        entered = [frames.get(id(module)) for module in modules]
        if not stack or below > len(stack) or None in entered or stack[0] in entered:
            return None
        return (*entered, *stack[len(stack) - below :])  # pyright: ignore[reportReturnType]

    def queue(self, pool: list[Any], first: int, values: list[Tensor], rows: list[int]) -> tuple[Tensor, ...]:
        """Append the values that are to be digested, and their rows; returns those that a batch gets.

        Args:
            pool: the values of the stretch.
            first: the first of its rows.
            values, rows: all that wait for their digest.
        """
        values += self.pick_queued(pool)
        rows += map(first.__add__, self.guards.queued_rows)
        return self.pick_pushed(pool)


def is_odd(value: Tensor) -> bool:
    """Whether what is made of a tensor depends on more than its size, dtype and strides."""
    return value.layout is not torch.strided or value.is_nested or value.is_conj() or value.is_neg()


def getter(positions: list[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What picks several entries of a sequence."""
    if not positions:
        return lambda _: ()
    if len(positions) == 1:
        (position,) = positions
        return lambda values: (values[position],)
    return itemgetter(*positions)  # pyright: ignore[reportReturnType]


if TYPE_CHECKING or compiled is None:
    Pattern = PythonPattern
else:
    _no_count: Callable[[Tensor], int] = lambda _: 0  # noqa: E731
    use_count: Callable[[Tensor], int] = getattr(Tensor, "_use_count", _no_count)
    """How many in torch hold a tensor, its object in Python being one of them; 0 where torch does not tell."""
    compiled.connect_passages(
        size_of, stride_of, device_of, Tensor.is_conj, Tensor.is_neg, use_count, torch.strided, state_of
    )
    Pattern = choose(PythonPattern, "Pattern")
