"""The recorder: turns what the taps see into a trace, digest by digest, never waiting for the device.

What it does for an op is done thousands of times a run, so the answers to every question that comes
again are kept: the place of a call gives its op (`_Visits`), the labels of what goes into it give the
labels of what comes out (`_Answer`), and label, shape and stride of a value how it is digested (`_Form`).
An op whose like was seen before costs some look-ups; see `Recorder.record`.
"""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from forkpoint.capture import digest
from forkpoint.capture.cells import Cut, collect, cut, digests_of
from forkpoint.capture.entry import input_label, nested_labels, token_lengths
from forkpoint.capture.functions import UNWRITTEN, Function, is_view
from forkpoint.capture.labels import Label, Labels, Shape, fits
from forkpoint.capture.rules import Call, UnknownMovementError, propagate, tensors_in, through_module
from forkpoint.capture.sites import NOWHERE, Place
from forkpoint.capture.writes import INDEXED_WRITES, Window, Written, written_by
from forkpoint.layout import DECODER, MAIN, Layout
from forkpoint.memory import Shelf
from forkpoint.modules import owned, walk
from forkpoint.trace import Event, Form, Op, Row, Trace

MAX_OPEN_TOTAL = 1 << 24
"""Most cells of a whole trace whose token dimensions are only suspected; beyond it such values are compared
whole."""
MAX_RELABELLED = 1 << 22
"""Most elements of a tensor whose coordinates are rewritten after a write that it shares."""
PENDING_BYTES = {"cpu": 1 << 25, "other": 1 << 30}
"""Values kept alive for a digest in one go, by device."""

INPUT = -1
"""What stands for the number of a module's output where the value goes in."""

Key = tuple[str, str, str]
"""What names an op in every run: module, function, chain."""


class Watcher(Protocol):
    """Sees every value as it passes by, and may put another in its place."""

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


@dataclass(eq=False, slots=True)
class _Mark:
    """What the ops that a tensor goes into need to know of it; interned, so that it can key a cache."""

    label: Label | None
    size: torch.Size
    dtype: torch.dtype
    device: int
    lost: str
    """Why its coordinates are not known, where its tokens could not be followed."""
    passing: Form | None = None
    """Its form where it only passes into a module or out of one."""


@dataclass(eq=False, slots=True)
class _Form(Form):
    """How all values of one mark are treated: as a view, or digested."""

    mark: _Mark
    cut: Cut
    digested: bool = False
    plain: bool = False
    """Whether each row of the value is a cell."""
    plans: dict[tuple[int, ...], digest.Planned] = field(default_factory=dict[Any, Any])
    """For such values, by stride."""


@dataclass(eq=False, slots=True)
class _Answer:
    """What is known of all calls of a function whose arguments have the same marks.

    Attributes:
        labels: of each output.
        reason: why they are not known, or what got lost on the way.
        fresh: for each output that was seen, its form; None where a value of another size has to be looked at.
        viewed: the same for outputs that are views.
        last: labels and shapes of the outputs, in one tuple.
    """

    labels: list[Label | None]
    reason: str
    fresh: list[_Form | None]
    viewed: list[_Form | None]
    last: tuple[tuple[Label | None, Shape], ...] = ()


_Known = tuple["weakref.ref[Tensor]", _Mark, int]
"""A tensor that passed by: a reference, its mark, and the event that holds its value, or -1."""


@dataclass(eq=False, slots=True)
class _Visits:
    """What traces say of an op, an entry for each of its outputs, and how often it ran in a call.

    Attributes:
        call: which call that is, of all calls that were ever recorded.
    """

    ops: list[Op]
    call: int = -1
    nth: int = 0


@dataclass(eq=False, slots=True)
class Frame:
    """A module, while it is on the stack and after."""

    path: str
    names: tuple[str, ...] = ()
    """Of the arguments of its forward."""
    visits: dict[Any, _Visits] = field(default_factory=dict[Any, _Visits])


