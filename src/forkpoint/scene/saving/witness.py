"""The circumstances of a call: memory layout, settings, random state.

The recorder keeps values; a kernel is also chosen by how tensors lie in memory and by settings that may hold
for that one call (an autocast, a choice of attention backend). So whoever has a call kept that a scene may be made of
looks at it, too, right before it runs, with the very tensors that it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forkpoint.capture.recorder import Taken
from forkpoint.explain.locate import fetch_op
from forkpoint.explain.session import Traced
from forkpoint.runs.randomness import RandomState
from forkpoint.scene.format import flags
from forkpoint.scene.format.arguments import tensors_in_order
from forkpoint.scene.format.flags import Flags
from forkpoint.scene.format.tensors import Placement, placement
from forkpoint.support.equality import same_bits


@dataclass(frozen=True)
class Circumstances:
    """What an op's bits depend on besides the values of its inputs.

    Attributes:
        placements: where each tensor among the arguments lay, in their order.
        random: the state of the random generators before the call; None where it drew nothing.
    """

    placements: tuple[Placement | None, ...]
    flags: Flags
    random: RandomState | None


@dataclass(frozen=True)
class Witnessed:
    """A call and its circumstances."""

    taken: Taken
    circumstances: Circumstances
    note: str = ""
    """Why something is not certain."""


def look(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Circumstances]:
    """The circumstances of a call that is about to be made: a `recorder.Look`."""
    places = tuple(placement(t) for t in tensors_in_order((args, kwargs)))
    settings, before = flags.read(), RandomState.take()

    def after() -> Circumstances:
        return Circumstances(places, settings, before if RandomState.take() != before else None)

    return after


def witness(traced: Traced, taken: Taken) -> Witnessed:
    """A call with its circumstances; where nobody looked when it was taken, the run is made again."""
    if isinstance(taken.seen, Circumstances):
        return Witnessed(taken, taken.seen)
    again = fetch_op(traced, taken.op, taken, look=look)
    if again is None:
        return _unwitnessed(taken, "the call did not come again, so its memory layout is a guess")
    if _agrees(again, taken):
        return Witnessed(again, again.seen)
    return _unwitnessed(
        taken, "the run gave other values when it was made again, so the op's memory layout is a guess"
    )


def _agrees(again: Taken, taken: Taken) -> bool:
    """The same values; or other dtypes, where the first was taken while computing in float64."""
    if len(again.outputs) != len(taken.outputs):
        return False
    return all(
        x.dtype != y.dtype or same_bits(x, y) for x, y in zip(again.outputs, taken.outputs, strict=True)
    )


def _unwitnessed(taken: Taken, note: str) -> Witnessed:
    tensors = tensors_in_order((taken.args, taken.kwargs))
    return Witnessed(taken, Circumstances(tuple(placement(t) for t in tensors), flags.read(), None), note)
