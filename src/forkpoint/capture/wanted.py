"""The modules that a second pass has to treat apart, so that all others can be recorded in passing, as in a trace.

For a call of a function, every call of its module is recorded at once, so that the arguments can be copied. An output of a
module is copied when the module returns; its label is known when the tape is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from forkpoint.capture.hooks import Fetch
from forkpoint.capture.labels import Label
from forkpoint.capture.marks import Frame, TensorRecord
from forkpoint.capture.sites import NOWHERE
from forkpoint.support.readable import why_unreadable


@dataclass
class PendingOutput:
    """An output of a module that a fetch wants, until its label is known.

    Attributes:
        fetch: which wants it.
        frame: of the module.
        index: which output it is.
        nth: how often the module had returned before in this call of the model.
        value: the model's tensor; kept alive, so that its id leads to its label.
        copied: a copy of it as it was returned.
    """

    fetch: Fetch
    frame: Frame
    index: int
    nth: int
    value: Tensor
    copied: Tensor


@dataclass
class FetchTargets:
    """The modules of a model that a second pass has to look into, by their ids.

    Attributes:
        inside: those that call a function that a fetch wants.
        outputs: those of which an output is wanted, with the fetches that want it.
        returned: outputs whose labels are not known yet.
    """

    inside: set[int] = field(default_factory=set[int])
    outputs: dict[int, tuple[Frame, list[Fetch]]] = field(default_factory=dict[int, Any])
    returned: list[PendingOutput] = field(default_factory=list[PendingOutput])
    _counts: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])

    @classmethod
    def of(
        cls, fetches: Sequence[Fetch], frames: dict[int, Frame], unregistered: frozenset[str] = frozenset()
    ) -> FetchTargets | None:
        """The modules that some fetches want; None if that can't be told by modules, so that every call is recorded at once.

        Args:
            fetches: what is wanted.
            frames: of the model's modules, by their ids.
            unregistered: see `Boundaries.unregistered`.
        """
        wanted = cls()
        modules = {frame.path: (key, frame) for key, frame in frames.items() if frame.path}
        for fetch in fetches:
            path, function, chain = fetch.key
            at = modules.get(path)
            if at is None or path in unregistered:
                return None
            key, frame = at
            if chain != NOWHERE.site.chain:
                wanted.inside.add(key)
            elif function == "output" and fetch.nth is None:
                wanted.outputs.setdefault(key, (frame, []))[1].append(fetch)
            else:
                return None
        return wanted

    def begin(self) -> None:
        """A call of the model begins."""
        self.returned.clear()
        self._counts.clear()

    def note(self, module: int, outputs: Sequence[Tensor], call: int) -> int:
        """A module has returned: copy what is wanted of it; returns how many bytes were copied.

        Args:
            module: its id.
            outputs: the tensors that it returned.
            call: index of the model's call.
        """
        frame, fetches = self.outputs[module]
        n_bytes = 0
        for index, value in enumerate(outputs):
            nth = self._counts[module, index]
            self._counts[module, index] += 1
            for fetch in () if why_unreadable(value) else fetches:
                if fetch.call in (None, call) and fetch.output in (None, index):
                    copied = value.detach().clone()
                    self.returned.append(PendingOutput(fetch, frame, index, nth, value, copied))
                    n_bytes += copied.nbytes if copied.layout is torch.strided else 0
        return n_bytes

    def settle(
        self, find: Callable[[Tensor], TensorRecord | None]
    ) -> list[tuple[PendingOutput, Label | None]]:
        """The outputs that were read from the tape by now, with their labels; they are no longer kept alive.

        Args:
            find: gives the record of a tensor; None if it wasn't read yet.
        """
        settled: list[tuple[PendingOutput, Label | None]] = []
        waiting: list[PendingOutput] = []
        for returned in self.returned:
            record = find(returned.value)
            if record is None:
                waiting.append(returned)
            else:
                settled.append((returned, record[1].label))
        self.returned = waiting
        return settled
