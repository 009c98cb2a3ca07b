"""The reader: drains the tape into the ledger, entry by entry or a passage at once.

`read` goes through the entries that wait. Where they repeat a stretch that was read before, the history puts the rows of the
whole stretch on the trace. Every other entry is a `step`: a module that is entered or left (`boundaries`), or a function
(`record`). To record a function takes three look-ups, each of which is a miss only the first time:

1. its `Visits`, by the module and the place of the call: which op it is, and how often that ran;
2. its `CallAnswer`, by the function and the marks of the arguments: the labels of its outputs;
3. for each output a `Treatment`, in the answer: whether and how it is digested.

What is missing the resolver works out. Then each output becomes a row, its value is queued for its digest (`put`), and the
tensor gets a record in `tensors`, by which later calls find its mark.

The fields that an entry changes:

| field | meaning |
| --- | --- |
| `rows` | the trace's rows; one is added for each output |
| `tensors` | by the id of a tensor its record: weak reference, mark, row of its value, number of that row in the history |
| `queued` | rows of this entry whose values were queued, for the history |
| `lasting` | whether the result is the same for every call with arguments of these marks, so that the history may have it |
| `fresh` | whether the last value may still change: what is written to it before the next call belongs to it |
| `last_read` | the last output of the function that is being recorded, with its version when the next one was called |

A record is a bare tuple, as one is made for every output of every call: `record[0]()` is the tensor or None, `record[1]` its
mark. Python gives the id of a tensor that is gone to another one, so a record counts only if `record[0]()` is the tensor in hand.

The tape itself is five lists with one element an entry, which the tap fills: `whats` (a function, or that a module is entered
or left), `places` (the call stack), `args`, `kwargs` and `made` (what came out; of a module that is entered, the module. When
one is left, what came out is in `args`). `befores` has an element for each function alone: the version (how often it was
written to in place) that the output of the function before it had when this one was called. Without its first element, and
with the version that the last output has now, it says of each function which version its own output had when the next was
called (`versions`): if the digest is taken at another version, the value was overwritten.

Two settings say who reads when. `passive`, for a whole run: it is only observed, nobody wants copies of its values or changes
them. `deferred`, for a call or a module: functions may wait on the tape. One that may not (as each that writes in place) is
recorded as soon as it was called: the tape is read, then the recorder has `record` called without a version.

From the classes that it is built on come `put` (adds a row and queues its value), `bounded` (leaves out dimensions that are
only suspected to follow the tokens once the trace has too many of them) and `settle` (the last value is complete), all of
`ledger`; `counted` (an op's visits begin at 0 in each call of the model), `entered` and `left` (rows for a module's inputs and
outputs), of `boundaries`. `listener.deliver` gives copies of module outputs to fetches, once their labels are known.

Of the others it asks this:

| name | what it is |
| --- | --- |
| `stack[-1]` | the innermost module, as the trace sees it (`marks.Frame`): it keeps the visits of what it calls |
| `history.follow` | puts a stretch on the trace if it repeats a passage; gives how many entries that took |
| `history.sketch`, `history.add` | notes what an entry depends on, before; keeps that with the rows that came of it, after |
| `answer.own`, `answer.viewed` | the treatment of each output where it has memory of its own, and where it is a view |
| `resolver.last_outputs` | labels of what the last call made, for a tensor that no tap saw being made |
| `treatment.open_cells` | how many of its cells there are only because a dimension might follow the tokens |
| `listener.wrote` | records what a function wrote in place; gives the labels of its outputs |
| `treatment.digested` | False for a view, and for what can't be read |
| `function.may_view` | True if its result always shares memory with an argument, False if never, None if it depends |
| `visits.nth` | how often this op has run in this call of the model |
| `visits.answers`, `.key`, `.answer` | the last answer of the op, the cache that it is in, and its key there: (function, *marks) |
| `listener.sources`, `listener.saw` | the rows of a call's tensors; tells a watcher what was made of them, if there is one |
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from forkpoint.capture.boundaries import Boundaries
from forkpoint.capture.digest.batch import DigestBatch
from forkpoint.capture.functions import Function, is_view
from forkpoint.capture.history import History
from forkpoint.capture.labels import Label
from forkpoint.capture.ledger import NOTHING
from forkpoint.capture.listener import Listener
from forkpoint.capture.marks import CallAnswer, Entering, Mark, Visits, version_of
from forkpoint.capture.mode import bytes_of, outputs_in, writes
from forkpoint.capture.pattern import TapeColumns
from forkpoint.capture.resolver import Resolver
from forkpoint.capture.sites import CallStack
from forkpoint.capture.trace import Op

NO_KEYWORDS: dict[str, Any] = {}
_KEYWORDS = object()
"""In a key, between the arguments by position and those by keyword."""
_SEQUENCES = frozenset({tuple, list, torch.Size})
_SIMPLE = frozenset(
    {bool, float, complex, str, type(...), torch.device, torch.layout, torch.memory_format, type}
)
"""Kinds of arguments that can key a cache, besides tensors, whole numbers and dtypes."""
_call_numbers = itertools.count()
"""Numbers for `Boundaries.call_number`, which no two calls of models in this process share."""


class Reader(Boundaries):
    """The part of the tape that reads its entries.

    Args:
        listener: the recorder of the run, held weakly.
        resolver: works out what comes for the first time.
        batch: takes the digests.
        digests: False to follow the labels only.
        passive: see above.

    Attributes:
        history: the steps that were read before; None where every entry has to be worked out.
    """

    def __init__(
        self, listener: Listener, resolver: Resolver, batch: DigestBatch, digests: bool, passive: bool
    ) -> None:
        super().__init__(listener, resolver, batch, digests, passive)
        self.deferred = passive
        self.history: History | None = None
        self.call_number = next(_call_numbers)

    def begin(self, call: int) -> None:
        """A forward call of the model begins, the `call`-th of this run."""
        self.call = call
        self.call_number = next(_call_numbers)

    def read(self, whole: bool = True) -> None:
        """Read the entries that wait, and take them off the tape.

        Args:
            whole: False to leave entries on the tape that may be the beginning of a passage whose rest is still to come.
        """
        if self.fresh:
            self.settle()
        if not self.whats:
            self.listener.deliver()
            return
        versions = [*self.befores[1:], version_of(self.last)]
        columns = TapeColumns(self.whats, self.places, self.args, self.kwargs, self.made, versions)
        history, position = self.history, 0
        while position < len(self.whats):
            n_entries = 0 if history is None else history.follow(self, columns, position, whole)
            if n_entries < 0:  # the beginning of a passage whose rest is still to come
                break
            if not n_entries:
                self.step(columns, position)
            position += n_entries or 1
        self.forget(position, columns.functions)
        # What is kept alive: values that wait for their digests, and those of entries that were left on the tape.
        waiting = sum(
            self.entry_bytes + (0 if what.may_view is True else bytes_of(made))
            for what, made in zip(self.whats, self.made, strict=True)
            if isinstance(what, Function)
        )
        self.n_bytes = self.pending_bytes + waiting
        self.last_read = (NOTHING, None)
        if self.deferred:  # all that was read was complete
            self.fresh = False
        self.listener.deliver()

    def forget(self, entries: int | None = None, functions: int | None = None) -> None:
        """Take entries off the tape, whether they were read or not.

        Args:
            entries: how many, from the first on; None for all.
            functions: how many of them are functions.
        """
        for column in (self.whats, self.places, self.args, self.kwargs, self.made):
            del column[:entries]
        del self.befores[:functions]

    def step(self, columns: TapeColumns, position: int) -> None:
        """Read one entry, and note it in the history as a step."""
        entry = columns.entry(position)
        history = self.history
        # The sketch is made before: to record the entry may change the records of the tensors on which it depends.
        before = None if history is None else history.sketch(self, entry)
        first = len(self.rows)
        self.queued.clear()
        self.lasting = True
        what, place, args, kwargs, made = entry
        if isinstance(what, Function):
            version = columns.versions[columns.functions]
            columns.functions += 1
            self.record(what, place, args, kwargs or NO_KEYWORDS, outputs_in(made), version)
        elif isinstance(what, Entering):
            self.entered(made, args, kwargs or NO_KEYWORDS)  # `made` is the module
        else:
            self.left(args)  # the tensors that came out of it
        if history is not None:
            history.add(self, entry, before, first)

    def record(
        self,
        function: Function,
        place: CallStack,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
        version: int | None = None,
    ) -> tuple[Op, int, tuple[Tensor, ...], list[Label | None]]:
        """Record a finished call of a function.

        Args:
            function, place, args, kwargs: what was called, where, and with what.
            outputs: the tensors that it returned; at least one.
            version: the version of the last output when the next function was called; None if it was recorded at once.

        Returns:
            The op, how often it had run before in this call of the model, the outputs, and their labels.
        """
        self.last_read = outputs[-1], version
        visits = self.visits_of(function, place, len(outputs))
        answer = self.answer(visits, function, args, kwargs, outputs)
        self.resolver.last_outputs = answer.last
        nth = visits.nth
        visits.nth = nth + 1
        if writes(function, kwargs):
            labels = self.listener.wrote(function, args, kwargs, outputs, visits, answer)
        else:
            labels = answer.labels
            # asked for now: an output that is itself an argument (as dropout's may be) gets another row below
            sources = [] if self.passive else self.listener.sources(args, kwargs)
            for index, output in enumerate(outputs):
                view = function.may_view
                if view is None:
                    view = is_view(output, args, kwargs)
                treatment = answer.viewed[index] if view else answer.own[index]
                # The values of arguments may decide a shape, too (`nonzero`), so that it is compared.
                if treatment is None or not _fits(treatment.mark, output):
                    treatment = self.resolver.treat(function, answer, index, output, view=view)
                if treatment.open_cells and treatment.digested:
                    treatment = self.bounded(treatment)
                row = self.put(
                    visits.ops[index], treatment, output, version if output is outputs[-1] else None
                )
                self.tensors[id(output)] = (ref(output), treatment.mark, row, -1)
                if not self.passive:
                    self.listener.saw(row, output, labels[index], sources)
        return visits.ops[0], nth, outputs, labels

    def visits_of(self, function: Function, place: CallStack, n_outputs: int) -> Visits:
        """The visits of a function that the innermost module calls from a place, counted from 0 in each call of the model."""
        return self.counted(self.stack[-1].visits_of(function, place, n_outputs))

    def answer(
        self,
        visits: Visits,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
    ) -> CallAnswer:
        """The answer for a call: the labels of its outputs, from an earlier call of the function with such arguments if any.

        First the answer that the same op had last is tried, by comparing the arguments with its key, so that most calls need
        no key made. Then the key is made and looked up. If there is no answer under it, the resolver works one out.
        """
        answer = visits.answer
        if (
            answer is not None
            and visits.answers is self.resolver.answers
            and not kwargs
            and visits.key[0] is function
            and len(answer.labels) == len(outputs)
            and self.same_marks(args, visits.key)
        ):
            self.lasting = True
            return answer
        key: tuple[Any, ...] | None = None
        marks: list[Any] = [function]
        answer = None
        try:
            self.mark_all(args, marks)
            if kwargs:
                marks.append(_KEYWORDS)
                marks.extend(kwargs)
                self.mark_all(kwargs.values(), marks)
            key = tuple(marks)
            answer = self.resolver.answers.get(key)
        except TypeError:  # an argument that can't be part of a key
            key = None
        if answer is None or len(answer.labels) != len(outputs):
            answer = self.resolver.ask(function, args, kwargs, outputs, key)
            self.lasting = key is not None and self.resolver.answers.get(key) is answer
            return answer
        assert key is not None
        self.lasting = True
        visits.answers, visits.key, visits.answer = self.resolver.answers, key, answer
        return answer

    def same_marks(self, args: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
        """Whether the arguments surely give this key: tensors of the same marks, and the same whole numbers.

        It knows no other kinds of arguments: with one of them the answer is no, even if `mark_all` would give this key.
        """
        if len(key) != len(args) + 1:
            return False
        for index, value in enumerate(args):
            mark = key[index + 1]
            if type(mark) is Mark:
                record = self.tensors.get(id(value))
                if record is None or record[1] is not mark or record[0]() is not value:
                    return False
            elif type(value) is not int or type(mark) is not int or value != mark:
                return False
        return True

    def mark_all(self, values: Iterable[Any], marks: list[Any]) -> None:
        """Append the key of some arguments: the marks of tensors, and all other arguments themselves.

        Args:
            values: the arguments.
            marks: is appended to.

        Raises:
            TypeError: an argument of a class whose `==` may call different values equal.
        """
        for value in values:
            record = self.tensors.get(id(value))
            if record is not None and record[0]() is value:
                marks.append(record[1])
                continue
            kind = type(value)
            if kind is int or kind is torch.dtype or value is None:
                marks.append(value)
            elif kind in _SEQUENCES:
                marks.append(kind)
                marks.append(len(value))
                self.mark_all(value, marks)
            elif kind is slice:
                marks.append(slice)
                self.mark_all((value.start, value.stop, value.step), marks)
            elif kind is dict:
                marks.append(dict)
                marks.extend(value)
                self.mark_all(value.values(), marks)
            elif isinstance(value, Tensor):
                marks.append(self.resolver.mark_of(value))
            elif kind in _SIMPLE:
                marks.append((kind, value))  # with its class, as True == 1 == 1.0
            else:
                raise TypeError(f"an argument of type {kind.__name__}")


def _fits(mark: Mark, output: Tensor) -> bool:
    """Whether an output has the shape, dtype and device that the mark of its treatment says."""
    return output.shape == mark.size and output.dtype is mark.dtype and output.get_device() == mark.device
