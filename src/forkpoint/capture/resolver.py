"""What the tape asks for: whoever records a run works out all that comes for the first time."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from forkpoint.capture.functions import Function
from forkpoint.capture.labels import Label
from forkpoint.capture.marks import Answer, Frame, Mark, Treatment, Visits
from forkpoint.capture.sites import Place
from forkpoint.capture.trace import Form, Trace


class Resolver(Protocol):
    """Works out labels and how values are digested, and serves those who want to keep or to change what passes by."""

    trace: Trace

    # ------------------------------------------------------------------ labels and digests

    def ask(
        self,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: tuple[Tensor, ...],
        key: tuple[Any, ...] | None,
    ) -> Answer:
        """The answer for a call, worked out, and kept under a key if it holds for all calls of this kind."""
        ...

    def mark_of(self, tensor: Tensor) -> Mark:
        """The mark of a tensor that may never have been seen."""
        ...

    def treat(
        self, function: Function, answer: Answer, index: int, output: Tensor, *, view: bool
    ) -> Treatment:
        """How to treat an output for which its answer has nothing yet, or something of another size."""
        ...

    def closed(self, treatment: Treatment) -> Treatment:
        """What to do with a value instead, where no more dimensions can be suspected."""
        ...

    def passing(self, mark: Mark) -> Form:
        """The form of a value that only passes into a module or out of one."""
        ...

    def collect(self) -> None:
        """Put digests that are on the host on the shelf, if there is one."""
        ...

    # ------------------------------------------------------------------ calls

    def watched(self, function: Function, place: Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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

    def stranger(self, module: nn.Module) -> Frame:
        """The frame of a module that is no part of the model: under the one that calls it."""
        ...

    def came_in(self, frame: Frame, name: str, value: Tensor) -> None:
        """Record what goes into a module, whatever it is."""
        ...

    def came_out(self, frame: Frame, index: int, value: Tensor) -> None:
        """Record what comes out of a module, whatever it is."""
        ...

    def deliver(self) -> None:
        """Hand over the wanted outputs of modules whose labels are known by now."""
        ...