_frames: WeakKeyDictionary[nn.Module, dict[int, Frame]] = WeakKeyDictionary()
"""By model and by the id of a module in it."""


_calls = itertools.count()
"""Numbers for all calls that are ever recorded."""


def _count(visits: _Visits | None) -> tuple[int, int]:
    return (visits.call, visits.nth) if visits is not None else (-1, 0)


def _frames_of(model: nn.Module | None, modules: list[tuple[str, nn.Module]]) -> dict[int, Frame]:
    """A frame for every module of a model; that of the last trace, if the module still goes by its path."""
    if model is None:
        return {}
    last = _frames.get(model, {})
    frames: dict[int, Frame] = {}
    for path, module in modules:
        key = id(module)
        frame = last.get(key)
        names = _argument_names(type(module))
        if frame is None or frame.path != path or frame.names is not names:
            frame = Frame(path, names)
        frames[key] = frame
    _frames[model] = frames
    return frames


@dataclass
class Fetch:
    """A value, or a whole call, that a second pass should keep.

    Attributes:
        key: the op's key (module, function, chain), without the output.
        call, nth: which of its passes; None for all.
        take: called with the finished call.
    """

    key: tuple[str, str, str]
    call: int | None
    nth: int | None
    take: Callable[[Taken], None]
    output: int | None = None
    """For a module's output, which of several."""


