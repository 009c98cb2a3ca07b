"""The recorder: turns what the taps see into a trace, digest by digest, never waiting for the device.

It is the face of one run: what passes by stands on the `tape`, which is read into the trace; what it means for the tokens
is worked out by the `resolver`. What can't wait to be read is recorded here: writes, what somebody wants a copy of
(`Fetch`), and what somebody puts other values in place of (`Watcher`).
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
from forkpoint.capture.hooks import Fetch, Look, Taken, copied
from forkpoint.capture.inventory import inventory_of
from forkpoint.capture.labels import Label, Labels
from forkpoint.capture.ledger import INPUT
from forkpoint.capture.marks import Answer, Frame, Visits
from forkpoint.capture.mode import transforms, writes
from forkpoint.capture.resolver import Resolver
from forkpoint.capture.returns import ReturnLabels
from forkpoint.capture.rules import Call, tensors_in
from forkpoint.capture.sites import CallStack
from forkpoint.capture.tape import Tape
from forkpoint.capture.trace import Event, Op, Row, Trace
from forkpoint.capture.wanted import Wanted
from forkpoint.capture.writes import INDEXED_WRITES, Written, written_by
from forkpoint.runs.layout import Layout
from forkpoint.runs.modules import Survey, survey
from forkpoint.support.memory import Shelf

MAX_HISTORIES = 32
"""How many histories are kept of one layout, one for each length of a call."""


class Watcher(Protocol):
    """Sees every value as it passes by, and may put another in its place. By itself it does nothing.

    Attributes:
        entrances_only: whether it changes no more than the model's inputs and what is looked up for them, and need not be
            told of any value.
    """

    entrances_only: ClassVar[bool] = False

    def edits(self, key: Key) -> bool:
        """Whether it may put another in place of a value of such an op; `edit` is not asked for the others."""
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
        """A value of the same shape and dtype to go on with, or None to leave this one."""
        return None

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        """An event was recorded; `inputs` are the events of the tensors that went into it."""
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
    """Lets a watcher put other values in the place of those that pass by.

    Attributes:
        maker: the watcher, if it makes the model's calls itself.
    """

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        # `isinstance` of a protocol takes as long as a layer
        self.maker = cast("Maker", watcher) if hasattr(watcher, "make") else None
        self._lent: list[tuple[Tensor, Tensor]] = []

    def edit_input(self, recorder: Recorder, name: str, value: Tensor, label: Label | None) -> None:
        """Let it change one of the model's inputs."""
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
        """Let the watcher change the values of a finished call before the model goes on with them."""
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
        """Let it change what goes into a module or comes out.

        Args:
            foreign: whether the run did not make the value, so that it has to be put back.
        """
        key = (op.module, op.function, op.site.chain)
        new = self.watcher.edit(recorder, key, nth, op.output, recorder.true_value(value), label)
        if new is not None and new.dtype == value.dtype:
            if foreign:
                self._lent.append((value, value.detach().clone()))
            value.copy_(new)

    def give_back(self) -> None:
        """Put back the values of tensors that the run did not make and that a watcher wrote to."""
        for value, before in self._lent:
            value.detach().copy_(before)
        self._lent.clear()


