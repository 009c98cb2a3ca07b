"""What the tape tells whoever records a run, and what it leaves to it."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from forkpoint.capture.functions import Function
from forkpoint.capture.labels import Label
from forkpoint.capture.marks import Answer, Visits
from forkpoint.capture.sites import CallStack
from forkpoint.capture.trace import Trace


class Listener(Protocol):
    """Records what can't wait to be read, and serves those who want to keep or to change what passes by."""

    trace: Trace

    def collect(self) -> None:
        """The digests of all that was read are on their way: put those that are on the host on the shelf, if there is one."""
        ...

    # ------------------------------------------------------------------ calls

    def watched(
        self, function: Function, place: CallStack, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make and record a call that somebody wants to keep or to change, or that other modes see, too."""
        ...

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
        ...

    def sources(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """The events of the tensors that go into a call, if a watcher wants to know."""
        ...

    def saw(self, row: int, output: Tensor, label: Label | None, sources: list[int]) -> None:
        """Tell the watcher of an output."""
        ...

    # ------------------------------------------------------------------ modules

    def offer(self, visits: Visits, value: Tensor, label: Label | None, *, foreign: bool = False) -> None:
        """Show a module's input or output to whoever wants to change or to keep it."""
        ...

    def deliver(self) -> None:
        """Hand over the wanted outputs of modules whose labels are known by now."""
        ...
