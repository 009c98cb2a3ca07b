"""What a second pass has to look into, so that it may follow the rest in passing, as a trace does.

A call of a function is kept as it is made, so all that its module does is recorded at once. An output of a module needs
no more than a copy of the value when the module returns it; its label follows when the tape is read.
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
from forkpoint.capture.marks import Frame, Known
from forkpoint.capture.sites import NOWHERE
from forkpoint.support.readable import why_unreadable


@dataclass
class Returned:
    """An output of a module that somebody wants to keep.

    Attributes:
        value: what the model goes on with; held until its label is known.
        copied: a copy of it as it was returned.
        nth: how often the module had given it in this call of the model.
    """

    fetch: Fetch
    frame: Frame
    index: int
    nth: int
    value: Tensor
    copied: Tensor


@dataclass
class Wanted:
    """The modules of a model that a second pass has to look into, by their ids.

    Attributes:
        inside: those that call a function that is wanted.
        outputs: those of which an output is wanted, with who wants it.
        returned: outputs whose labels are not known yet.
    """

    inside: set[int] = field(default_factory=set[int])
    outputs: dict[int, tuple[Frame, list[Fetch]]] = field(default_factory=dict[int, Any])
    returned: list[Returned] = field(default_factory=list[Returned])
    _counts: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])

    @classmethod
    def of(
        cls, fetches: Sequence[Fetch], frames: dict[int, Frame], strangers: frozenset[str] = frozenset()
    ) -> Wanted | None:
        """What some fetches want of a model; None if all of it has to be looked into.

        Args:
            fetches: what is wanted.
            frames: of the model's modules, by their ids.
            strangers: paths that modules went by which are no part of it.
        """
        found = cls()
        modules = {frame.path: (key, frame) for key, frame in frames.items() if frame.path}
        for fetch in fetches:
            path, function, chain = fetch.key
            at = modules.get(path)
            if at is None or path in strangers:
                return None
            key, frame = at
            if chain != NOWHERE.site.chain:
                found.inside.add(key)
            elif function == "output" and fetch.nth is None:
                found.outputs.setdefault(key, (frame, []))[1].append(fetch)
            else:
                return None
        return found

    def begin(self) -> None:
        """A call of the model begins."""
        self.returned.clear()
        self._counts.clear()

    def note(self, module: int, outputs: Sequence[Tensor], call: int) -> int:
        """A module has returned: copy what is wanted of it; how many bytes that is.

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
                    self.returned.append(Returned(fetch, frame, index, nth, value, copied))
                    n_bytes += copied.nbytes if copied.layout is torch.strided else 0
        return n_bytes

    def settle(self, find: Callable[[Tensor], Known | None]) -> list[tuple[Returned, Label | None]]:
        """The outputs that were met by now, with their labels; they are no longer held.

        Args:
            find: what is known of a value, None if it was not met yet.
        """
        settled: list[tuple[Returned, Label | None]] = []
        waiting: list[Returned] = []
        for returned in self.returned:
            known = find(returned.value)
            if known is None:
                waiting.append(returned)
            else:
                settled.append((returned, known[1].label))
        self.returned = waiting
        return settled
