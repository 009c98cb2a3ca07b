"""The interface of the recorder to the tape: what the tape calls, so that neither needs the other's file."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from forkpoint.capture.functions import Function
from forkpoint.capture.labels import Label
from forkpoint.capture.marks import CallAnswer, Visits
from forkpoint.capture.sites import CallStack
from forkpoint.capture.trace import Trace


class Listener(Protocol):
    """What the tape asks of the recorder: to record what can't wait, and to serve fetches and the watcher."""

    trace: Trace

    def collect(self) -> None:
        """Called after each flush: put digests that are on the host on the shelf, if there is one."""
        ...

    # ------------------------------------------------------------------ calls

    def watched(
        self, function: Function, place: CallStack, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make a call and record it at once: it writes, a fetch or the watcher wants it, or other modes are active."""
        ...

    def wrote(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
        visits: Visits,
        answer: CallAnswer,
    ) -> list[Label | None]:
        """Record what a function wrote in place: the whole outputs or, for an indexed write, the elements that it wrote.

        Returns:
            The labels of the outputs.
        """
        ...

    def sources(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """The rows that hold the values of a call's tensors; empty without a watcher."""
        ...

    def saw(self, row: int, output: Tensor, label: Label | None, sources: list[int]) -> None:
        """Tell the watcher of a value that was recorded.

        Args:
            row: its row.
            output: the tensor.
            label: its label.
            sources: the rows of the tensors that it was made of.
        """
        ...

    # ------------------------------------------------------------------ modules

    def offer(self, visits: Visits, value: Tensor, label: Label | None, *, foreign: bool = False) -> None:
        """Show a module's input or output to the watcher, which may change it, and to the fetches."""
        ...

    def deliver(self) -> None:
        """Give the wanted outputs of modules to their fetches, as soon as their labels are known."""
        ...
