"""Values looked at and put in place as a run passes by, with nobody watching the rest of it: half the cost of a watched run.

Where a call comes in the order of execution is known from a run whose values were kept: it is the n-th from its line of the
source. What is found there has to have the shape that it had then, and the same bits if nothing that was put in place
comes to it; else the run has gone another way, and is made once more, watched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from sys import _getframe
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.functions import READ_OUT, put_in_place, resolve
from forkpoint.capture.mode import transforms
from forkpoint.capture.rules import tensors_in
from forkpoint.capture.sites import outermost, place_of
from forkpoint.probes.resampled import Resampled, Rescaled
from forkpoint.probes.watchers import Line, Patch, Place, Store, Turn
from forkpoint.promotion import Promotion


class Passing(TorchFunctionMode):
    """Is shown some values of a promoted run as they come, and may put others in their place.

    Args:
        turns: where they come in the run.
        promotion: what the run is promoted by; it is entered first.

    Attributes:
        lost: whether a value was not what it was to be.
        left: how many have not come yet.
    """

    def __init__(self, turns: Mapping[Place, Turn], promotion: Promotion) -> None:
        super().__init__()
        self.lost = False
        self.left = len(turns)
        self._promotion = promotion
        self._calls: Counter[Line] = Counter()
        self._waiting: dict[Line, dict[int, list[tuple[Place, Turn]]]] = {}
        for place, turn in turns.items():
            self._waiting.setdefault(turn.line, {}).setdefault(turn.nth, []).append((place, turn))
        self._names = {name for name, _ in self._waiting}

    @property
    def complete(self) -> bool:
        """Whether every value came, and was what it was to be."""
        return not (self.lost or self.left)

    def instead(self, place: Place, turn: Turn, value: Tensor) -> Tensor | None:
        """What to go on with in place of a value that has come; None where it stays."""
        raise NotImplementedError

    def read_out(self) -> None:
        """Values of a tensor are handed to Python."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.left:  # all that somebody wanted has come
            return func(*args, **kwargs)
        function = resolve(func)
        if function.inner is not None:
            with self:
                return function.inner(*args, **kwargs)
        if function.name in READ_OUT:
            self.read_out()
        if function.name not in self._names or function.silent or transforms() is not None:
            return func(*args, **kwargs)
        line = function.name, outermost(place_of(_getframe(1)).site.chain)
        result = func(*args, **kwargs)
        waiting = self._waiting.get(line)
        if waiting is None:
            return result
        with torch._C.DisableTorchFunction():
            outputs = (args[0],) if function.name == "setitem" else tuple(tensors_in((result,)))
            if not outputs:
                return result
            nth = self._calls[line]
            self._calls[line] = nth + 1
            for place, turn in waiting.get(nth, ()):
                output = outputs[turn.output] if turn.output < len(outputs) else None
                if output is None or not _fits(turn, value := self._promotion.value(output)):
                    self.lost = True
                    continue
                self.left -= 1
                new = self.instead(place, turn, value)
                if new is not None:
                    result = put_in_place(function, args, kwargs, result, output, new)
        return result

    def check(self, turn: Turn, value: Tensor) -> None:
        """Be lost if a value that nothing comes to has other bits than it had."""
        before = turn.snapshot.value
        self.lost |= not (torch.equal(value, before) or torch.equal(value.nan_to_num(), before.nan_to_num()))


def _fits(turn: Turn, value: Tensor) -> bool:
    """Whether a value has the form of the one that was to come."""
    return value.shape == turn.snapshot.held.shape and value.dtype == turn.snapshot.dtype


class Patching(Passing):
    """Puts values of another run in place.

    Args:
        patch: what to put where.
        turns: where its places come in the run, among others.
        promotion: as for `Passing`.
    """

    def __init__(self, patch: Patch, turns: Mapping[Place, Turn], promotion: Promotion) -> None:
        super().__init__({place: turns[place] for place in patch.values}, promotion)
        self.patch = patch

    def instead(self, place: Place, turn: Turn, value: Tensor) -> Tensor | None:
        if not self.patch.applied:
            self.check(turn, value)
        return self.patch.put(place, value)


class Experiment(Passing):
    """Gives some values others, and keeps what comes of it.

    Its values are told to be of the coordinates that they were of before. So it is lost where Python reads one, which may
    go another way by it; and nobody may ask for one where a choice of tokens (whole numbers, a mask) comes of what is
    changed.

    Args:
        watcher: what changes them.
        turns: where they come in the run, and what is to be kept.
        wanted: what is to be kept.
        store: keeps it.
        table: of the run's coordinates.
        promotion: as for `Passing`.
        right: what was put in place when its values were kept.
        changed: the events that its changes come to.
    """

    def __init__(
        self, watcher: Resampled | Rescaled, turns: Mapping[Place, Turn], wanted: set[Place], store: Store,
        table: CoordinateTable, promotion: Promotion, right: Patch, changed: set[int],
    ) -> None:  # fmt: skip
        super().__init__(turns, promotion)
        self.watcher, self._wanted, self._store, self._table = watcher, wanted, store, table
        self._right, self._changed = right, changed

    def instead(self, place: Place, turn: Turn, value: Tensor) -> Tensor | None:
        snapshot = turn.snapshot
        right = self._right.put(place, value)
        value = value if right is None else right
        if turn.event not in self._changed:
            self.check(turn, value)
        new = self.watcher.put(place, value, snapshot.label, self._table)
        new = right if new is None else new
        if place in self._wanted:
            self._store.keep(
                turn.event, snapshot.op, snapshot.event, value if new is None else new, snapshot.label, []
            )
        return new

    def read_out(self) -> None:
        if self.watcher.replaced and self.left:
            self.lost = True
