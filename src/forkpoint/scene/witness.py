"""One call of a run, taken again together with its circumstances: memory layout, settings, random state.

The recorder keeps values; a kernel is also chosen by how tensors lie in memory and by settings that may hold
for that one call (an autocast, a choice of attention backend). So the run is made once more with a function
mode below the recorder's, which is handed the very tensors that the kernel gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from forkpoint.capture.recorder import Fetch, Taken
from forkpoint.equality import same_bits
from forkpoint.run import RandomState
from forkpoint.scene import flags
from forkpoint.scene.arguments import tensors_in_order
from forkpoint.scene.flags import Flags
from forkpoint.scene.tensors import Placement, placement
from forkpoint.session import Traced


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


def witness(traced: Traced, taken: Taken) -> Witnessed:
    """Make the run again and take the same call with its circumstances."""
    mode = _Mode(taken.func)
    found: list[Witnessed] = []

    def take(again: Taken) -> None:
        seen = mode.last
        if seen is not None and len(seen.placements) == len(tensors_in_order((again.args, again.kwargs))):
            found.append(Witnessed(again, seen))

    op = taken.op
    with mode:
        traced.again([Fetch((op.module, op.function, op.site.chain), taken.call, taken.nth, take)])
    if not found:
        return _unwitnessed(taken, "the call did not come again, so its memory layout is a guess")
    if _agrees(found[0].taken, taken):
        return found[0]
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


class _Mode(TorchFunctionMode):
    """Notes the circumstances of each call of one function, before it runs."""

    def __init__(self, func: Any) -> None:
        super().__init__()
        self.last: Circumstances | None = None
        self._func = func

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not self._func and func != self._func:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            places = tuple(placement(t) for t in tensors_in_order((args, kwargs)))
            settings, before = flags.read(), RandomState.take()
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            drew = RandomState.take() != before
        self.last = Circumstances(places, settings, before if drew else None)
        return result


def output_placements(outputs: tuple[Tensor, ...]) -> tuple[Placement, ...]:
    """Outputs are kept by their values; their layout is that of the copies."""
    found = [placement(value) for value in outputs]
    assert all(at is not None for at in found)
    return tuple(at for at in found if at is not None)
