"""What goes into modules and comes out of them, as rows of the trace."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from forkpoint.capture.digest.batch import Batch
from forkpoint.capture.labels import Label
from forkpoint.capture.ledger import INPUT, Ledger
from forkpoint.capture.listener import Listener
from forkpoint.capture.marks import Frame, Known, Visits, entering
from forkpoint.capture.resolver import Resolver


class Boundaries(Ledger):
    """Records the boundaries of modules.

    Args:
        listener, resolver, batch, digests: as for a ledger.
        passive: whether the run is only looked on: nobody wants copies of values, nor to change them.

    Attributes:
        visit_of: the number of the model's call, of all that were ever recorded.
    """

    def __init__(
        self, listener: Listener, resolver: Resolver, batch: Batch, digests: bool, passive: bool
    ) -> None:
        super().__init__(listener, resolver, batch, digests)
        self.passive = passive
        self.visit_of = -1
        self._strangers: dict[tuple[str, type[nn.Module]], Frame] = {}

    @property
    def strangers(self) -> frozenset[str]:
        """Paths that modules went by which are no part of the model."""
        return frozenset(path for path, _ in self._strangers)

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record what goes into a module."""
        frame = self.frames.get(id(module))
        self.lasting = frame is not None and bool(frame.path)
        if frame is None:
            frame = self._stranger(module)
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
        """Record a value that goes into a module."""
        known = self.known.get(id(value))
        if self.passive and known is not None and known[0]() is value and self.holds(known):
            self.alias(frame, name, INPUT, known)
        else:
            self.came_in(frame, name, value)

    def left(self, outputs: tuple[Tensor, ...]) -> None:
        """Record what comes out of a module."""
        frame = self.stack.pop()
        for index, value in enumerate(outputs):
            known = self.known.get(id(value))
            if (
                self.passive
                and known is not None
                and known[0]() is value
                and self.holds(known)
                and self.rows[known[2]][2].status != "view"
            ):
                self.alias(frame, "output", index, known)
            else:
                self.came_out(frame, index, value)
        self.arguments.pop()

    def came_in(self, frame: Frame, name: str, value: Tensor) -> None:
        """Record what goes into a module, whatever it is."""
        label = self.resolver.label_of(value)
        known = self.known[id(value)]
        if self.holds(known):
            self._passed(frame, name, INPUT, value, known)
        else:
            foreign = known[2] < 0
            event = self.boundary(frame, name, INPUT, value, label, foreign=foreign)
            if foreign:
                self.resolver.remember(value, label, event)

    def came_out(self, frame: Frame, index: int, value: Tensor) -> None:
        """Record what comes out of a module, whatever it is."""
        known = self.resolver.find(value)
        if known is None:
            label = self.resolver.guess(value)
            self.resolver.remember(value, label, self.boundary(frame, "output", index, value, label))
        elif known[2] < 0 or self.rows[known[2]][2].status == "view":
            event = self.boundary(frame, "output", index, value, known[1].label)
            self.known[id(value)] = (known[0], known[1], event, -1)
        elif self.holds(known):
            self._passed(frame, "output", index, value, known)
        else:
            self.boundary(frame, "output", index, value, known[1].label)

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
        """Record what goes into a module (`output` is INPUT), or comes out, and was not recorded before.

        Args:
            foreign: whether the run did not make the value.
        """
        visits = self.visit(frame, name, output)
        self.listener.offer(visits, value, label, foreign=foreign)
        row = self.append(visits.ops[0], None, value, label)
        if not self.passive:
            self.listener.saw(row, value, label, self.listener.sources((value,), {}))
        return row

    def _passed(self, frame: Frame, name: str, output: int, value: Tensor, known: Known) -> None:
        """Record that a value which is known goes into a module, or comes out, and show it to whoever cares."""
        row = len(self.rows)
        visits = self.alias(frame, name, output, known)
        self.listener.offer(visits, value, known[1].label)
        if not self.passive:
            self.listener.saw(row, value, known[1].label, [known[2]])

    def alias(self, frame: Frame, name: str, output: int, known: Known) -> Visits:
        """Record that a value which is known goes into a module, or comes out."""
        mark = known[1]
        form = mark.passing
        if form is None:
            form = mark.passing = self.resolver.passing(mark)
        visits = self.visit(frame, name, output)
        self.rows.append((visits.ops[0], self.call, form, len(self.rows) - known[2], 0))
        return visits

    def visit(self, frame: Frame, name: str, output: int) -> Visits:
        """The visits of a module's input or output, this one counted."""
        visits = self.counted(frame.visits_in(name) if output == INPUT else frame.visits_out(output))
        visits.nth += 1
        return visits

    def counted(self, visits: Visits) -> Visits:
        """The same, with those of this call counted from 0."""
        if visits.call != self.visit_of:
            visits.call, visits.nth = self.visit_of, 0
        return visits

    def _stranger(self, module: nn.Module) -> Frame:
        """The frame of a module that is no part of the model: under the one that calls it.

        Many are made for a single call, and the next one lies where they lay, so that they go by class alone.
        """
        parent, kind = self.stack[-1].path, type(module)
        path = f"{parent}.{kind.__name__}" if parent else kind.__name__
        frame = self._strangers.get((path, kind))
        if frame is None:
            frame = self._strangers[path, kind] = Frame(path, entering(kind).names)
        return frame
