"""Patterns: compare a stretch of the tape with the guards of a passage, all entries at once.

The comparison is made for every layer of every run, so that it is also written in C (`native/passage.c`), which is used
where it was compiled. The Python here does the same; its loops run inside built-in functions.
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
from forkpoint.capture.marks import Entering, Frame, Leaving, Mark, TensorRecord
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
class TapeColumns:
    """The entries that are read from the tape in one go, each of their fields in a list of its own; see `mode.Entry`.

    Attributes:
        versions: for each function among the entries, the version of its last output when the next function was called.
        functions: how many functions were read so far: the index into `versions`.
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
    """What must be equal before a stretch of the tape is taken for a passage, and what follows if it is.

    The *pool* of a stretch is one list of all its values: first the outputs of its functions, then the arguments by position
    of all entries, then those by keyword, then what is in lists and tuples. Unless they are said to be indices of entries,
    numbers below are positions in the pool.

    Attributes:
        entering: indices of the entries that enter a module.
        functions: indices of the entries that are functions.
        n_outputs: how many outputs each function has.
        sizes: how many arguments by position each entry has.
        names: the names of each entry's arguments by keyword; None without any.
        groups: the arguments that are lists or tuples, counted from the first argument.
        group_kinds, group_sizes: their classes and lengths.
        tensor_groups: those of them that hold tensors.
        constants: the values that are no tensors.
        kinds: the class of each of them.
        valued: those of them whose value must be equal.
        values: these values.
        inner: arguments that are the same objects as earlier values of the stretch.
        sources: where those are.
        dtypes: of each output.
        looked_at: outputs whose size may differ though all arguments are alike.
        shapes, strides, devices: of those outputs.
        externals: tensors from before the stretch.
        external_marks, external_strides: their marks and strides.
        external_states: their `TensorArgument.state`; None where nothing depends on it.
        external_forms: the forms that had these states; None for what has no row.
        updated: tensors that have a new record after the stretch.
        updated_marks, updated_rows, updated_homes: for these records the mark, the row (counted from the stretch's first) and
            the home.
        updated_holders: how many references the pool and the tape hold to each of them; a tensor with no others is gone.
        queued: values that are digested.
        queued_rows: their rows, counted from the stretch's first.
        pushed: those that the batch gets, one with open cells twice.
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
    """Compares stretches of the tape with the guards of one passage.

    Args:
        guards: of the passage.
    """

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
        """The pool of a stretch, if arguments and outputs pass the guards; else None.

        Args:
            args, kwargs, made: of all entries that wait, see `TapeColumns`.
            position: the first of the stretch, which is on the tape as a whole.

        Raises:
            RuntimeError: a sparse tensor has no strides.
        """
        guards = self.guards
        end = position + len(guards.sizes)
        args, kwargs = args[position:end], kwargs[position:end]
        if list(map(len, args)) != guards.sizes or kwargs.count(None) != len(kwargs) - len(self.keyworded):
            return None
        arguments = list(chain.from_iterable(args))
        for index, names in self.keyworded:
            keywords = kwargs[index]
            if keywords is None or tuple(keywords) != names:
                return None
            arguments += keywords.values()
        for index, kind, size in zip(guards.groups, guards.group_kinds, guards.group_sizes, strict=True):
            group = arguments[index]
            if type(group) is not kind or len(group) != size:
                return None
            arguments += group
        outputs = list(self.pick_functions(made[position:end]))
        if self.many or tuple in set(map(type, outputs)):
            results = list(map(outputs_in, outputs))
            if list(map(len, results)) != guards.n_outputs:
                return None
            outputs = list(chain.from_iterable(results))
        pool = outputs + arguments
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

    def rows_before(
        self, pool: list[Any], tensors: dict[int, TensorRecord], tape: Ledger
    ) -> list[int] | None:
        """The rows that hold the tensors from before the stretch, if these pass the guards; else None.

        Args:
            pool: of the stretch.
            tensors: the records of all tensors, by their ids.
            tape: whose rows the records name.

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
            record = tensors.get(id(value))
            if (
                record is None
                or record[1] is not mark
                or record[0]() is not value
                or stride_of(value) != stride
                or is_odd(value)
                or (state is not None and state_of(tape, record) != state)
            ):
                return None
            rows.append(record[2])
        return rows

    def note(
        self,
        pool: list[Any],
        tensors: dict[int, TensorRecord],
        first: int,
        args: list[Arguments],  # noqa: ARG002 - looked at in C
        kwargs: list[Keywords],  # noqa: ARG002
        made: list[Any],  # noqa: ARG002
        position: int,  # noqa: ARG002
    ) -> None:
        """Make the new records of the stretch's tensors.

        The C makes none for tensors that only the tape still holds: nothing can use them any more. For that it is given
        the entries, too.

        Args:
            pool: of the stretch.
            tensors: gets the records.
            first: the row of the trace at which the stretch begins.
            args, kwargs, made, position: as for `pool`.
        """
        guards = self.guards
        updated = self.pick_updated(pool)
        rows = map(first.__add__, guards.updated_rows)
        entries = zip(map(ref, updated), guards.updated_marks, rows, guards.updated_homes, strict=True)
        tensors.update(zip(map(id, updated), entries, strict=True))

    def frames(
        self, made: list[Any], position: int, frames: dict[int, Frame], stack: list[Frame], below: int
    ) -> tuple[Frame, ...] | None:
        """The frames of the modules that the stretch enters, then those on the stack that it needs; None if any is missing.

        Args:
            made: of all entries, see `TapeColumns`.
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
        """Append the stretch's values to those that wait for their digests; returns what the batch gets.

        Args:
            pool: of the stretch.
            first: the row of the trace at which the stretch begins.
            values, rows: `Ledger.pending` and `Ledger.pending_rows`.
        """
        values += self.pick_queued(pool)
        rows += map(first.__add__, self.guards.queued_rows)
        return self.pick_pushed(pool)


def is_odd(value: Tensor) -> bool:
    """Whether results of a tensor depend on more than its size, dtype and strides: sparse, nested, lazily negated ones."""
    return value.layout is not torch.strided or value.is_nested or value.is_conj() or value.is_neg()


def getter(positions: list[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """A function that gives a tuple of the elements at some positions of a sequence."""
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
    """How many references C++ holds to a tensor, that of its Python object included; 0 where torch does not tell."""
    compiled.connect_passages(
        size_of, stride_of, device_of, Tensor.is_conj, Tensor.is_neg, use_count, torch.strided, state_of
    )
    Pattern = choose(PythonPattern, "Pattern")
