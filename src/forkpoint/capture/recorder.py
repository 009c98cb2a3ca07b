"""The recorder: turns what the taps see into a trace, digest by digest, never waiting for the device.

It works out whatever comes for the first time: the labels of what an op makes, how such values are digested. The
`tape` keeps its answers, and does alone what comes again. It also serves those who want copies of what passes by
(`Fetch`) or to put other values in its place (`Watcher`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from forkpoint.capture import digest
from forkpoint.capture.cells import collect, cut
from forkpoint.capture.coordinates import Ids
from forkpoint.capture.entry import intake, nested_labels
from forkpoint.capture.functions import BORROWING, LOOKS_UP, UNWRITTEN, Function, is_view
from forkpoint.capture.history import History
from forkpoint.capture.hooks import Fetch, Given, Look, Taken, clone, copied
from forkpoint.capture.inventory import inventory_of
from forkpoint.capture.labels import Label, Labels, Shape, fits
from forkpoint.capture.ledger import INPUT
from forkpoint.capture.marks import Answer, Frame, Known, Mark, Treatment, Visits, entering
from forkpoint.capture.mode import transforms, writes
from forkpoint.capture.rules import Call, UnknownMovementError, propagate, tensors_in, through_module
from forkpoint.capture.sites import Place
from forkpoint.capture.tape import Tape
from forkpoint.capture.trace import Digests, Event, Form, Op, Row, Trace
from forkpoint.capture.wanted import Wanted
from forkpoint.capture.writes import INDEXED_WRITES, Window, Written, written_by
from forkpoint.runs.layout import DECODER, MAIN, Layout
from forkpoint.runs.modules import Survey, survey
from forkpoint.support.memory import Shelf

MAX_HISTORIES = 32
"""How many histories are kept of one layout, one for each length of a call."""
MAX_RELABELLED = 1 << 22
"""Most elements of a tensor whose coordinates are rewritten after a write that it shares."""

Key = tuple[str, str, str]
"""What names an op in every run: module, function, chain."""


class Watcher(Protocol):
    """Sees every value as it passes by, and may put another in its place.

    Attributes:
        entrances_only: whether it changes no more than the model's inputs and what is looked up for them, and need not be
            told of any value.
    """

    entrances_only: ClassVar[bool]

    def edits(self, key: tuple[str, str, str]) -> bool:
        """Whether it may put another in place of a value of such an op; `edit` is not asked for the others."""
        ...

    def edit(
        self,
        recorder: Recorder,
        key: tuple[str, str, str],
        nth: int,
        output: int,
        value: Tensor,
        label: Label | None,
    ) -> Tensor | None:
        """A value of the same shape and dtype to go on with, or None to leave this one."""
        ...

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        """An event was recorded; `inputs` are the events of the tensors that went into it."""
        ...


@runtime_checkable
class Maker(Watcher, Protocol):
    """A watcher that makes the model's calls itself."""

    def make(
        self,
        recorder: Recorder,
        function: Function,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make a call; what it returns is what the model goes on with."""
        ...


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
    """

    def __init__(
        self,
        layout: Layout,
        model: nn.Module | None,
        fetches: tuple[Fetch, ...] = (),
        digests: bool = True,
        labels: Labels | None = None,
        watcher: Watcher | None = None,
        read: Callable[[Tensor], Tensor] | None = None,
        shelf: Shelf | None = None,
        found: Survey | None = None,
        strangers: frozenset[str] = frozenset(),
    ) -> None:
        self.labels = labels or Labels.of(layout)
        self.table = self.labels.table
        self.trace = Trace(self.table, shelf=shelf)
        self.watcher = watcher
        self._maker = watcher if isinstance(watcher, Maker) else None
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
        self.tape = Tape(self, digest.Batch(shelf), digests, passive, LOOKS_UP if entrances else 0)
        self._known = self.tape.known
        self._strangers: dict[tuple[str, type[nn.Module]], Frame] = {}
        self.owned: dict[int, str] = {}
        root = Frame("")
        if inventory is not None and found is not None:
            self.tape.frames = inventory.frames
            self.owned = inventory.names
            known = inventory.known(found.weights, self.labels, lambda weight: self._mark(weight, None))
            self._known.update(known)
            root = inventory.frames[id(model)]
        self.tape.stack.append(root)
        self._lengths: frozenset[int] = frozenset()
        self._fetches: dict[Key, list[Fetch]] = {}
        self._lent: list[tuple[Tensor, Tensor]] = []
        self._foreign = False
        for fetch in fetches:
            self._fetches.setdefault(fetch.key, []).append(fetch)

    @property
    def call(self) -> int:
        """Index of the forward call that is recorded."""
        return self.tape.call

    @property
    def strangers(self) -> frozenset[str]:
        """Paths that modules went by which are no part of the model."""
        return frozenset(path for path, _ in self._strangers)

    # ------------------------------------------------------------------ calls

    def begin_call(self, index: int, inputs: Mapping[str, Any]) -> None:
        """Label the inputs of a forward call."""
        tape = self.tape
        tape.begin(index)
        if self.wanted is not None:
            self.wanted.begin()
        self._lengths, labels = intake(self.labels, index, inputs)
        tape.answers = self.labels.answers.setdefault(self._lengths, {})
        tape.history = self._history() if tape.passive else None
        self.trace.lengths.append(self._lengths)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                label = labels[name]
                self._edit_input(name, value, label)
                self._remember(value, label, self._boundary(tape.stack[0], name, INPUT, value, label))
            elif value is not None:
                for tensor, label in nested_labels(self.labels, index, name, value):
                    if label is not None:
                        self._edit_input(name, tensor, label)
                    if self._find(tensor) is None:
                        self._remember(tensor, label, -1)

    def _history(self) -> History:
        """What earlier calls whose tokens lie alike have left, for this call alone; see `end_call`."""
        history: History = self.labels.histories.pop((self._lengths, self.tape.digests), None) or History()
        history.begin()
        return history

    def end_call(self) -> None:
        """A forward call has ended well: leave its history to the next of its kind, unless it has overgrown."""
        history, self.tape.history = self.tape.history, None
        if history is not None and not history.overgrown:
            histories = self.labels.histories
            histories[self._lengths, self.tape.digests] = history
            while len(histories) > MAX_HISTORIES:
                del histories[next(iter(histories))]

    def _edit_input(self, name: str, value: Tensor, label: Label | None) -> None:
        if self.watcher is not None:
            new = self.watcher.edit(self, ("", f"input:{name}", "?"), 0, 0, value, label)
            if new is not None:
                value.copy_(new)

    # ------------------------------------------------------------------ ops

    def watched(self, function: Function, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make and record a call that somebody wants to keep or to change, or that other modes see, too."""
        tape = self.tape
        with _unwatched():
            fetches = self._fetching(function, place)
            # what it overwrites must be digested first
            if tape.pending and (writes(function, kwargs) or function.name in BORROWING):
                tape.flush()
            given = copied(args, kwargs, self.owned, self.label_of) if fetches else None
            after = [None if fetch.look is None else fetch.look(args, kwargs) for fetch in fetches]
        if self._maker is None:
            result = function.func(*args, **kwargs)
        else:
            result = self._maker.make(self, function, place, args, kwargs)
        with _unwatched():
            seen = [None if look is None else look() for look in after]
            result = self._edited(function, place, args, kwargs, result)
            outputs = (args[0],) if function.name == "setitem" else tape.outputs_of(result)
            if outputs and transforms() is None:  # inside vmap or grad they are not the model's own
                recorded = tape.record(function, place, args, kwargs, outputs)
                if given is not None:
                    self._take(function.func, given, recorded, zip(fetches, seen, strict=True))
        return result

    def _fetching(self, function: Function, place: Place) -> list[Fetch]:
        """The fetches that want the call which is about to run."""
        if not self._fetches:
            return []
        frame = self.tape.stack[-1]
        wanted = self._fetches.get((frame.path, function.name, place.site.chain), [])
        nth = self.tape.visits_of(function, place, 0).nth
        return [f for f in wanted if f.call in (None, self.call) and f.nth in (None, nth)]

    def _take(
        self,
        func: Any,
        given: Given,
        recorded: tuple[Op, int, tuple[Tensor, ...], list[Label | None]],
        fetches: Iterable[tuple[Fetch, Any]],
    ) -> None:
        """Hand a finished call to those who want it, each with what it saw right before and after."""
        op, nth, outputs, labels = recorded
        copies = tuple(clone(self.true_value(output)) for output in outputs)
        taken = Taken(
            op,
            self.call,
            nth,
            func,
            given.args,
            given.kwargs,
            copies,
            given.labels,
            tuple(labels),
            given.owned,
        )
        for fetch, seen in fetches:
            fetch.take(replace(taken, seen=seen))

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
            row = self._append(visits.ops[index], function, value, held, answer.reason)
            if self.watcher is not None:
                self.saw(row, value, held, self._events_of(call.tensors()))
            self._note_shared(output, label, row)
            self._remember(output, label, row, answer.reason if label is None else "")
        if written is not None and self._fetches:
            labels = [written.alone(self.labels, labels[0])]
        return labels

    def sources(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """The events of the tensors that go into a call, if a watcher wants to know."""
        return [] if self.watcher is None else self._events_of(tensors_in((args, tuple(kwargs.values()))))

    def saw(self, row: int, output: Tensor, label: Label | None, sources: list[int]) -> None:
        """Tell the watcher of an output."""
        if self.watcher is not None:
            self.watcher.saw(self, row, self.true_value(output), label, sources)

    def _events_of(self, inputs: list[Tensor]) -> list[int]:
        """The events that hold these tensors' values."""
        found = [self._find(t) for t in inputs]
        return [known[2] for known in found if known is not None and known[2] >= 0]

    def _edited(
        self,
        function: Function,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> Any:
        """Let the watcher change the values of a finished call before the model goes on with them."""
        watcher = self.watcher
        if watcher is None:
            return result
        key = (self.tape.stack[-1].path, function.name, place.site.chain)
        if not watcher.edits(key):
            return result
        if function.name == "setitem":
            outputs: tuple[Tensor, ...] = (args[0],)
        else:
            outputs = (result,) if isinstance(result, Tensor) else tuple(tensors_in((result,)))
        if not outputs or transforms() is not None:
            return result
        visits = self.tape.visits_of(function, place, len(outputs))
        labels = self.tape.answer(visits, function, args, kwargs, outputs).labels
        nth = visits.nth
        for index, (output, label) in enumerate(zip(outputs, labels, strict=True)):
            new = watcher.edit(self, key, nth, index, self.true_value(output), label)
            if new is None:
                continue
            view = is_view(output, args, kwargs) if function.may_view is None else function.may_view
            if isinstance(result, Tensor) and (view or output.dtype != new.dtype):
                result = new
            elif output.dtype == new.dtype:
                output.copy_(new)
        return result

    def true_value(self, value: Tensor) -> Tensor:
        return value if self._read is None else self._read(value)

    # ------------------------------------------------------------------ labels of results

    def ask(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
        key: tuple[Any, ...] | None,
    ) -> Answer:
        """The answer for a call, worked out, and kept under a key if it holds for all calls of this kind."""
        nothing: list[Label | None] = [None] * len(outputs)
        inputs = [self.mark_of(t) for t in tensors_in((args, tuple(kwargs.values())))]
        reason = next((mark.lost for mark in inputs if mark.lost), "")
        labels, lasting = nothing, True
        if any(mark.label is not None for mark in inputs):
            call = Call(function.rule, function.func, args, kwargs, outputs, self.label_of, self.labels)
            try:
                labels = propagate(call)
                if not all(fits(label, output) for label, output in zip(labels, outputs, strict=True)):
                    labels, reason = nothing, f"no rule fits this call of {function.name}"
            except UnknownMovementError as unknown:
                reason = str(unknown)
            except _RULE_ERRORS as error:
                reason = f"no rule fits this call of {function.name} ({type(error).__name__})"
            lasting = not call.reads_values and not any(map(_is_number, inputs))
        last = tuple((label, tuple(output.shape)) for label, output in zip(labels, outputs, strict=True))
        answer = Answer(labels, reason, last)
        if key is not None and lasting:
            self.tape.answers[key] = answer
        return answer

    # ------------------------------------------------------------------ treatments

    def _mark(self, value: Tensor, label: Label | None, lost: str = "") -> Mark:
        if label is not None:
            lost = ""
        size = _NO_SIZE if value.is_nested else value.shape
        key = (label, size, value.dtype, value.get_device(), lost)
        mark = self.labels.marks.get(key)
        if mark is None:
            mark = self.labels.marks[key] = Mark(*key)
        return mark

    def treat(
        self, function: Function, answer: Answer, index: int, output: Tensor, *, view: bool
    ) -> Treatment:
        """How to treat an output for which its answer has nothing yet, or something of another size."""
        known = answer.viewed if view else answer.fresh
        label, seen = answer.labels[index], known[index]
        if seen is not None and seen.mark.size != output.shape:  # how large it is depends on values
            if not fits(label, output):
                return self._treatment(
                    function, output, None, f"no rule fits this call of {function.name}", view=view
                )
            return self._treatment(function, output, label, answer.reason, view=view)
        known[index] = found = self._treatment(function, output, label, answer.reason, view=view)
        return found

    def _treatment(
        self, function: Function | None, value: Tensor, label: Label | None, reason: str, *, view: bool
    ) -> Treatment:
        """How a value is treated that a function made, or a module took or gave."""
        mark = self._mark(value, label, reason)
        status = "view" if view else "digest"
        reason = "" if view else mark.lost
        if not view and function is not None and function.name in UNWRITTEN:
            status, reason = "skipped", "not written yet"
        elif value.is_nested or (not view and (value.layout != torch.strided or value.is_meta)):
            kind = "nested" if value.is_nested else value.layout
            what = f"a {kind} tensor on {value.device.type}".replace("torch.", "")
            status, reason = "skipped", what
        elif not view and value.is_quantized:
            status, reason = "skipped", "a quantized tensor has no plain values"
        return self._treatment_of(mark, status, reason, self._lengths)

    def _treatment_of(self, mark: Mark, status: str, reason: str, lengths: frozenset[int]) -> Treatment:
        key = (mark, status, reason, lengths)
        found = self.labels.treatments.get(key)
        if found is None:
            shape, dtype = tuple(mark.size), mark.dtype
            how = cut(self.table, mark.label, shape, lengths)
            floating = dtype.is_floating_point or dtype.is_complex
            name = str(dtype).removeprefix("torch.")
            form = Form(status, shape, name, floating, how.cells, how.width, reason)
            found = self.labels.treatments[key] = Treatment(form, mark, how)
        return found

    def closed(self, treatment: Treatment) -> Treatment:
        """What to do with a value instead, where no more dimensions can be suspected."""
        form = treatment.form
        return self._treatment_of(treatment.mark, form.status, form.reason, frozenset())

    def passing(self, mark: Mark) -> Form:
        """The form of a value that only passes into a module or out of one."""
        return self._treatment_of(mark, "digest", "", self._lengths).form

    # ------------------------------------------------------------------ digests

    def _append(
        self,
        op: Op,
        function: Function | None,
        value: Tensor,
        label: Label | None,
        reason: str = "",
    ) -> int:
        treatment = self._treatment(function, value, label, reason, view=False)
        return self.tape.put(op, self.tape.bounded(treatment), value)

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
            self.trace.completion = partial(self._complete, digests)
        else:
            self._complete(digests)
            self.trace.completed = True
        return self.trace

    def hold_weights(self) -> None:
        """Keep no weak reference to the model's weights beyond the run: see `Inventory`. The model holds them anyway."""
        for key in self.owned:
            known = self._known.get(key)
            weight = None if known is None else known[0]()
            if known is not None and weight is not None:
                self._known[key] = (partial(_itself, weight), *known[1:])

    def _complete(self, digests: digest.Digests | digest.ShelvedDigests) -> None:
        for row, treatment in self.tape.opened:
            slot = self.trace.slots[row]
            self._keep(row, treatment, [digests[slot + 1], digests[slot]])
        self.tape.opened.clear()
        self._collect()

    def collect(self) -> None:
        """Put digests that are on the host on the shelf, if there is one."""
        computed = self.tape.computed
        if self.trace.shelf is not None and all(t.device.type == "cpu" for _, _, ts in computed for t in ts):
            self._collect()

    def _collect(self) -> None:
        """Take the digests that are not simply rows to the host, and to the shelf if there is one."""
        for row, treatment, tensors in self.tape.computed:
            self._keep(row, treatment, [t.cpu().numpy() for t in tensors])
        self.tape.computed.clear()

    def _keep(self, row: int, treatment: Treatment, found: list[Digests]) -> None:
        """Keep digests that are not simply rows in the trace, or on the shelf if there is one."""
        shelf = self.trace.shelf
        digests, flat = collect(treatment.cut, treatment.form.shape, found)
        self.trace.odd[row] = (
            (digests, flat)
            if shelf is None
            else (shelf.keep_array(digests), None if flat is None else shelf.keep_array(flat))
        )

    # ------------------------------------------------------------------ tensors

    def swapped(self, a: Tensor, b: Tensor, swap: Callable[[], object]) -> None:
        """Have two tensors swapped, which no function mode sees.

        Torch does not swap what has weak references; and what was recorded of each is the other's from then on.
        """
        self.tape.catch_up()
        found = self._known.pop(id(a), None), self._known.pop(id(b), None)
        mine = tuple(None if known is None else known[1:] for known in found)
        found = None
        try:
            swap()
            mine = mine[::-1]
        finally:
            for tensor, rest in zip((a, b), mine, strict=True):
                if rest is not None:
                    self._known[id(tensor)] = (weakref.ref(tensor), *rest)

    def _find(self, tensor: Tensor) -> Known | None:
        known = self._known.get(id(tensor))
        return known if known is not None and known[0]() is tensor else None

    def label_of(self, tensor: Tensor) -> Label | None:
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1].label
        return self._unseen(tensor)

    def mark_of(self, tensor: Tensor) -> Mark:
        """The mark of a tensor that may never have been seen."""
        self.label_of(tensor)
        return self._known[id(tensor)][1]

    def lost(self, tensor: Tensor) -> str:
        """Why the coordinates of a tensor are not known; empty if they are, or if no tap saw it."""
        known = self._find(tensor)
        return known[1].lost if known is not None else ""

    def _unseen(self, tensor: Tensor) -> Label | None:
        """A tensor that no tap saw being made: shaped like the last value or its module's inputs."""
        label = self._guess(tensor)
        self._remember(tensor, label, -1)
        return label

    def _guess(self, tensor: Tensor) -> Label | None:
        if tensor.is_nested:
            return None
        shape = tuple(tensor.shape)
        for label, seen in self.tape.last_outputs:
            if label is not None and seen == shape:
                return label
        return through_module(self.labels, self._frame_inputs(), shape)

    def _frame_inputs(self) -> list[tuple[Label | None, Shape]]:
        inputs = [(t, self._find(t)) for t in tensors_in(self.tape.arguments[-1])]
        return [(known[1].label, tuple(known[1].size)) for _, known in inputs if known is not None]

    def _remember(self, tensor: Tensor, label: Label | None, event: int, lost: str = "") -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), self._mark(tensor, label, lost), event, -1)

    def _note_shared(self, written: Tensor, label: Label | None, event: int) -> None:
        """A write is seen by all that share its memory: by the base of a view, and by the views of a base."""
        if written.is_inference():
            return
        before, base = self._find(written), written if written._base is None else written._base
        held = self._find(base)
        if held is None:
            return
        whole = held[1].label
        self._known[id(base)] = (held[0], held[1], event, -1)
        if label is None or (before is not None and before[1].label is label):
            return
        if base.numel() > MAX_RELABELLED or not base.is_contiguous() or base.dtype != written.dtype:
            return
        if base is written:
            whole = label
        else:
            whole = Window.of(written, base).write(self.labels, whole, label)
            self._remember(base, whole, event)
        for ref, *_ in list(self._known.values()):
            view = ref()
            if view is not None and view is not written and view._base is base and view.dtype == base.dtype:
                self._remember(view, Window.of(view, base).read(self.labels, whole), event)

    # ------------------------------------------------------------------ modules

    def stranger(self, module: nn.Module) -> Frame:
        """The frame of a module that is no part of the model: under the one that calls it.

        Many are made for a single call, and the next one lies where they lay, so that they go by class alone.
        """
        parent, kind = self.tape.stack[-1].path, type(module)
        path = f"{parent}.{kind.__name__}" if parent else kind.__name__
        frame = self._strangers.get((path, kind))
        if frame is None:
            frame = self._strangers[path, kind] = Frame(path, entering(kind).names)
        return frame

    def came_in(self, frame: Frame, name: str, value: Tensor) -> None:
        """Record what goes into a module, whatever it is."""
        label = self.label_of(value)
        known = self._known[id(value)]
        if self.tape.holds(known):
            self._passed(frame, name, INPUT, value, known)
        else:
            self._foreign = known[2] < 0
            event = self._boundary(frame, name, INPUT, value, label)
            self._foreign = False
            if known[2] < 0:
                self._remember(value, label, event)

    def give_back(self) -> None:
        """Put back the values of tensors that the run did not make and that a watcher wrote to."""
        for value, before in self._lent:
            value.detach().copy_(before)
        self._lent.clear()

    def came_out(self, frame: Frame, index: int, value: Tensor) -> None:
        """Record what comes out of a module, whatever it is."""
        known = self._find(value)
        if known is None:
            label = self._guess(value)
            self._remember(value, label, self._boundary(frame, "output", index, value, label))
        elif known[2] < 0 or self.trace.rows[known[2]][2].status == "view":
            event = self._boundary(frame, "output", index, value, known[1].label)
            self._known[id(value)] = (known[0], known[1], event, -1)
        elif self.tape.holds(known):
            self._passed(frame, "output", index, value, known)
        else:
            self._boundary(frame, "output", index, value, known[1].label)

    def _boundary(self, frame: Frame, name: str, output: int, value: Tensor, label: Label | None) -> int:
        """Record what goes into a module (`output` is INPUT), or comes out, and was not recorded before."""
        visits = self.tape.visit(frame, name, output)
        self._offer(visits, value, label)
        row = self._append(visits.ops[0], None, value, label)
        if self.watcher is not None:
            self.saw(row, value, label, self._events_of([value]))
        return row

    def _passed(self, frame: Frame, name: str, output: int, value: Tensor, known: Known) -> None:
        """Record that a value which is known goes into a module, or comes out, and show it to whoever cares."""
        row = len(self.trace.rows)
        visits = self.tape.alias(frame, name, output, known)
        self._offer(visits, value, known[1].label)
        if self.watcher is not None:
            self.saw(row, value, known[1].label, [known[2]])

    def _offer(self, visits: Visits, value: Tensor, label: Label | None) -> None:
        """Show a module's input or output to whoever wants to change or to keep it.

        Not where the rest is followed in passing: there `returned` copies the outputs that are wanted. Nor is one of the
        model's inputs shown to a watcher: that was done before it was recorded.
        """
        if self.tape.passive:
            return
        op, nth = visits.ops[0], visits.nth - 1
        key = (op.module, op.function, op.site.chain)
        if self.watcher is not None and (op.module or not op.is_input):
            new = self.watcher.edit(self, key, nth, op.output, self.true_value(value), label)
            if new is not None and new.dtype == value.dtype:
                if self._foreign:
                    self._lent.append((value, value.detach().clone()))
                value.copy_(new)
        for fetch in self._fetches.get(key, ()):
            if (
                fetch.call in (None, self.call)
                and fetch.nth in (None, nth)
                and fetch.output in (None, op.output)
            ):
                copied = value.detach().clone()
                fetch.take(Taken(op, self.call, nth, None, (), {}, (copied,), {}, (label,)))

    def returned(self, module: nn.Module, result: Any) -> None:
        """A module has returned of which somebody wants an output (`wanted`)."""
        if self.wanted is not None:
            with _unwatched():
                self.tape.n_bytes += self.wanted.note(id(module), self.tape.results_of(result), self.call)

    def deliver(self) -> None:
        """Hand over the wanted outputs of modules whose labels are known by now."""
        if self.wanted is None:
            return
        for returned, label in self.wanted.settle(self._find):
            op = returned.frame.visits_out(returned.index).ops[0]
            copies = (returned.copied,)
            returned.fetch.take(Taken(op, self.call, returned.nth, None, (), {}, copies, {}, (label,)))

    def event_of(self, value: Tensor) -> int:
        """The event that holds a tensor's value; -1 if none is known."""
        known = self._find(value)
        return -1 if known is None else known[2]

    def label_of_result(self, value: Tensor, call: int) -> Label | None:
        """The label of something that the model returned in a call.

        Where a tap lost sight of some of the tokens, a result of the shape of the call's own input,
        [rows, columns, ...], holds the call's tokens in their places. What no tap saw being made (numbers that
        the model took out of tensors) with an entry for each row belongs to the rows, else to the whole call.
        """
        known = self._find(value)
        label = known[1].label if known is not None else None
        for stream in (DECODER, MAIN):
            slots = self.table.slots(call, stream)
            if slots is None or self._is_of_other_stream(label, stream):
                continue
            like_input = slots.ndim == 2 and value.dim() >= 2 and tuple(value.shape[:2]) == slots.shape
            if like_input and _by_column(label) and self._lost_some(label, call, stream, slots):
                return self.labels.make(slots.reshape(slots.shape + (1,) * (value.dim() - 2)))
            if known is None:
                whole = np.full((1,) * value.dim(), self.table.union(slots), dtype=np.int32)
                return self.label_by_size(value, call) or self.labels.make(whole)
            break
        return label

    def label_by_size(self, value: Tensor, call: int) -> Label | None:
        """The label of a value with an entry for each of a call's rows, or for each token of a lone row."""
        slots = self.table.slots(call, DECODER)
        slots = self.table.slots(call, MAIN) if slots is None else slots
        size = value.shape[0] if value.dim() else 0
        if slots is None or not size:
            return None
        if size == slots.shape[0]:
            rows = self.labels.make(slots)
            rows = self.labels.reduce(rows, range(1, slots.ndim), keepdim=False)
            ids = None if rows is None else rows.q
        else:
            ids = slots[0] if slots.shape == (1, size) else None
        if ids is None:
            return None
        return self.labels.make(ids.reshape(ids.shape + (1,) * (value.dim() - ids.ndim)))

    def label_by_columns(self, value: Tensor, call: int) -> Label | None:
        """The label of a value with an entry for each column of each of a call's rows; None where it has another size."""
        slots = self.table.slots(call, DECODER)
        slots = self.table.slots(call, MAIN) if slots is None else slots
        if slots is None or slots.ndim != 2 or value.dim() < 3 or tuple(value.shape[:2]) != slots.shape:
            return None
        return self.labels.make(slots.reshape(slots.shape + (1,) * (value.dim() - 2)))

    def _is_of_other_stream(self, label: Label | None, stream: str) -> bool:
        """Whether a label is of tokens that go into the other part of an encoder-decoder."""
        held = () if label is None else np.unique(label.q).tolist()
        streams = {token[0] for item in held if item >= 0 and (token := self.table.tokens[item]) is not None}
        return bool(streams) and stream not in streams

    def _lost_some(self, label: Label | None, call: int, stream: str, slots: Ids) -> bool:
        """Whether a label of tokens, not of sets of them, lacks some of a call's."""
        key = (label, call, stream)
        found = self.labels.lost_some.get(key)
        if found is None:
            held = set() if label is None else set(label.q.reshape(-1).tolist())
            tokens = {item for item in slots.reshape(-1).tolist() if self.table.tokens[item] is not None}
            plain = label is None or not any(self.table.members[i] for i in held if i >= 0)
            found = self.labels.lost_some[key] = plain and not tokens <= held
        return found


# ---------------------------------------------------------------------- helpers


_unwatched = torch._C.DisableTorchFunction
"""What the recorder does with tensors is no op of the model, and no other mode may see it either."""
_RULE_ERRORS = (IndexError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, StopIteration)
"""What a rule raises that is wrong about its function."""


_NO_SIZE = torch.Size([-1])
"""Stands for the size of nested tensors, whose rows have lengths of their own."""


def _by_column(label: Label | None) -> bool:
    """Whether a label tells columns apart, or says nothing: as many features of one token as a call has columns are no tokens."""
    return label is None or label.q.shape[1] > 1


def _is_number(mark: Mark) -> bool:
    """Whether a tensor may stand for a number in an index or a size."""
    return mark.label is None and not mark.size and not mark.dtype.is_floating_point


def _itself(tensor: Tensor) -> Tensor:
    return tensor


__all__ = ["Event", "Fetch", "Frame", "Look", "Recorder", "Row", "Taken", "Watcher"]