@dataclass
class Taken:
    """One call of a torch function, with copies of what went in and came out."""

    op: Op
    call: int
    nth: int
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    input_labels: dict[int, Label | None]
    """By id of the copied tensor."""
    output_labels: tuple[Label | None, ...]
    owned: dict[int, str] = field(default_factory=dict[int, str])
    """Full names of parameters and buffers among the inputs, by id of the copied tensor."""
    kept_alive: list[Tensor] = field(default_factory=list[Tensor])
    """Tensors that the two tables speak of, besides the arguments."""


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
    ) -> None:
        self.labels = labels or Labels.of(layout)
        self.table = self.labels.table
        self.trace = Trace(self.table, shelf=shelf)
        self.call = -1
        self._visit_of = next(_calls)
        self.watcher = watcher
        self._read = read
        self._digests = digests
        modules = walk(model)
        self._frames = _frames_of(model, modules)
        self.stack = [self._frames.get(id(model)) or Frame("")]
        self._arguments: list[tuple[Any, ...]] = [()]
        weights = owned(modules)
        self.owned = {key: name for key, (name, _) in weights.items()}
        self._known: dict[int, _Known] = {}
        for key, (_, tensor) in weights.items():
            self._known[key] = (weakref.ref(tensor), self._mark(tensor, None), -1)
        self._answers: dict[Any, _Answer] = {}
        self._lengths: frozenset[int] = frozenset()
        self._pending_limit = PENDING_BYTES["cpu"]
        self._batch = digest.Batch(shelf)
        self._odd: list[tuple[int, Tensor, _Form]] = []
        self._computed: list[tuple[int, _Form, list[Tensor]]] = []
        self._pending: list[tuple[int, Tensor, int | None]] = []
        """Row, tensor and its version when it was recorded, of values whose digest is not computed yet."""
        self._pending_bytes = 0
        self._fresh = False
        """Whether the last of them was recorded by what ran last."""
        self._last_outputs: tuple[tuple[Label | None, Shape], ...] = ()
        self._open_cells = 0
        self._fetches: dict[Key, list[Fetch]] = {}
        for fetch in fetches:
            self._fetches.setdefault(fetch.key, []).append(fetch)
        self.passive = watcher is None and not fetches
        """Whether it only looks on: nobody wants copies of values, nor to change them."""

    # ------------------------------------------------------------------ calls

    def begin_call(self, index: int, inputs: Mapping[str, Any]) -> None:
        """Label the inputs of a forward call."""
        self.call = index
        self._visit_of = next(_calls)
        self._lengths = token_lengths(self.table, index, inputs)
        self._answers = self.labels.answers.setdefault(self._lengths, {})
        self.trace.lengths.append(self._lengths)
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                label = input_label(self.labels, index, inputs, name, value)
                self._edit_input(name, value, label)
                self._remember(value, label, self._boundary(self.stack[0], name, INPUT, value, label))
            elif value is not None:
                for tensor, label in nested_labels(self.labels, index, name, value):
                    if label is not None:
                        self._edit_input(name, tensor, label)
                    if self._find(tensor) is None:
                        self._remember(tensor, label, -1)

    def _edit_input(self, name: str, value: Tensor, label: Label | None) -> None:
        if self.watcher is not None:
            new = self.watcher.edit(self, ("", f"input:{name}", "?"), 0, 0, value, label)
            if new is not None:
                value.copy_(new)

    # ------------------------------------------------------------------ ops

    def before(self, function: Function, kwargs: dict[str, Any]) -> None:
        """Called before a function runs: what it overwrites must be digested first."""
        if self._fresh:
            self._note_late_write()
        if self._pending and (function.writes or (kwargs and _writes(function, kwargs))):
            self.flush()

    def fetching(self, function: Function, place: Place) -> list[Fetch]:
        """The fetches that want the call which is about to run."""
        if not self._fetches:
            return []
        frame = self.stack[-1]
        wanted = self._fetches.get((frame.path, function.name, place.site.chain), [])
        nth = self._nth(frame, function, place)
        return [f for f in wanted if f.call in (None, self.call) and f.nth in (None, nth)]

    def _nth(self, frame: Frame, function: Function, place: Place) -> int:
        visits = frame.visits.get((function, place))
        return visits.nth if visits is not None and visits.call == self._visit_of else 0

    def record(
        self,
        function: Function,
        func: Any,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> tuple[Op, int, tuple[Tensor, ...], list[Label | None]] | None:
        """Record a finished call.

        Returns:
            The op, how often it had run in this call of the model, and its outputs with their labels; None if it
            made no tensor.
        """
        if isinstance(result, Tensor):
            outputs: tuple[Tensor, ...] = (result,)
        elif function.name == "setitem":
            outputs = (args[0],)
        else:
            outputs = tuple(tensors_in((result,)))
            if not outputs:
                return None
        if _transforms() is not None:
            return None  # inside vmap or grad: these tensors are not the model's own
        answer = self._answer(function, func, args, kwargs, outputs)
        frame, labels = self.stack[-1], answer.labels
        self._last_outputs = answer.last
        visits = frame.visits.get((function, place))
        if visits is None or len(visits.ops) < len(outputs):
            ops = [Op(frame.path, function.name, place.site, index) for index in range(len(outputs))]
            visits = frame.visits[function, place] = _Visits(ops, *_count(visits))
        if visits.call != self._visit_of:
            visits.call, visits.nth = self._visit_of, 0
        nth = visits.nth
        visits.nth = nth + 1
        if function.writes or (kwargs and _writes(function, kwargs)):
            call = Call(function.rule, func, args, kwargs, outputs, self.label_of, self.labels)
            labels = self._record_write(call, function, visits.ops, nth, answer)
        else:
            sources: list[int] = []
            if (
                self.watcher is not None
            ):  # before an output that is an argument, as dropout's, has a new event
                sources = self._events_of(tensors_in((args, tuple(kwargs.values()))))
            known, rows = self._known, self.trace.rows
            for index, output in enumerate(outputs):
                view = function.may_view
                if view is None:
                    view = is_view(output, args, kwargs)
                form = (answer.viewed if view else answer.fresh)[index]
                if (
                    form is None
                    or output.shape != form.mark.size
                    or output.dtype is not form.mark.dtype
                    or output.get_device() != form.mark.device
                ):
                    form = self._new_form(function, answer, index, output, view)
                row = len(rows)
                if form.cut.open_cells:
                    form = self._bounded(form)
                slot = self._queue(row, output, form) if form.digested else -1
                rows.append((visits.ops[index], self.call, nth, form, -1, slot))
                known[id(output)] = (weakref.ref(output), form.mark, row)
                if self.watcher is not None:
                    self._saw(row, output, labels[index], sources)
        return None if self.passive else (visits.ops[0], nth, outputs, labels)

    def _record_write(
        self,
        call: Call,
        function: Function,
        ops: list[Op],
        nth: int,
        answer: _Answer,
    ) -> list[Label | None]:
        """Record what a function wrote into its outputs; where it wrote some elements, those."""
        labels, outputs = answer.labels, call.outputs
        written: Written | None = None
        if function.rule in INDEXED_WRITES and labels[0] is not None:
            written = written_by(call, self.true_value(outputs[0]), labels[0])
        for index, (output, label) in enumerate(zip(outputs, labels, strict=True)):
            value, held = (written.value, written.label) if written else (output, label)
            form = self._form(function, value, held, answer.reason, view=False)
            row = self._append(ops[index], nth, form, value)
            if self.watcher is not None:
                self._saw(row, value, held, self._events_of(call.tensors()))
            self._note_shared(output, label, row)
            self._remember(output, label, row, answer.reason if label is None else "")
        if written is not None and self._fetches:
            labels = [written.alone(self.labels, labels[0])]
        return labels

    def _saw(self, row: int, output: Tensor, label: Label | None, sources: list[int]) -> None:
        assert self.watcher is not None
        self.watcher.saw(self, row, self.true_value(output), label, sources)

    def _events_of(self, inputs: list[Tensor]) -> list[int]:
        """The events that hold these tensors' values."""
        found = [self._find(t) for t in inputs]
        return [known[2] for known in found if known is not None and known[2] >= 0]

    def edit(
        self,
        function: Function,
        func: Any,
        place: Place,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
    ) -> Any:
        """Let the watcher change the values of a finished call before the model goes on with them."""
        watcher = self.watcher
        if watcher is None:
            return result
        if function.name == "setitem":
            outputs: tuple[Tensor, ...] = (args[0],)
        else:
            outputs = (result,) if isinstance(result, Tensor) else tuple(tensors_in((result,)))
        if not outputs or _transforms() is not None:
            return result
        labels = self._answer(function, func, args, kwargs, outputs).labels
        frame = self.stack[-1]
        key = (frame.path, function.name, place.site.chain)
        nth = self._nth(frame, function, place)
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

    def _answer(
        self,
        function: Function,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
    ) -> _Answer:
        marks: list[Any] = [function]
        try:
            self._mark_all(args, marks)
            if kwargs:
                marks += (_KEYWORDS, *kwargs)
                self._mark_all(kwargs.values(), marks)
            key = tuple(marks)
            answer = self._answers.get(key)
        except TypeError:  # an argument that can't be hashed
            key, answer = None, None
        if answer is None or len(answer.labels) != len(outputs):
            answer, lasting = self._ask(function, func, args, kwargs, outputs)
            if key is not None and lasting:
                self._answers[key] = answer
        return answer

    def _mark_all(self, values: Iterable[Any], marks: list[Any]) -> None:
        """Append what the answer for a call depends on: the marks of tensors, all other arguments themselves.

        Raises:
            TypeError: an argument of a kind that can't be relied on to be equal only if it is the same.
        """
        known_of = self._known.get
        for value in values:
            known = known_of(id(value))
            if known is not None and known[0]() is value:
                marks.append(known[1])
                continue
            kind = value.__class__
            if kind is int or kind is torch.dtype or value is None:
                marks.append(value)
            elif kind in _SEQUENCES:
                marks += (kind, len(value))
                self._mark_all(value, marks)
            elif kind is slice:
                marks.append(slice)
                self._mark_all((value.start, value.stop, value.step), marks)
            elif kind is dict:
                marks += (dict, *value)
                self._mark_all(value.values(), marks)
            elif isinstance(value, Tensor):
                marks.append(self._mark_of(value))
            elif kind in _SIMPLE:
                marks.append((kind, value))  # True is not 1 here
            else:
                raise TypeError(f"an argument of type {kind.__name__}")

    def _ask(
        self,
        function: Function,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
    ) -> tuple[_Answer, bool]:
        """The answer for a call, worked out; and whether it holds for all calls of this kind."""
        nothing: list[Label | None] = [None] * len(outputs)
        forms: list[_Form | None] = [None] * len(outputs)
        inputs = [self._mark_of(t) for t in tensors_in((args, tuple(kwargs.values())))]
        reason = next((mark.lost for mark in inputs if mark.lost), "")
        labels, lasting = nothing, True
        if any(mark.label is not None for mark in inputs):
            call = Call(function.rule, func, args, kwargs, outputs, self.label_of, self.labels)
            try:
                labels = propagate(call)
                if not all(fits(label, output) for label, output in zip(labels, outputs, strict=True)):
                    labels, reason = nothing, f"no rule fits this call of {function.name}"
            except UnknownMovementError as unknown:
                reason = str(unknown)
            except _RULE_ERRORS as error:
                reason = f"no rule fits this call of {function.name} ({type(error).__name__}: {error})"
            lasting = not call.reads_values and not any(map(_is_number, inputs))
        last = tuple((label, tuple(output.shape)) for label, output in zip(labels, outputs, strict=True))
        return _Answer(labels, reason, forms, list(forms), last), lasting

    # ------------------------------------------------------------------ forms

    def _mark(self, value: Tensor, label: Label | None, lost: str = "") -> _Mark:
        if label is not None:
            lost = ""
        key = (label, value.shape, value.dtype, value.get_device(), lost)
        mark = self.labels.marks.get(key)
        if mark is None:
            mark = self.labels.marks[key] = _Mark(*key)
        return mark

    def _new_form(self, function: Function, answer: _Answer, index: int, output: Tensor, view: bool) -> _Form:
        """The form of an output for which its answer has none yet, or one of another size."""
        forms = answer.viewed if view else answer.fresh
        label, seen = answer.labels[index], forms[index]
        if seen is not None and seen.mark.size != output.shape:  # how large it is depends on values
            if not fits(label, output):
                return self._form(
                    function, output, None, f"no rule fits this call of {function.name}", view=view
                )
            return self._form(function, output, label, answer.reason, view=view)
        form = forms[index] = self._form(function, output, label, answer.reason, view=view)
        return form

    def _form(
        self, function: Function | None, value: Tensor, label: Label | None, reason: str, *, view: bool
    ) -> _Form:
        """How a value is treated that a function made, or a module took or gave."""
        mark = self._mark(value, label, reason)
        status = "view" if view else "digest"
        reason = "" if view else mark.lost
        if not view and function is not None and function.name in UNWRITTEN:
            status, reason = "skipped", "not written yet"
        elif not view and (value.layout != torch.strided or value.is_meta):
            what = f"a {value.layout} tensor on {value.device.type}".replace("torch.", "")
            status, reason = "skipped", what
        return self._form_of(mark, status, reason, self._lengths)

    def _form_of(self, mark: _Mark, status: str, reason: str, lengths: frozenset[int]) -> _Form:
        key = (mark, status, reason, lengths)
        form = self.labels.forms.get(key)
        if form is None:
            shape, dtype = tuple(mark.size), mark.dtype
            how = cut(self.table, mark.label, shape, lengths)
            floating = dtype.is_floating_point or dtype.is_complex
            name = str(dtype).removeprefix("torch.")
            form = _Form(
                status,
                shape,
                name,
                floating,
                how.cells,
                how.width,
                reason,
                mark,
                how,
                status == "digest",
                how.plain,
            )
            self.labels.forms[key] = form
        return form

    # ------------------------------------------------------------------ digests

    def _append(self, op: Op, nth: int, form: _Form, value: Tensor) -> int:
        rows = self.trace.rows
        row = len(rows)
        form = self._bounded(form)
        slot = self._queue(row, value, form) if form.digested else -1
        rows.append((op, self.call, nth, form, -1, slot))
        return row

    def _bounded(self, form: _Form) -> _Form:
        """The form to use for a value, where so many dimensions were suspected that no more can be looked at."""
        if self._open_cells + form.cut.open_cells > MAX_OPEN_TOTAL:
            return self._form_of(form.mark, form.status, form.reason, frozenset())
        self._open_cells += form.cut.open_cells
        return form

    def _queue(self, row: int, value: Tensor, form: _Form) -> int:
        """Have a value digested with the next flush; returns the slot of its digests, -1 for those kept apart."""
        if not self._digests:
            return -1
        slot = -1
        if form.plain:
            stride = value.stride()
            known = form.plans.get(stride)
            if known is None:
                known = form.plans[stride] = digest.planned(value, form.cut.row_dims)
            slot = self._batch.push(value, known)
            self._pending_bytes += known.n_bytes
        else:
            self._odd.append((row, value.detach(), form))
            self._pending_bytes += value.nbytes
        try:
            version = value._version
        except RuntimeError:  # torch keeps no count in inference mode
            version = None
        self._pending.append((row, value, version))
        self._fresh = version is not None
        if self._pending_bytes > self._pending_limit:
            self._pending_limit = PENDING_BYTES.get(value.device.type, PENDING_BYTES["other"])
            if self._pending_bytes > self._pending_limit:
                self.flush()
        return slot

    def flush(self) -> None:
        """Compute the digests of everything that is pending, without waiting for the device."""
        self._fresh = False
        for row, tensor, version in self._pending:
            if version is not None and tensor._version != version:
                self.trace.skipped[row] = "overwritten before it could be read"
        self._batch.flush()
        for row, tensor, form in self._odd:
            self._computed.append((row, form, digests_of(tensor, form.cut)))
        self._odd.clear()
        self._pending.clear()
        self._pending_bytes = 0
        if self.trace.shelf is not None and all(
            t.device.type == "cpu" for _, _, ts in self._computed for t in ts
        ):
            self._collect()

    def finish(self) -> Trace:
        """Copy all digests to the host, once; they are in the trace after this."""
        self.flush()
        self.trace.digests = self._batch.results().__getitem__
        self._batch = digest.Batch()
        self._collect()
        return self.trace

    def _collect(self) -> None:
        """Take the digests that are not simply rows to the host, and to the shelf if there is one."""
        shelf = self.trace.shelf
        for row, form, tensors in self._computed:
            digests, flat = collect(form.cut, form.shape, [t.cpu().numpy() for t in tensors])
            self.trace.odd[row] = (
                (digests, flat)
                if shelf is None
                else (shelf.keep_array(digests), None if flat is None else shelf.keep_array(flat))
            )
        self._computed.clear()

    def _note_late_write(self) -> None:
        """A value that was changed right after its function returned is that function's value."""
        row, tensor, version = self._pending[-1]
        if tensor._version != version:
            self._pending[-1] = (row, tensor, tensor._version)
        self._fresh = False

    # ------------------------------------------------------------------ tensors

    def _find(self, tensor: Tensor) -> _Known | None:
        known = self._known.get(id(tensor))
        return known if known is not None and known[0]() is tensor else None

    def label_of(self, tensor: Tensor) -> Label | None:
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1].label
        return self._unseen(tensor)

    def _mark_of(self, tensor: Tensor) -> _Mark:
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
        shape = tuple(tensor.shape)
        for label, seen in self._last_outputs:
            if label is not None and seen == shape:
                return label
        return through_module(self.labels, self._frame_inputs(), shape)

    def _frame_inputs(self) -> list[tuple[Label | None, Shape]]:
        inputs = [(t, self._find(t)) for t in tensors_in(self._arguments[-1])]
        return [(known[1].label, tuple(t.shape)) for t, known in inputs if known is not None]

    def _remember(self, tensor: Tensor, label: Label | None, event: int, lost: str = "") -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), self._mark(tensor, label, lost), event)

    def _note_shared(self, written: Tensor, label: Label | None, event: int) -> None:
        """A write is seen by all that share its memory: by the base of a view, and by the views of a base."""
        if written.is_inference():
            return
        before, base = self._find(written), written if written._base is None else written._base
        held = self._find(base)
        if held is None:
            return
        whole = held[1].label
        self._known[id(base)] = (held[0], held[1], event)
        if label is None or (before is not None and before[1].label is label):
            return
        if base.numel() > MAX_RELABELLED or not base.is_contiguous() or base.dtype != written.dtype:
            return
        if base is written:
            whole = label
        else:
            whole = Window.of(written, base).write(self.labels, whole, label)
            self._remember(base, whole, event)
        for ref, _, _ in list(self._known.values()):
            view = ref()
            if view is not None and view is not written and view._base is base and view.dtype == base.dtype:
                self._remember(view, Window.of(view, base).read(self.labels, whole), event)

    # ------------------------------------------------------------------ modules

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called."""
        if self._fresh:
            self._note_late_write()
        frame = self._frames.get(id(module))
        if frame is None:
            parent = self.stack[-1].path
            kind = type(module)
            path = f"{parent}.{kind.__name__}" if parent else kind.__name__
            frame = self._frames[id(module)] = Frame(path, _argument_names(kind))
        self.stack.append(frame)
        self._arguments.append((args, kwargs))
        if not frame.path or _transforms() is not None:
            return
        names = frame.names
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                self._pass_in(frame, names[position] if position < len(names) else str(position), value)
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                self._pass_in(frame, name, value)

    def _pass_in(self, frame: Frame, name: str, value: Tensor) -> None:
        label = self.label_of(value)
        known = self._known[id(value)]
        if self._holds(known):
            self._boundary_alias(frame, name, INPUT, value, known)
        else:
            event = self._boundary(frame, name, INPUT, value, label)
            if known[2] < 0:
                self._remember(value, label, event)

    def _holds(self, known: _Known) -> bool:
        """Whether the event of a tensor holds all of its value, not what an indexed write wrote of it."""
        _, mark, event = known
        return event >= 0 and self.trace.rows[event][3].shape == mark.size

    def leave(self, result: Any, failed: bool) -> None:
        """A module returns."""
        if self._fresh:
            self._note_late_write()
        frame = self.stack.pop()
        if failed or _transforms() is not None:
            self._arguments.pop()
            return
        for index, value in enumerate((result,) if isinstance(result, Tensor) else _outputs_of(result)):
            known = self._find(value)
            if known is None:
                label = self._guess(value)
                self._remember(value, label, self._boundary(frame, "output", index, value, label))
            elif known[2] < 0 or self.trace.rows[known[2]][3].status == "view":
                event = self._boundary(frame, "output", index, value, known[1].label)
                self._known[id(value)] = (known[0], known[1], event)
            elif self._holds(known):
                self._boundary_alias(frame, "output", index, value, known)
            else:
                self._boundary(frame, "output", index, value, known[1].label)
        self._arguments.pop()

    def _boundary(self, frame: Frame, name: str, output: int, value: Tensor, label: Label | None) -> int:
        """Record what goes into a module (`output` is INPUT), or comes out, and was not recorded before."""
        visits, nth = self._visit(frame, name, output)
        if not self.passive:
            self._offer(visits.ops[0], nth, value, label)
        form = self._form(None, value, label, "", view=False)
        row = self._append(visits.ops[0], nth, form, value)
        if self.watcher is not None:
            self.watcher.saw(self, row, self.true_value(value), label, self._events_of([value]))
        return row

    def _boundary_alias(self, frame: Frame, name: str, output: int, value: Tensor, known: _Known) -> None:
        """Record that a value which is known goes into a module, or comes out."""
        visits, nth = self._visit(frame, name, output)
        _, mark, event = known
        if not self.passive:
            self._offer(visits.ops[0], nth, value, mark.label)
        form = mark.passing
        if form is None:
            form = mark.passing = self._form_of(mark, "digest", "", self._lengths)
        row = len(self.trace.rows)
        self.trace.rows.append((visits.ops[0], self.call, nth, form, event, -1))
        if self.watcher is not None:
            self.watcher.saw(self, row, self.true_value(value), mark.label, [event])

    def _visit(self, frame: Frame, name: str, output: int) -> tuple[_Visits, int]:
        visits = frame.visits.get((name, output))
        if visits is None:
            function = f"input:{name}" if output == INPUT else name
            op = Op(frame.path, function, NOWHERE.site, max(output, 0))
            visits = frame.visits[name, output] = _Visits([op])
        if visits.call != self._visit_of:
            visits.call, visits.nth = self._visit_of, 0
        nth = visits.nth
        visits.nth = nth + 1
        return visits, nth

    def _offer(self, op: Op, nth: int, value: Tensor, label: Label | None) -> None:
        """Show a module's input or output to whoever wants to change or to keep it."""
        key = (op.module, op.function, op.site.chain)
        if self.watcher is not None:
            new = self.watcher.edit(self, key, nth, op.output, self.true_value(value), label)
            if new is not None and new.dtype == value.dtype:
                value.copy_(new)
        for fetch in self._fetches.get(key, ()):
            if (
                fetch.call in (None, self.call)
                and fetch.nth in (None, nth)
                and fetch.output in (None, op.output)
            ):
                copied = value.detach().clone()
                fetch.take(Taken(op, self.call, nth, None, (), {}, (copied,), {}, (label,)))

    def label_of_result(self, value: Tensor, call: int) -> Label | None:
        """The label of something that the model returned in a call.

        Where a tap lost sight of some of the tokens, a result of the shape of the call's own input,
        [rows, columns, ...], holds the call's tokens in their places.
        """
        known = self._find(value)
        label = known[1].label if known is not None else None
        for stream in (DECODER, MAIN):
            slots = self.table.slots(call, stream)
            if slots is None:
                continue
            if slots.ndim == 2 and value.dim() >= 2 and tuple(value.shape[:2]) == slots.shape:
                held = set() if label is None else set(label.q.reshape(-1).tolist())
                tokens = {item for item in slots.reshape(-1).tolist() if self.table.tokens[item] is not None}
                whole = label is not None and not any(self.table.members[i] for i in held if i >= 0)
                if (label is None or whole) and not tokens <= held:
                    return self.labels.make(slots.reshape(slots.shape + (1,) * (value.dim() - 2)))
            break
        return label


