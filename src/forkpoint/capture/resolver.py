"""The resolver: works out the labels of a call's outputs, and how a value is digested.

It is asked when a cache has no answer, and fills the cache. It writes nothing to the trace.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from forkpoint.capture.cells import cut
from forkpoint.capture.functions import UNWRITTEN, Function
from forkpoint.capture.labels import Label, Labels, Shape, fits
from forkpoint.capture.marks import CallAnswer, Mark, TensorRecord, Treatment
from forkpoint.capture.rules import Call, UnknownMovementError, propagate, tensors_in, through_module
from forkpoint.capture.trace import Form
from forkpoint.capture.writes import Window

MAX_RELABELLED = 1 << 22
"""Most elements of a tensor whose label is worked out again after a write to a view of it."""


class Resolver:
    """Works out labels and treatments for one run.

    Args:
        labels: those of the run's layout.

    Attributes:
        tensors: the record of each tensor that was seen, by its id.
        answers: the cache of answers for calls of this layout and these lengths, by function and marks.
        lengths: the sizes that a dimension over the current call's tokens can have.
        arguments: the arguments of each module on the stack, the innermost last.
        last_outputs: labels and shapes of the outputs of the last function, for tensors that no tap saw being made.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.table = labels.table
        self.tensors: dict[int, TensorRecord] = {}
        self.answers: dict[Any, CallAnswer] = {}
        self.lengths: frozenset[int] = frozenset()
        self.arguments: list[tuple[Any, ...]] = [()]
        self.last_outputs: tuple[tuple[Label | None, Shape], ...] = ()

    def begin(self, lengths: frozenset[int]) -> None:
        """A forward call of the model begins, with token dimensions of these lengths."""
        self.lengths = lengths
        self.answers = self.labels.answers.setdefault(lengths, {})

    def ask(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
        key: tuple[Any, ...] | None,
    ) -> CallAnswer:
        """Work out the answer for a call.

        Args:
            function, args, kwargs, outputs: the call.
            key: where to keep the answer, if it holds for every call with this key; None to keep it nowhere.
        """
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
        answer = CallAnswer(labels, reason, last)
        if key is not None and lasting:
            self.answers[key] = answer
        return answer

    def mark(self, value: Tensor, label: Label | None, lost: str = "") -> Mark:
        """The mark of a value with a label; without one, `lost` says why."""
        if label is not None:
            lost = ""
        size = _NO_SIZE if value.is_nested else value.shape
        key = (label, size, value.dtype, value.get_device(), lost)
        mark = self.labels.marks.get(key)
        if mark is None:
            mark = self.labels.marks[key] = Mark(*key)
        return mark

    def treat(
        self, function: Function, answer: CallAnswer, index: int, output: Tensor, *, view: bool
    ) -> Treatment:
        """The treatment of an output, where its answer has none yet or one for another size; kept in the answer.

        Args:
            function: which made it.
            answer: for the call.
            index: which output it is.
            output: the tensor.
            view: whether it shares memory with an argument.
        """
        treatments = answer.viewed if view else answer.own
        label, seen = answer.labels[index], treatments[index]
        if seen is not None and seen.mark.size != output.shape:  # how large it is depends on values
            if not fits(label, output):
                return self.treatment(
                    function, output, None, f"no rule fits this call of {function.name}", view=view
                )
            return self.treatment(function, output, label, answer.reason, view=view)
        treatments[index] = treatment = self.treatment(function, output, label, answer.reason, view=view)
        return treatment

    def treatment(
        self, function: Function | None, value: Tensor, label: Label | None, reason: str, *, view: bool
    ) -> Treatment:
        """The treatment of a value: a view is listed only, some values can't be digested, all others are.

        Args:
            function: which made it; None for a module's input or output.
            value: the tensor.
            label: its label.
            reason: why it has none.
            view: whether it shares memory with an argument.
        """
        mark = self.mark(value, label, reason)
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
        return self._treatment_of(mark, status, reason, self.lengths)

    def _treatment_of(self, mark: Mark, status: str, reason: str, lengths: frozenset[int]) -> Treatment:
        key = (mark, status, reason, lengths)
        treatment = self.labels.treatments.get(key)
        if treatment is None:
            shape, dtype = tuple(mark.size), mark.dtype
            how = cut(self.table, mark.label, shape, lengths)
            floating = dtype.is_floating_point or dtype.is_complex
            name = str(dtype).removeprefix("torch.")
            form = Form(status, shape, name, floating, how.cells, how.width, reason)
            treatment = self.labels.treatments[key] = Treatment(form, mark, how)
        return treatment

    def closed(self, treatment: Treatment) -> Treatment:
        """The same treatment without open dimensions."""
        form = treatment.form
        return self._treatment_of(treatment.mark, form.status, form.reason, frozenset())

    def passing(self, mark: Mark) -> Form:
        """The form of a row that is only an alias: a module's input or output that another row holds."""
        return self._treatment_of(mark, "digest", "", self.lengths).form

    # ------------------------------------------------------------------ tensors

    def swapped(self, a: Tensor, b: Tensor, swap: Callable[[], object]) -> None:
        """Swap two tensors, and their records with them; torch refuses tensors with weak references, so these go first.

        Args:
            a, b: the tensors.
            swap: swaps them.
        """
        records = self.tensors.pop(id(a), None), self.tensors.pop(id(b), None)
        mine = tuple(None if record is None else record[1:] for record in records)
        records = None
        try:
            swap()
            mine = mine[::-1]
        finally:
            for tensor, rest in zip((a, b), mine, strict=True):
                if rest is not None:
                    self.tensors[id(tensor)] = (weakref.ref(tensor), *rest)

    def find(self, tensor: Tensor) -> TensorRecord | None:
        """The record of a tensor; None if no tap saw it."""
        record = self.tensors.get(id(tensor))
        return record if record is not None and record[0]() is tensor else None

    def label_of(self, tensor: Tensor) -> Label | None:
        """The label of a tensor, guessed for one that no tap saw being made."""
        record = self.tensors.get(id(tensor))
        if record is not None and record[0]() is tensor:
            return record[1].label
        return self._unseen(tensor)

    def mark_of(self, tensor: Tensor) -> Mark:
        """The mark of a tensor, with a guessed label for one that no tap saw being made."""
        self.label_of(tensor)
        return self.tensors[id(tensor)][1]

    def lost(self, tensor: Tensor) -> str:
        """Why a tensor has no label; empty if it has one, or if no tap saw it."""
        record = self.find(tensor)
        return record[1].lost if record is not None else ""

    def _unseen(self, tensor: Tensor) -> Label | None:
        """The guessed label of a tensor that no tap saw being made; the tensor gets a record."""
        label = self.guess(tensor)
        self.remember(tensor, label, -1)
        return label

    def guess(self, tensor: Tensor) -> Label | None:
        """A label for a tensor that no tap saw being made: that of the last output, or of a module's input, of its shape."""
        if tensor.is_nested:
            return None
        shape = tuple(tensor.shape)
        for label, seen in self.last_outputs:
            if label is not None and seen == shape:
                return label
        return through_module(self.labels, self._frame_inputs(), shape)

    def _frame_inputs(self) -> list[tuple[Label | None, Shape]]:
        inputs = [(t, self.find(t)) for t in tensors_in(self.arguments[-1])]
        return [(record[1].label, tuple(record[1].size)) for _, record in inputs if record is not None]

    def remember(self, tensor: Tensor, label: Label | None, event: int, lost: str = "") -> None:
        """Make the record of a tensor.

        Args:
            tensor: the tensor.
            label: its label.
            event: the row that holds its value; -1 if none does.
            lost: why it has no label.
        """
        self.tensors[id(tensor)] = (weakref.ref(tensor), self.mark(tensor, label, lost), event, -1)

    def note_shared(self, written: Tensor, label: Label | None, event: int) -> None:
        """Correct the records of tensors that share the memory of a write: of a view's base, and of all views of the base.

        Args:
            written: the tensor that was written to.
            label: its label after the write.
            event: the row that holds what was written.
        """
        if written.is_inference():
            return
        before, base = self.find(written), written if written._base is None else written._base
        held = self.find(base)
        if held is None:
            return
        whole = held[1].label
        self.tensors[id(base)] = (held[0], held[1], event, -1)
        if label is None or (before is not None and before[1].label is label):
            return
        if base.numel() > MAX_RELABELLED or not base.is_contiguous() or base.dtype != written.dtype:
            return
        if base is written:
            whole = label
        else:
            whole = Window.of(written, base).write(self.labels, whole, label)
            self.remember(base, whole, event)
        for ref, *_ in list(self.tensors.values()):
            view = ref()
            if view is not None and view is not written and view._base is base and view.dtype == base.dtype:
                self.remember(view, Window.of(view, base).read(self.labels, whole), event)


# ---------------------------------------------------------------------- helpers

_RULE_ERRORS = (IndexError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, StopIteration)
"""What a rule may raise when a call is not as it expects."""
_NO_SIZE = torch.Size([-1])
"""In place of the size of a nested tensor, whose rows have lengths of their own."""


def _is_number(mark: Mark) -> bool:
    """Whether a tensor may stand for a number in an index or a size."""
    return mark.label is None and not mark.size and not mark.dtype.is_floating_point
