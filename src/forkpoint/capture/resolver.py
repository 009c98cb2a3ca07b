"""The resolver: what a call makes of the tokens that go in, and how a value is digested.

It works out whatever comes for the first time and keeps the answers; of the trace it writes nothing.
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
from forkpoint.capture.marks import Answer, Known, Mark, Treatment
from forkpoint.capture.rules import Call, UnknownMovementError, propagate, tensors_in, through_module
from forkpoint.capture.trace import Form
from forkpoint.capture.writes import Window

MAX_RELABELLED = 1 << 22
"""Most elements of a tensor whose coordinates are rewritten after a write that it shares."""


class Resolver:
    """Labels and digest policy of one run.

    Args:
        labels: those of the run.

    Attributes:
        known: what is known of each tensor that passed by, by its id.
        answers: to calls of this layout and these lengths, by function and marks.
        lengths: of the call's token dimensions.
        arguments: what went into each module at work, the innermost last.
        last_outputs: labels and shapes of what the last function made.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.table = labels.table
        self.known: dict[int, Known] = {}
        self.answers: dict[Any, Answer] = {}
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
            self.answers[key] = answer
        return answer

    def mark(self, value: Tensor, label: Label | None, lost: str = "") -> Mark:
        """The mark of a value of this label; `lost`: why it has none."""
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
        known = answer.viewed if view else answer.own
        label, seen = answer.labels[index], known[index]
        if seen is not None and seen.mark.size != output.shape:  # how large it is depends on values
            if not fits(label, output):
                return self.treatment(
                    function, output, None, f"no rule fits this call of {function.name}", view=view
                )
            return self.treatment(function, output, label, answer.reason, view=view)
        known[index] = found = self.treatment(function, output, label, answer.reason, view=view)
        return found

    def treatment(
        self, function: Function | None, value: Tensor, label: Label | None, reason: str, *, view: bool
    ) -> Treatment:
        """How a value is treated that a function made, or a module took or gave."""
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
        return self._treatment_of(mark, "digest", "", self.lengths).form

    # ------------------------------------------------------------------ tensors

    def swapped(self, a: Tensor, b: Tensor, swap: Callable[[], object]) -> None:
        """Have two tensors swapped.

        Torch does not swap what has weak references; and what was recorded of each is the other's from then on.
        """
        found = self.known.pop(id(a), None), self.known.pop(id(b), None)
        mine = tuple(None if known is None else known[1:] for known in found)
        found = None
        try:
            swap()
            mine = mine[::-1]
        finally:
            for tensor, rest in zip((a, b), mine, strict=True):
                if rest is not None:
                    self.known[id(tensor)] = (weakref.ref(tensor), *rest)

    def find(self, tensor: Tensor) -> Known | None:
        """What is known of a tensor; None if it never passed by."""
        known = self.known.get(id(tensor))
        return known if known is not None and known[0]() is tensor else None

    def label_of(self, tensor: Tensor) -> Label | None:
        """The label of a tensor that may never have been seen."""
        known = self.known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1].label
        return self._unseen(tensor)

    def mark_of(self, tensor: Tensor) -> Mark:
        """The mark of a tensor that may never have been seen."""
        self.label_of(tensor)
        return self.known[id(tensor)][1]

    def lost(self, tensor: Tensor) -> str:
        """Why the coordinates of a tensor are not known; empty if they are, or if no tap saw it."""
        known = self.find(tensor)
        return known[1].lost if known is not None else ""

    def _unseen(self, tensor: Tensor) -> Label | None:
        """A tensor that no tap saw being made: shaped like the last value or its module's inputs."""
        label = self.guess(tensor)
        self.remember(tensor, label, -1)
        return label

    def guess(self, tensor: Tensor) -> Label | None:
        """A label for a tensor that no tap saw being made."""
        if tensor.is_nested:
            return None
        shape = tuple(tensor.shape)
        for label, seen in self.last_outputs:
            if label is not None and seen == shape:
                return label
        return through_module(self.labels, self._frame_inputs(), shape)

    def _frame_inputs(self) -> list[tuple[Label | None, Shape]]:
        inputs = [(t, self.find(t)) for t in tensors_in(self.arguments[-1])]
        return [(known[1].label, tuple(known[1].size)) for _, known in inputs if known is not None]

    def remember(self, tensor: Tensor, label: Label | None, event: int, lost: str = "") -> None:
        """Note the label of a tensor and the row that holds its value (-1: none does)."""
        self.known[id(tensor)] = (weakref.ref(tensor), self.mark(tensor, label, lost), event, -1)

    def note_shared(self, written: Tensor, label: Label | None, event: int) -> None:
        """A write is seen by all that share its memory: by the base of a view, and by the views of a base."""
        if written.is_inference():
            return
        before, base = self.find(written), written if written._base is None else written._base
        held = self.find(base)
        if held is None:
            return
        whole = held[1].label
        self.known[id(base)] = (held[0], held[1], event, -1)
        if label is None or (before is not None and before[1].label is label):
            return
        if base.numel() > MAX_RELABELLED or not base.is_contiguous() or base.dtype != written.dtype:
            return
        if base is written:
            whole = label
        else:
            whole = Window.of(written, base).write(self.labels, whole, label)
            self.remember(base, whole, event)
        for ref, *_ in list(self.known.values()):
            view = ref()
            if view is not None and view is not written and view._base is base and view.dtype == base.dtype:
                self.remember(view, Window.of(view, base).read(self.labels, whole), event)


# ---------------------------------------------------------------------- helpers

_RULE_ERRORS = (IndexError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, StopIteration)
"""What a rule raises that is wrong about its function."""
_NO_SIZE = torch.Size([-1])
"""Stands for the size of nested tensors, whose rows have lengths of their own."""


def _is_number(mark: Mark) -> bool:
    """Whether a tensor may stand for a number in an index or a size."""
    return mark.label is None and not mark.size and not mark.dtype.is_floating_point
