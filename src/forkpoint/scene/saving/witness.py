"""The circumstances of a call: memory layout, settings, random state.

The recorder copies values. But a kernel is also chosen by how tensors lie in memory, and by settings that may hold for that
one call (an autocast, a choice of attention backend). So a fetch that a scene may be made of notes these, too, right before
the call, from the very tensors that go in (`look`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forkpoint.capture.recorder import CopiedCall
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

    call: CopiedCall
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


def witness(traced: Traced, call: CopiedCall) -> Witnessed:
    """A call with its circumstances; if they were not noted when it was fetched, the run is made once more for them."""
    if isinstance(call.seen, Circumstances):
        return Witnessed(call, call.seen)
    again = fetch_op(traced, call.op, call, look=look)
    if again is None:
        return _unwitnessed(call, "the call did not come again, so its memory layout is a guess")
    if _agrees(again, call):
        return Witnessed(again, again.seen)
    return _unwitnessed(
        call, "the run gave other values when it was made again, so the op's memory layout is a guess"
    )


def _agrees(again: CopiedCall, call: CopiedCall) -> bool:
    """Whether two passes gave a call's outputs the same values; dtypes differ where the first computed in float64."""
    if len(again.outputs) != len(call.outputs):
        return False
    return all(
        x.dtype != y.dtype or same_bits(x, y) for x, y in zip(again.outputs, call.outputs, strict=True)
    )


def _unwitnessed(call: CopiedCall, note: str) -> Witnessed:
    tensors = tensors_in_order((call.args, call.kwargs))
    return Witnessed(call, Circumstances(tuple(placement(t) for t in tensors), flags.read(), None), note)