# ---------------------------------------------------------------------- helpers

_transforms: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
"""What vmap or grad at work are: None where the tensors that pass by are the model's own."""

_KEYWORDS = object()
_SEQUENCES = frozenset({tuple, list, torch.Size})
_SIMPLE = frozenset(
    {bool, float, complex, str, type(...), torch.device, torch.layout, torch.memory_format, type}
)
"""Kinds of arguments that can key a cache, besides tensors, whole numbers and dtypes."""
_RULE_ERRORS = (IndexError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, StopIteration)
"""What a rule raises that is wrong about its function."""


def _is_number(mark: _Mark) -> bool:
    """Whether a tensor may stand for a number in an index or a size."""
    return mark.label is None and not mark.size and not mark.dtype.is_floating_point


def _writes(function: Function, kwargs: dict[str, Any]) -> bool:
    """Whether a call changes one of its arguments."""
    return function.writes or kwargs.get("out") is not None or bool(kwargs.get("inplace"))


@cache
def _argument_names(kind: type[nn.Module]) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(kind.forward).parameters)[1:]
    except (TypeError, ValueError, AttributeError):  # scripted modules answer for themselves
        return ()


def _outputs_of(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if is_dataclass(result) and not isinstance(result, (type, dict)):
        return tensors_in([getattr(result, field.name) for field in fields(result)], 2)
    return tensors_in(result, 2)


__all__ = ["Event", "Fetch", "Frame", "Recorder", "Row", "Taken", "Watcher"]