class Recorder:
    """Records one run.

    Args:
        layout: where the run's tokens are.
        model: gives modules their paths and parameters their names.
        fetches: calls to keep; with any, digests are still taken.
        digests: False to follow the labels only (a second pass that wants values).
        labels: those of the first pass, so that a second pass speaks of the same coordinates.
        watcher: sees every value, and may change it.
        read: gives the true value of a tensor, where another mode keeps it elsewhere (`Promotion.value`).
        shelf: where to put the digests, if not all of them may stay in memory.
        found: what the model consists of, where somebody has just looked.
        strangers: `strangers` of an earlier pass.
        enough: whether nobody wants to know more of the run, asked when something was kept; where all of it is looked at.
    """

    passing: Tensor | None = None
    """The tensor that the watcher is told of, as the model has it; `true_value` may be another."""

    def __init__(
        self, layout: Layout, model: nn.Module | None, fetches: tuple[Fetch, ...] = (), digests: bool = True,
        labels: Labels | None = None, watcher: Watcher | None = None, read: Callable[[Tensor], Tensor] | None = None,
        shelf: Shelf | None = None, found: Survey | None = None, strangers: frozenset[str] = frozenset(),
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
        found = survey(model) if found is None and model is not None else found
        inventory = None if model is None else inventory_of(model, found)
        self.wanted: Wanted | None = None
        """What has to be looked into, where the rest may be followed in passing."""
        entrances = watcher is not None and watcher.entrances_only and read is None
        passive = watcher is None or entrances
        if passive and fetches:
            if inventory is not None and read is None:
                self.wanted = Wanted.of(fetches, inventory.frames, strangers)
            passive = self.wanted is not None
        self.fetching = Fetching(fetches, self.wanted, read)
        eager = LOOKS_UP if entrances else 0
        self.tape = Tape(self, self.resolver, digest.Batch(shelf), digests, passive, eager)
        self.tape.enough = None if passive else enough
        self.owned: dict[int, str] = {}
        root = Frame("")
        if inventory is not None and found is not None:
            self.tape.frames = inventory.frames
            self.owned = inventory.names
            known = inventory.known(
                found.weights, self.labels, lambda weight: self.resolver.mark(weight, None)
            )
            self.resolver.known.update(known)
            root = inventory.frames[id(model)]
        self.tape.stack.append(root)

    @property
    def call(self) -> int:
        """Index of the forward call that is recorded."""
        return self.tape.call

    @property
    def strangers(self) -> frozenset[str]:
        """Paths that modules went by which are no part of the model."""
        return self.tape.strangers

    # ------------------------------------------------------------------ calls

    def begin_call(self, index: int, inputs: Mapping[str, Any]) -> None:
        """Label the inputs of a forward call."""
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
        """What earlier calls whose tokens lie alike have left, for this call alone; see `end_call`."""
        history: History = (
            self.labels.histories.pop((self.resolver.lengths, self.tape.digests), None) or History()
        )
        history.begin()
        return history

    def end_call(self) -> None:
        """A forward call has ended well: leave its history to the next of its kind, unless it has overgrown."""
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
        """Make and record a call that somebody wants to keep or to change, or that other modes see, too."""
        tape = self.tape
        with _unwatched():
            fetches = self._fetches_of(function, place)
            # what it overwrites must be digested first
            if tape.pending and (writes(function, kwargs) or function.name in BORROWING):
                tape.flush()
            given = copied(args, kwargs, self.owned, self.label_of) if fetches else None
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
                if given is not None:
                    self.fetching.hand_over(
                        function.func, self.call, given, recorded, zip(fetches, seen, strict=True)
                    )
                    self.tape.ask()
        return result

    def _fetches_of(self, function: Function, place: CallStack) -> list[Fetch]:
        """The fetches that want the call which is about to run."""
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
        answer: Answer,
    ) -> list[Label | None]:
        """Record what a function wrote into its outputs; where it wrote some elements, those."""
        call = Call(function.rule, function.func, args, kwargs, outputs, self.label_of, self.labels)
        labels = answer.labels
        written: Written | None = None
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
        """The events of the tensors that go into a call, if a watcher wants to know."""
        return [] if self.watcher is None else self._events_of(tensors_in((args, tuple(kwargs.values()))))

    def saw(self, row: int, output: Tensor, label: Label | None, sources: list[int]) -> None:
        """Tell the watcher of an output."""
        if self.watcher is not None:
            self.passing = output
            self.watcher.saw(self, row, self.true_value(output), label, sources)
            self.tape.ask()

    def _events_of(self, inputs: list[Tensor]) -> list[int]:
        """The events that hold these tensors' values."""
        found = [self.resolver.find(t) for t in inputs]
        return [known[2] for known in found if known is not None and known[2] >= 0]

    def true_value(self, value: Tensor) -> Tensor:
        return value if self._read is None else self._read(value)

    # ------------------------------------------------------------------ digests

    def settle(self) -> None:
        """Take the digests of all values that wait: what they lie in is about to be overwritten."""
        with torch._C.DisableTorchFunction():
            self.tape.flush()

    def finish(self) -> Trace:
        """The trace of the run that is over. Its digests may still be on their way from the device.

        Until somebody asks for them the device and the host go on with what comes next.
        """
        tape = self.tape
        tape.end()
        self.hold_weights()
        digests = tape.batch.results()
        self.trace.digests = digests.__getitem__
        tape.batch = digest.Batch()
        if self.trace.shelf is None:
            self.trace.completion = partial(complete, self.trace, self.tape, digests)
        else:
            complete(self.trace, self.tape, digests)
            self.trace.completed = True
        return self.trace

    def hold_weights(self) -> None:
        """Keep no weak reference to the model's weights beyond the run: see `Inventory`. The model holds them anyway."""
        for key in self.owned:
            known = self.resolver.known.get(key)
            weight = None if known is None else known[0]()
            if known is not None and weight is not None:
                self.resolver.known[key] = (partial(_itself, weight), *known[1:])

    def collect(self) -> None:
        """Put digests that are on the host on the shelf, if there is one."""
        shelve(self.trace, self.tape)

    # ------------------------------------------------------------------ tensors

    def swapped(self, a: Tensor, b: Tensor, swap: Callable[[], object]) -> None:
        """Have two tensors swapped, which no function mode sees."""
        self.tape.catch_up()
        self.resolver.swapped(a, b, swap)

    def label_of(self, tensor: Tensor) -> Label | None:
        """The label of a tensor that may never have been seen."""
        return self.resolver.label_of(tensor)

    def lost(self, tensor: Tensor) -> str:
        """Why the coordinates of a tensor are not known; empty if they are, or if no tap saw it."""
        return self.resolver.lost(tensor)

    def event_of(self, value: Tensor) -> int:
        """The event that holds a tensor's value; -1 if none is known."""
        known = self.resolver.find(value)
        return -1 if known is None else known[2]

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
        """Show a module's input or output to whoever wants to change or to keep it.

        Not where the rest is followed in passing: there `returned` copies the outputs that are wanted. Nor is one of the
        model's inputs shown to a watcher: that was done before it was recorded.
        """
        if self.tape.passive:
            return
        op, nth = visits.ops[0], visits.nth - 1
        if self.watching is not None and (op.module or not op.is_input):
            self.watching.edit_boundary(self, op, nth, value, label, foreign=foreign)
        if self.fetching.hand_value(op, self.call, nth, value, label):
            self.tape.ask()

    def give_back(self) -> None:
        """Put back the values of tensors that the run did not make and that a watcher wrote to."""
        if self.watching is not None:
            self.watching.give_back()

    def returned(self, module: nn.Module, result: Any) -> None:
        """A module has returned of which somebody wants an output (`wanted`)."""
        if self.wanted is not None:
            with _unwatched():
                self.tape.n_bytes += self.wanted.note(id(module), self.tape.results_of(result), self.call)

    def deliver(self) -> None:
        """Hand over the wanted outputs of modules whose labels are known by now."""
        self.fetching.deliver(self.resolver.find, self.call)


# ---------------------------------------------------------------------- helpers

_unwatched = torch._C.DisableTorchFunction
"""What the recorder does with tensors is no op of the model, and no other mode may see it either."""


def _itself(tensor: Tensor) -> Tensor:
    return tensor


__all__ = ["Event", "Fetch", "Frame", "Look", "Recorder", "Row", "Taken", "Watcher"]
