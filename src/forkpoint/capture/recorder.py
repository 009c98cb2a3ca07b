"""The recorder: the façade of one traced run, from the first call to the finished trace.

Calls go to its `tape`, which is read into the trace; labels are worked out by its `resolver`. What can't wait until the
tape is read is recorded here: writes, calls that a `Fetch` wants a copy of, and values that a `Watcher` may replace. Nothing
here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from forkpoint.capture import digest
from forkpoint.capture.completion import complete, shelve
from forkpoint.capture.entry import intake, nested_labels
from forkpoint.capture.fetching import Fetching, Key
from forkpoint.capture.functions import BORROWING, LOOKS_UP, Function, put_in_place
from forkpoint.capture.history import History
from forkpoint.capture.hooks import CopiedCall, Fetch, Look, copied
from forkpoint.capture.inventory import inventory_of
from forkpoint.capture.labels import Label, Labels
from forkpoint.capture.ledger import INPUT
from forkpoint.capture.marks import CallAnswer, Frame, Visits
from forkpoint.capture.mode import transforms, writes
from forkpoint.capture.resolver import Resolver
from forkpoint.capture.returns import ReturnLabels
from forkpoint.capture.rules import Call, tensors_in
from forkpoint.capture.sites import CallStack
from forkpoint.capture.tape import Tape
from forkpoint.capture.trace import Event, Op, Row, Trace
from forkpoint.capture.wanted import FetchTargets
from forkpoint.capture.writes import INDEXED_WRITES, PartialWrite, written_by
from forkpoint.runs.layout import Layout
from forkpoint.runs.modules import Survey, survey
from forkpoint.support.memory import Shelf

MAX_HISTORIES = 32
"""How many histories are kept of one layout, one for each length of a call."""


class Watcher(Protocol):
    """Is shown every value of a run, and may replace it. This base does neither.

    Attributes:
        entrances_only: whether it replaces nothing but the model's inputs and what embeddings look up for them, and wants to
            be told of no value: then all other calls can be recorded in passing.
    """

    entrances_only: ClassVar[bool] = False

    def edits(self, key: Key) -> bool:
        """Whether it may replace values of an op; `edit` is asked for these ops alone."""
        return False

    def edit(
        self,
        recorder: Recorder,
        key: Key,
        nth: int,
        output: int,
        value: Tensor,
        label: Label | None,
    ) -> Tensor | None:
        """A value of the same shape and dtype for the model to go on with; None to leave the value as it is.

        Args:
            recorder: of the run.
            key: of the op: module, function, chain.
            nth: how often the op had run before in this call of the model.
            output: which of the op's outputs.
            value: the output.
            label: its label.
        """
        return None

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        """Is told that a value was recorded.

        Args:
            recorder: of the run.
            event: index of its event in the trace.
            value: the value.
            label: its label.
            inputs: the events that hold the tensors that it was made of.
        """
        return


class Maker(Watcher, Protocol):
    """A watcher that makes the model's calls itself."""

    def make(
        self,
        recorder: Recorder,
        function: Function,
        place: CallStack,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make a call; what it returns is what the model goes on with."""
        ...


class Watching:
    """Calls a watcher's `edit`, and puts what it returns in place of the values.

    Attributes:
        maker: the watcher, if it makes the model's calls itself.
    """

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        # `isinstance` of a protocol takes as long as a layer
        self.maker = cast("Maker", watcher) if hasattr(watcher, "make") else None
        self._lent: list[tuple[Tensor, Tensor]] = []

    def edit_input(self, recorder: Recorder, name: str, value: Tensor, label: Label | None) -> None:
        """Let the watcher replace one of the model's inputs, in place."""
        new = self.watcher.edit(recorder, ("", f"input:{name}", "?"), 0, 0, value, label)
        if new is not None:
            value.copy_(new)

    def edited(
        self,
        recorder: Recorder,
        function: Function,
        place: CallStack,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> Any:
        """Let the watcher replace outputs of a finished call; returns what the model is to get from the call."""
        key = (recorder.tape.stack[-1].path, function.name, place.site.chain)
        if not self.watcher.edits(key):
            return result
        if function.name == "setitem":
            outputs: tuple[Tensor, ...] = (args[0],)
        else:
            outputs = (result,) if isinstance(result, Tensor) else tuple(tensors_in((result,)))
        if not outputs or transforms() is not None:
            return result
        visits = recorder.tape.visits_of(function, place, len(outputs))
        labels = recorder.tape.answer(visits, function, args, kwargs, outputs).labels
        nth = visits.nth
        for index, (output, label) in enumerate(zip(outputs, labels, strict=True)):
            new = self.watcher.edit(recorder, key, nth, index, recorder.true_value(output), label)
            if new is not None:
                result = put_in_place(function, args, kwargs, result, output, new)
        return result

    def edit_boundary(
        self, recorder: Recorder, op: Op, nth: int, value: Tensor, label: Label | None, *, foreign: bool
    ) -> None:
        """Let the watcher replace a module's input or output, in place.

        Args:
            foreign: whether the tensor was there before the run, so that its values have to be put back.
        """
        key = (op.module, op.function, op.site.chain)
        new = self.watcher.edit(recorder, key, nth, op.output, recorder.true_value(value), label)
        if new is not None and new.dtype == value.dtype:
            if foreign:
                self._lent.append((value, value.detach().clone()))
            value.copy_(new)

    def give_back(self) -> None:
        """Put back the values of tensors that were there before the run and that the watcher replaced."""
        for value, before in self._lent:
            value.detach().copy_(before)
        self._lent.clear()


class Recorder:
    """Records one run.

    Args:
        layout: where the run's tokens are.
        model: gives modules their paths and parameters their names.
        fetches: the values and calls to copy.
        digests: False to follow the labels only (a second pass that wants values).
        labels: those of the first pass, so that a second pass speaks of the same coordinates.
        watcher: is shown every value, and may replace it.
        read: gives the true value of a tensor, where another mode keeps it elsewhere (`Promotion.value`).
        shelf: where to put the digests, if not all of them may stay in memory.
        parts: a survey of the model that was just made; None to make one.
        unregistered: the attribute of this name of an earlier pass.
        enough: asked after each value that was copied or shown to the watcher: True if the rest of the run need not be recorded.
            Only where the pass records every call at once.
    """

    passing: Tensor | None = None
    """The model's own tensor of which the watcher is being told; with `read`, its true value is another tensor."""

    def __init__(
        self, layout: Layout, model: nn.Module | None, fetches: tuple[Fetch, ...] = (), digests: bool = True,
        labels: Labels | None = None, watcher: Watcher | None = None, read: Callable[[Tensor], Tensor] | None = None,
        shelf: Shelf | None = None, parts: Survey | None = None, unregistered: frozenset[str] = frozenset(),
        enough: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        self.labels = labels or Labels.of(layout)
        self.table = self.labels.table
        self.resolver = Resolver(self.labels)
        self.returns = ReturnLabels(self.labels, self.resolver.find)
        self.trace = Trace(self.table, shelf=shelf)
        self.watcher = watcher
        self.watching = None if watcher is None else Watching(watcher)
        self._read = read
        parts = survey(model) if parts is None and model is not None else parts
        inventory = None if model is None else inventory_of(model, parts)
        self.wanted: FetchTargets | None = None
        """The modules that the fetches want, if all others can be recorded in passing; else None."""
        entrances = watcher is not None and watcher.entrances_only and read is None
        passive = watcher is None or entrances
        if passive and fetches:
            if inventory is not None and read is None:
                self.wanted = FetchTargets.of(fetches, inventory.frames, unregistered)
            passive = self.wanted is not None
        self.fetching = Fetching(fetches, self.wanted, read)
        eager = LOOKS_UP if entrances else 0
        self.tape = Tape(self, self.resolver, digest.DigestBatch(shelf), digests, passive, eager)
        self.tape.enough = None if passive else enough
        self.owned: dict[int, str] = {}
        root = Frame("")
        if inventory is not None and parts is not None:
            self.tape.frames = inventory.frames
            self.owned = inventory.names
            weights = inventory.records(
                parts.weights, self.labels, lambda weight: self.resolver.mark(weight, None)
            )
            self.resolver.tensors.update(weights)
            root = inventory.frames[id(model)]
        self.tape.stack.append(root)

    @property
    def call(self) -> int:
        """Index of the forward call that is recorded."""
        return self.tape.call

    @property
    def unregistered(self) -> frozenset[str]:
        """See `Boundaries.unregistered`."""
        return self.tape.unregistered

    # ------------------------------------------------------------------ calls

    def begin_call(self, index: int, inputs: Mapping[str, Any]) -> None:
        """A forward call begins: label its inputs (by name), and record them as inputs of the root module."""
        tape = self.tape
        tape.begin(index)
        if self.wanted is not None:
            self.wanted.begin()
        lengths, labels = intake(self.labels, index, inputs)
        self.resolver.begin(lengths)
        tape.history = self._history() if tape.passive else None
        self.trace.lengths.append(lengths)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                label = labels[name]
                if self.watching is not None:
                    self.watching.edit_input(self, name, value, label)
                self.resolver.remember(
                    value, label, self.tape.boundary(tape.stack[0], name, INPUT, value, label)
                )
            elif value is not None:
                for tensor, label in nested_labels(self.labels, index, name, value):
                    if label is not None and self.watching is not None:
                        self.watching.edit_input(self, name, tensor, label)
                    if self.resolver.find(tensor) is None:
                        self.resolver.remember(tensor, label, -1)

    def _history(self) -> History:
        """The history of earlier calls with token dimensions of the same lengths, taken out of the cache until `end_call`."""
        history: History = (
            self.labels.histories.pop((self.resolver.lengths, self.tape.digests), None) or History()
        )
        history.begin()
        return history

    def end_call(self) -> None:
        """A forward call has ended well: put its history back into the cache, unless it is overgrown."""
        history, self.tape.history = self.tape.history, None
        if history is not None and not history.overgrown:
            histories = self.labels.histories
            histories[self.resolver.lengths, self.tape.digests] = history
            while len(histories) > MAX_HISTORIES:
                del histories[next(iter(histories))]

    # ------------------------------------------------------------------ ops

    def watched(
        self, function: Function, place: CallStack, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See `Listener.watched`."""
        tape = self.tape
        with _unwatched():
            fetches = self._fetches_of(function, place)
            # what it overwrites must be digested first
            if tape.pending and (writes(function, kwargs) or function.name in BORROWING):
                tape.flush()
            arguments = copied(args, kwargs, self.owned, self.label_of) if fetches else None
            after = [None if fetch.look is None else fetch.look(args, kwargs) for fetch in fetches]
        watching = self.watching
        if watching is None or watching.maker is None:
            result = function.func(*args, **kwargs)
        else:
            result = watching.maker.make(self, function, place, args, kwargs)
        with _unwatched():
            seen = [None if look is None else look() for look in after]
            if watching is not None:
                result = watching.edited(self, function, place, args, kwargs, result)
            outputs = (args[0],) if function.name == "setitem" else tape.outputs_of(result)
            if outputs and transforms() is None:  # inside vmap or grad they are not the model's own
                recorded = tape.record(function, place, args, kwargs, outputs)
                if arguments is not None:
                    self.fetching.hand_over(
                        function.func, self.call, arguments, recorded, zip(fetches, seen, strict=True)
                    )
                    self.tape.ask()
        return result

    def _fetches_of(self, function: Function, place: CallStack) -> list[Fetch]:
        """The fetches that want the call which is about to be made."""
        if not self.fetching:
            return []
        nth = self.tape.visits_of(function, place, 0).nth
        return self.fetching.of((self.tape.stack[-1].path, function.name, place.site.chain), self.call, nth)

    def wrote(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
        visits: Visits,
        answer: CallAnswer,
    ) -> list[Label | None]:
        """See `Listener.wrote`."""
        call = Call(function.rule, function.func, args, kwargs, outputs, self.label_of, self.labels)
        labels = answer.labels
        written: PartialWrite | None = None
        if function.rule in INDEXED_WRITES and labels[0] is not None:
            written = written_by(call, self.true_value(outputs[0]), labels[0])
        for index, (output, label) in enumerate(zip(outputs, labels, strict=True)):
            value, held = (written.value, written.label) if written else (output, label)
            row = self.tape.append(visits.ops[index], function, value, held, answer.reason)
            if self.watcher is not None:
                self.saw(row, value, held, self._events_of(call.tensors()))
            self.resolver.note_shared(output, label, row)
            self.resolver.remember(output, label, row, answer.reason if label is None else "")
        if written is not None and self.fetching:
            labels = [written.alone(self.labels, labels[0])]
        return labels

    def sources(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """See `Listener.sources`."""
        return [] if self.watcher is None else self._events_of(tensors_in((args, tuple(kwargs.values()))))

    def saw(self, row: int, output: Tensor, label: Label | None, sources: list[int]) -> None:
        """See `Listener.saw`."""
        if self.watcher is not None:
            self.passing = output
            self.watcher.saw(self, row, self.true_value(output), label, sources)
            self.tape.ask()

    def _events_of(self, inputs: list[Tensor]) -> list[int]:
        """The events that hold the values of tensors; none for a tensor without one."""
        records = [self.resolver.find(t) for t in inputs]
        return [record[2] for record in records if record is not None and record[2] >= 0]

    def true_value(self, value: Tensor) -> Tensor:
        """The value that a tensor stands for: itself, unless another mode keeps it elsewhere (`read`)."""
        return value if self._read is None else self._read(value)

    # ------------------------------------------------------------------ digests

    def settle(self) -> None:
        """Take the digests of all values that wait, since the model's tensors are about to be put back."""
        with torch._C.DisableTorchFunction():
            self.tape.flush()

    def finish(self) -> Trace:
        """The run is over: read the rest of the tape, and return the trace.

        Its digests may still be on their way from the device; they are waited for when somebody asks for one.
        """
        tape = self.tape
        tape.end()
        self.hold_weights()
        digests = tape.batch.results()
        self.trace.digests = digests.__getitem__
        tape.batch = digest.DigestBatch()
        if self.trace.shelf is None:
            self.trace.completion = partial(complete, self.trace, self.tape, digests)
        else:
            complete(self.trace, self.tape, digests)
            self.trace.completed = True
        return self.trace

    def hold_weights(self) -> None:
        """Put strong references to the model's weights in place of weak ones, so that they can be swapped (see `Inventory`)."""
        for key in self.owned:
            record = self.resolver.tensors.get(key)
            weight = None if record is None else record[0]()
            if record is not None and weight is not None:
                self.resolver.tensors[key] = (partial(_itself, weight), *record[1:])

    def collect(self) -> None:
        """See `Listener.collect`."""
        shelve(self.trace, self.tape)

    # ------------------------------------------------------------------ tensors

    def swapped(self, a: Tensor, b: Tensor, swap: Callable[[], object]) -> None:
        """Make a call of `torch.utils.swap_tensors`, which no function mode sees; `swap` makes it."""
        self.tape.catch_up()
        self.resolver.swapped(a, b, swap)

    def label_of(self, tensor: Tensor) -> Label | None:
        """The label of a tensor, guessed for one that no tap saw being made."""
        return self.resolver.label_of(tensor)

    def lost(self, tensor: Tensor) -> str:
        """Why a tensor has no label; empty if it has one, or if no tap saw it."""
        return self.resolver.lost(tensor)

    def event_of(self, value: Tensor) -> int:
        """The event that holds a tensor's value; -1 if none does."""
        record = self.resolver.find(value)
        return -1 if record is None else record[2]

    def label_of_result(self, value: Tensor, call: int) -> Label | None:
        """The label of something that the model returned in a call."""
        return self.returns.of(value, call)

    def label_by_size(self, value: Tensor, call: int) -> Label | None:
        """The label of a value with an entry for each of a call's rows, or for each token of a lone row."""
        return self.returns.by_size(value, call)

    def label_by_columns(self, value: Tensor, call: int) -> Label | None:
        """The label of a value with an entry for each column of each of a call's rows."""
        return self.returns.by_columns(value, call)

    # ------------------------------------------------------------------ modules

    def offer(self, visits: Visits, value: Tensor, label: Label | None, *, foreign: bool = False) -> None:
        """See `Listener.offer`.

        A passive run shows nothing: there `returned` copies the wanted outputs. `begin_call` has shown the model's inputs.
        """
        if self.tape.passive:
            return
        op, nth = visits.ops[0], visits.nth - 1
        if self.watching is not None and (op.module or not op.is_input):
            self.watching.edit_boundary(self, op, nth, value, label, foreign=foreign)
        if self.fetching.hand_value(op, self.call, nth, value, label):
            self.tape.ask()

    def give_back(self) -> None:
        """See `Watching.give_back`."""
        if self.watching is not None:
            self.watching.give_back()

    def returned(self, module: nn.Module, result: Any) -> None:
        """A module has returned of which a fetch wants an output: copy what is wanted of its result."""
        if self.wanted is not None:
            with _unwatched():
                self.tape.n_bytes += self.wanted.note(id(module), self.tape.results_of(result), self.call)

    def deliver(self) -> None:
        """See `Fetching.deliver`."""
        self.fetching.deliver(self.resolver.find, self.call)


# ---------------------------------------------------------------------- helpers

_unwatched = torch._C.DisableTorchFunction
"""What the recorder does with tensors is no op of the model, and no other mode may see it either."""


def _itself(tensor: Tensor) -> Tensor:
    return tensor


__all__ = ["CopiedCall", "Event", "Fetch", "Frame", "Look", "Recorder", "Row", "Watcher"]
