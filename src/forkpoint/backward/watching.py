"""Watches the gradients of ops' outputs arrive, by hooks on the tensors that a run makes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from forkpoint.backward.going_back import GoingBack
from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import Recorder, Watcher
from forkpoint.capture.trace import Op
from forkpoint.capture.writes import INDEXED_WRITES
from forkpoint.runs.layout import STREAMS
from forkpoint.support.readable import why_unreadable

NO_GRADIENT = "not compared", "the gradient of its output could not be seen"
"""What is said of an op such as those within an `autograd.Function`, and of writes to a part of a tensor."""


@dataclass(frozen=True, eq=False)
class Awaited:
    """A value whose gradient is to come.

    Attributes:
        event: where the value stands in the recorder's trace.
        call, nth: of its pass.
        label: of the value, and so of its gradient.
        lost: why that is not known.
    """

    event: int
    op: Op
    call: int
    nth: int
    label: Label | None
    lost: str
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class Graph:
    """Which values of a run were made of which.

    Attributes:
        ops: by event, what made the value.
        made_of: by event, the events that the value was made of; of two that are one tensor the first stands for both.
        unseen: by event, functions of autograd that read the value and made none that was seen.
    """

    def __init__(self) -> None:
        self.ops: dict[int, Op] = {}
        self.made_of: dict[int, list[int]] = {}
        self.unseen: dict[int, dict[str, None]] = {}
        self._same: dict[int, int] = {}

    def add(self, event: int, op: Op, sources: list[int]) -> None:
        """Note a value."""
        self.ops[event] = op
        self.made_of[event] = [self.first_of(source) for source in sources]

    def is_again(self, event: int, earlier: int) -> None:
        """Note that an event is the tensor of an earlier one."""
        self._same[event] = self.first_of(earlier)

    def first_of(self, event: int) -> int:
        """The first of the events that are the same tensor."""
        return self._same.get(event, event)

    def readers(self, event: int) -> list[Op]:
        """The ops that a value went into."""
        first = self.first_of(event)
        return [
            self.ops[other]
            for other, sources in self.made_of.items()
            if first in sources and self.first_of(other) != first and not self.ops[other].is_input
        ]


class Arrivals(Watcher):
    """A watcher that is told of the gradient of every value that a run makes.

    A subclass says what is done with it. A value that no gradient arrives at, although it requires one, does not count in the
    loss: its gradient is zero.

    Args:
        backward: makes the backward pass of the run.
        summing: whether the calls of the two runs hold other tokens, so that what adds up over them is left out: a value of no
            token, and one that a later call reads again, which has a share of its tokens' gradient in each.

    Attributes:
        awaited: by event, the values that require a gradient.
        left_out: ops with outputs whose gradient adds up.
        arrived: events whose gradient came.
        graph: what was made of what.
    """

    def __init__(self, backward: GoingBack, *, summing: bool) -> None:
        self.backward = backward
        self.summing = summing
        self.awaited: dict[int, Awaited] = {}
        self.left_out: dict[Op, None] = {}
        self.arrived: set[int] = set()
        self.graph = Graph()
        self._by_tensor: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._late: list[tuple[Awaited, weakref.ref[Tensor], int]] = []
        self._edges: dict[tuple[Node | None, int], int] = {}
        backward.before_backward = self._look_for_unseen
        self._turn = threading.Lock()  # the gradients of each device come on a thread of its own
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    # ------------------------------------------------------------------ what a subclass does

    def await_(self, recorder: Recorder, awaited: Awaited) -> None:
        """A value is to be watched."""

    def take(self, awaited: Awaited, gradient: Tensor) -> Tensor | None:
        """A gradient has come, in memory of its own; what is returned is gone on with in its place."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what a watcher does

    def saw(
        self, recorder: Recorder, event: int, value: Tensor, label: Label | None, inputs: list[int]
    ) -> None:
        tensor = recorder.passing
        op, _, form, back, _ = recorder.trace.rows[event]
        self._look_again(recorder)
        if back:
            self.graph.is_again(event, event - back)
            return
        self.graph.add(event, op, inputs)
        if tensor is None or not form.floating or op.is_input or op.function in INDEXED_WRITES:
            return
        if tensor is not value or id(tensor) in recorder.owned or why_unreadable(tensor):
            return  # kept elsewhere in float64; or a weight, whose gradient is looked at by itself
        earlier = self._by_tensor.get(id(tensor))
        if earlier is not None and earlier[0]() is tensor and earlier[1] == _version(tensor):
            self.graph.is_again(event, earlier[2])
            return
        self._by_tensor[id(tensor)] = weakref.ref(tensor), _version(tensor), event
        nth = recorder.trace.nth(event)
        lost = form.reason if label is None else ""
        awaited = Awaited(
            event, op, recorder.call, nth, label, lost, tensor.shape, tensor.dtype, tensor.device
        )
        if tensor.requires_grad:
            self._watch(recorder, awaited, tensor)
        else:
            self._late.append((awaited, weakref.ref(tensor), _version(tensor)))

    def close(self) -> None:
        """Let go of all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._late.clear()
        self._by_tensor.clear()
        self._edges.clear()

    def _look_again(self, recorder: Recorder) -> None:
        """What is made within an `autograd.Function` requires a gradient only when that has returned it."""
        if not self._late or not torch.is_grad_enabled():
            return
        for awaited, ref, version in self._late:
            tensor = ref()
            if tensor is not None and tensor.requires_grad and _version(tensor) == version:
                self._watch(recorder, awaited, tensor)
        self._late.clear()

    def _look_for_unseen(self, losses: Sequence[Tensor]) -> None:
        """Find functions of autograd, such as kernels in other languages, that take values and make none that was seen."""
        seen = {node for node, _ in self._edges}
        left = [loss.grad_fn for loss in losses]
        visited = set[Node]()
        while left:
            node = left.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            before = node.next_functions
            left += [other for other, _ in before]
            if node not in seen and (isinstance(node, BackwardCFunction) or "CppNode" in node.name()):
                for edge in before:
                    event = self._edges.get(edge)
                    if event is not None:
                        self.graph.unseen.setdefault(event, {})[node.name()] = None
        self._edges.clear()

    def _watch(self, recorder: Recorder, awaited: Awaited, tensor: Tensor) -> None:
        if tensor.grad_fn is not None:
            self._edges[tensor.grad_fn, tensor.output_nr] = awaited.event
        if self.summing and not holds_every_token(awaited.label, recorder.table, awaited.call):
            self.left_out[awaited.op] = None
            return
        self.awaited[awaited.event] = awaited
        self.await_(recorder, awaited)

        def arrived(gradient: Tensor) -> Tensor | None:
            if not self.backward.at_work:
                return None  # the model itself asks for gradients on the way forward
            with torch._C.DisableTorchFunction(), torch.no_grad(), self._turn:
                self.arrived.add(awaited.event)
                return self.take(awaited, gradient.detach().clone())

        self._handles.append(tensor.register_hook(arrived))


def holds_every_token(label: Label | None, table: CoordinateTable, call: int) -> bool:
    """Whether a value has something of its own for every token of a call, and for none of another call."""
    if label is None:
        return False
    held = np.unique(label.q)
    for stream in STREAMS:
        slots = table.slots(call, stream)
        if slots is not None and slots.size:
            tokens = np.unique(slots)
            if np.isin(tokens[~table.are_padding(tokens)], held).all():
                return bool(np.isin(held[held >= 0], tokens).all())
    return False


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
