"""Values put in place as a run passes by, with nobody watching the rest of it: half the cost of a run that is watched.

Where a call comes in the order of execution is known from a run whose values were kept: it is the n-th from its line of the
source. What is found there has to have the shape that it had then, and the first that is met the same bits, since nothing
was put in place before it; else the run has gone another way, and is made once more, watched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import _getframe
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from forkpoint.capture.functions import put_in_place, resolve
from forkpoint.capture.mode import transforms
from forkpoint.capture.rules import tensors_in
from forkpoint.capture.sites import outermost, place_of
from forkpoint.probes.watchers import Kept, Patch, Place, Store
from forkpoint.promotion import Promotion

Line = tuple[str, str]
"""A function, and the line outside torch that calls it."""


@dataclass(frozen=True)
class Turn:
    """Where a value comes in a run: an output of the n-th call from a line."""

    line: Line
    nth: int
    output: int
    kept: Kept


def turns_of(store: Store) -> dict[Place, Turn]:
    """Where the values that were kept of a run come in it, by their places; those of modules' inputs and outputs aside."""
    found: dict[Place, Turn] = {}
    calls: Counter[Line] = Counter()
    for event, (op, _) in store.ops.items():
        if op.is_boundary:
            continue
        line = op.function, outermost(op.site.chain)
        calls[line] += not op.output
        kept = store.kept.get(event)
        if kept is not None:
            found[kept.place] = Turn(line, calls[line] - 1, op.output, kept)
    return found


@dataclass
class Passing(TorchFunctionMode):
    """Puts values in place in a promoted run.

    Attributes:
        patch: what to put where.
        turns: where its places come in the run.
        promotion: what the run is promoted by; it is entered first.
        lost: whether a value was not what it was to be.
    """

    patch: Patch
    turns: Mapping[Place, Turn]
    promotion: Promotion
    lost: bool = False
    _waiting: dict[Line, dict[int, list[Place]]] = field(default_factory=dict[Line, dict[int, list[Place]]])
    _calls: Counter[Line] = field(default_factory=Counter[Line])

    def __post_init__(self) -> None:
        super().__init__()
        for place in self.patch.values:
            turn = self.turns[place]
            self._waiting.setdefault(turn.line, {}).setdefault(turn.nth, []).append(place)
        self._names = {name for name, _ in self._waiting}

    @property
    def complete(self) -> bool:
        """Whether every value was put in its place."""
        return not self.lost and self.patch.applied == len(self.patch.values)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function, kwargs = resolve(func), kwargs or {}
        if function.inner is not None:
            with self:
                return function.inner(*args, **kwargs)
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
            for place in waiting.get(nth, ()):
                output = self.turns[place].output
                new = self._new(place, outputs[output]) if output < len(outputs) else None
                if new is None:
                    self.lost = True
                else:
                    result = put_in_place(function, args, kwargs, result, outputs[output], new)
        return result

    def _new(self, place: Place, output: Tensor) -> Tensor | None:
        """What to put in place of a value; None where it is not the one that was to come."""
        value, kept = self.promotion.value(output), self.turns[place].kept
        if value.shape != kept.held.shape or value.dtype != kept.dtype:
            return None
        if not self.patch.applied and not torch.equal(value.nan_to_num(), kept.value.nan_to_num()):
            return None
        return self.patch.put(place, value)
