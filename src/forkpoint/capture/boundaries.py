"""Records what goes into modules and comes out of them: one row of the trace for each tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from forkpoint.capture.digest.batch import DigestBatch
from forkpoint.capture.labels import Label
from forkpoint.capture.ledger import INPUT, Ledger
from forkpoint.capture.listener import Listener
from forkpoint.capture.marks import Frame, TensorRecord, Visits, entering
from forkpoint.capture.resolver import Resolver


class Boundaries(Ledger):
    """The part of the tape that records inputs and outputs of modules.

    Args:
        listener, resolver, batch, digests: as for a ledger.
        passive: whether the run is only observed: nobody wants copies of values or changes them.

    Attributes:
        call_number: the number of the current call of the model, unique in the process: tells this call's `Visits` from old ones.
    """

    def __init__(
        self, listener: Listener, resolver: Resolver, batch: DigestBatch, digests: bool, passive: bool
    ) -> None:
        super().__init__(listener, resolver, batch, digests)
        self.passive = passive
        self.call_number = -1
        self._unregistered: dict[tuple[str, type[nn.Module]], Frame] = {}

    @property
    def unregistered(self) -> frozenset[str]:
        """The paths that were made up for modules which the model calls without having them as submodules."""
        return frozenset(path for path, _ in self._unregistered)

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is called: put it on the stack, and record each tensor among its arguments."""
        frame = self.frames.get(id(module))
        self.lasting = frame is not None and bool(frame.path)
        if frame is None:
            frame = self._unregistered_frame(module)
        self.stack.append(frame)
        self.arguments.append((args, kwargs))
        if not frame.path:
            return
        names = frame.names
        for position, value in enumerate(args):
            if isinstance(value, Tensor):
                self.pass_in(frame, names[position] if position < len(names) else str(position), value)
        for name, value in kwargs.items():
            if isinstance(value, Tensor):
                self.pass_in(frame, name, value)

    def pass_in(self, frame: Frame, name: str, value: Tensor) -> None:
        """Record a tensor that goes into a module: as an alias of an earlier row where one holds it, else as a new row."""
        record = self.tensors.get(id(value))
        if self.passive and record is not None and record[0]() is value and self.holds(record):
            self.alias(frame, name, INPUT, record)
        else:
            self.came_in(frame, name, value)

    def left(self, outputs: tuple[Tensor, ...]) -> None:
        """A module returns: take it off the stack, and record each tensor that it returned."""
        frame = self.stack.pop()
        for index, value in enumerate(outputs):
            record = self.tensors.get(id(value))
            if (
                self.passive
                and record is not None
                and record[0]() is value
                and self.holds(record)
                and self.rows[record[2]][2].status != "view"
            ):
                self.alias(frame, "output", index, record)
            else:
                self.came_out(frame, index, value)
        self.arguments.pop()

    def came_in(self, frame: Frame, name: str, value: Tensor) -> None:
        """`pass_in` for any tensor: seen before or not, of known or of unknown tokens."""
        label = self.resolver.label_of(value)
        record = self.tensors[id(value)]
        if self.holds(record):
            self._passed(frame, name, INPUT, value, record)
        else:
            foreign = record[2] < 0
            event = self.boundary(frame, name, INPUT, value, label, foreign=foreign)
            if foreign:
                self.resolver.remember(value, label, event)

    def came_out(self, frame: Frame, index: int, value: Tensor) -> None:
        """Record a tensor that comes out of a module: seen before or not, of known or of unknown tokens."""
        record = self.resolver.find(value)
        if record is None:
            label = self.resolver.guess(value)
            self.resolver.remember(value, label, self.boundary(frame, "output", index, value, label))
        elif record[2] < 0 or self.rows[record[2]][2].status == "view":
            event = self.boundary(frame, "output", index, value, record[1].label)
            self.tensors[id(value)] = (record[0], record[1], event, -1)
        elif self.holds(record):
            self._passed(frame, "output", index, value, record)
        else:
            self.boundary(frame, "output", index, value, record[1].label)

    def boundary(
        self,
        frame: Frame,
        name: str,
        output: int,
        value: Tensor,
        label: Label | None,
        *,
        foreign: bool = False,
    ) -> int:
        """Record a module's input (`output` is INPUT) or output as a row of its own, and have it digested.

        Args:
            frame: the module.
            name: the parameter of the module's forward that takes the value; `output` for an output.
            output: the number of the output, or INPUT.
            value: the tensor.
            label: its label.
            foreign: whether the tensor was there before the run: a watcher's change to it has to be undone.

        Returns:
            The row.
        """
        visits = self.visit(frame, name, output)
        self.listener.offer(visits, value, label, foreign=foreign)
        row = self.append(visits.ops[0], None, value, label)
        if not self.passive:
            self.listener.saw(row, value, label, self.listener.sources((value,), {}))
        return row

    def _passed(self, frame: Frame, name: str, output: int, value: Tensor, record: TensorRecord) -> None:
        """`alias`, and show the value to the watcher and to those who want copies."""
        row = len(self.rows)
        visits = self.alias(frame, name, output, record)
        self.listener.offer(visits, value, record[1].label)
        if not self.passive:
            self.listener.saw(row, value, record[1].label, [record[2]])

    def alias(self, frame: Frame, name: str, output: int, record: TensorRecord) -> Visits:
        """Record a module's input or output whose value another row holds: the new row points back to that one."""
        mark = record[1]
        form = mark.passing
        if form is None:
            form = mark.passing = self.resolver.passing(mark)
        visits = self.visit(frame, name, output)
        self.rows.append((visits.ops[0], self.call, form, len(self.rows) - record[2], 0))
        return visits

    def visit(self, frame: Frame, name: str, output: int) -> Visits:
        """The visits of a module's input or output, after counting one more."""
        visits = self.counted(frame.visits_in(name) if output == INPUT else frame.visits_out(output))
        visits.nth += 1
        return visits

    def counted(self, visits: Visits) -> Visits:
        """The same visits, their count set to 0 if it is that of an earlier call of the model."""
        if visits.call != self.call_number:
            visits.call, visits.nth = self.call_number, 0
        return visits

    def _unregistered_frame(self, module: nn.Module) -> Frame:
        """The frame of a module that is no submodule of the model, with a path below the module that calls it.

        It is found by that path and its class, not by its id: many such modules live for a single call, and the next one
        may get the same id.
        """
        parent, kind = self.stack[-1].path, type(module)
        path = f"{parent}.{kind.__name__}" if parent else kind.__name__
        frame = self._unregistered.get((path, kind))
        if frame is None:
            frame = self._unregistered[path, kind] = Frame(path, entering(kind).names)
        return frame
