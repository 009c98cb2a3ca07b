"""Keeps gradients as they come: those of chosen passes, or all of a run in float64."""
# ruff: noqa: ARG002 - every watcher is asked with all that there is

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from forkpoint.backward.going_back import GoingBack
from forkpoint.backward.watching import Arrivals, Awaited
from forkpoint.capture.recorder import Recorder
from forkpoint.capture.trace import Event
from forkpoint.probes.watchers import Place, Snapshot, Store


def place_of(awaited: Awaited) -> Place:
    """Where a value passes, the same in every pass of a run."""
    op = awaited.op
    return (op.module, op.function, op.site.chain), awaited.nth, op.output, awaited.call


class Chosen(Arrivals):
    """Keeps the gradients of some values.

    Args:
        backward, summing: as `Arrivals` takes them.
        places: of the values.

    Attributes:
        gradients: by place; zeros where none arrived.
    """

    def __init__(self, backward: GoingBack, places: Collection[Place], *, summing: bool) -> None:
        super().__init__(backward, summing=summing)
        self._places = frozenset(places)
        self.gradients: dict[Place, tuple[Awaited, Tensor]] = {}

    def await_(self, recorder: Recorder, awaited: Awaited) -> None:
        place = place_of(awaited)
        if place in self._places:
            self.gradients[place] = (
                awaited,
                torch.zeros(awaited.shape, dtype=awaited.dtype, device=awaited.device),
            )

    def take(self, awaited: Awaited, gradient: Tensor) -> None:
        place = place_of(awaited)
        if place in self._places:
            self.gradients[place] = awaited, gradient


class Every(Arrivals):
    """Keeps the gradients of all values, as long as there is room.

    Args:
        backward, summing: as `Arrivals` takes them.
        store: where they are kept, under the events of the values.
    """

    def __init__(self, backward: GoingBack, store: Store, *, summing: bool) -> None:
        super().__init__(backward, summing=summing)
        self.store = store
        self.complete = True
        self._events: dict[int, Event] = {}

    def await_(self, recorder: Recorder, awaited: Awaited) -> None:
        self._events[awaited.event] = recorder.trace.event(awaited.event)

    def take(self, awaited: Awaited, gradient: Tensor) -> None:
        self.store.keep(awaited.event, awaited.op, self._events[awaited.event], gradient, awaited.label, [])
        self.complete = self.complete and awaited.event in self.store.snapshots

    def finish(self) -> None:
        """Where no gradient arrived, it is zero."""
        for event in self.awaited.keys() - self.arrived:
            awaited = self.awaited[event]
            self.take(awaited, torch.zeros(awaited.shape, dtype=awaited.dtype, device=awaited.device))


class PerturbedArrivals(Arrivals):
    """Moves every gradient by one unit in the last place, up or down, and measures how far they are then from what they were.

    Args:
        backward, summing: as `Arrivals` takes them.
        before: the gradients as they were, by place.
        seed: of what is up and what is down.

    Attributes:
        apart: by place the largest absolute difference.
    """

    def __init__(
        self, backward: GoingBack, before: dict[Place, Snapshot], seed: int, *, summing: bool
    ) -> None:
        super().__init__(backward, summing=summing)
        self._before, self._seed = before, seed
        self.apart: dict[Place, float] = {}

    def take(self, awaited: Awaited, gradient: Tensor) -> Tensor | None:
        place = place_of(awaited)
        before = self._before.get(place)
        if before is not None and before.held.shape == gradient.shape and gradient.numel():
            change = (before.value - gradient).abs().nan_to_num(0.0, 0.0, 0.0).max()
            self.apart[place] = max(self.apart.get(place, 0.0), float(change))
        if gradient.dtype != torch.float64:
            return None
        generator = torch.Generator(gradient.device).manual_seed(self._seed * 1_000_003 + awaited.event)
        drawn = torch.randint(
            0, 2, gradient.shape, generator=generator, dtype=torch.float64, device=gradient.device
        )
        return torch.where(
            gradient.abs() < 1e300, gradient * drawn.mul_(2.0**-51).add_(1 - 2.0**-52), gradient
        )
