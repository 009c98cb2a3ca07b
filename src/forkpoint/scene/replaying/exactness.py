"""How far an output is from the same op in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.match.distance import unit_at
from forkpoint.promotion import Promotion
from forkpoint.scene.format.flags import in_force
from forkpoint.scene.format.records import Scene, SceneCall
from forkpoint.scene.replaying.calling import call_of, run_side


@dataclass(frozen=True)
class Exactness:
    """How far an output is from the same op in float64, in units in the last place of its dtype.

    Attributes:
        first: at the first unequal element.
        median, largest: over the shared elements.
        reason: why nothing is known.
    """

    first: float | None
    median: float | None
    largest: float | None
    reason: str = ""


def exactness(scene: Scene, run: str, device: torch.device, shared: Tensor, at: int | None) -> Exactness:
    """How far one run's output is from the same call in float64."""
    if not shared.dtype.is_floating_point:
        return Exactness(None, None, None, "no floating-point output")
    side = scene.side(run)
    if side.random is not None:
        return Exactness(None, None, None, "it draws random numbers")
    try:
        reference = _in_float64(scene, side, device)
    except (SceneError, RuntimeError, TypeError, ValueError, NotImplementedError, MemoryError) as error:
        text = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        return Exactness(None, None, None, f"not to be had: {text}")
    if reference is None:
        return Exactness(None, None, None, "the op has no float64 form")
    index = scene.sharing.indices()[0 if run == "a" else 1]
    exact = reference.reshape(-1)[index.to(reference.device)].cpu()
    error = errors_in_ulps(shared.cpu(), exact)
    finite = error[torch.isfinite(error)]
    if not len(finite):
        return Exactness(None, None, None, "no finite value")
    first = None if at is None or not math.isfinite(float(error[at])) else float(error[at])
    return Exactness(first, float(finite.median()), float(finite.max()))


def _in_float64(scene: Scene, side: SceneCall, device: torch.device) -> Tensor | None:
    call = call_of(scene, side, device)
    promotion = Promotion()
    with (
        torch.no_grad(),
        in_force({**side.flags, "autocast": None, "default_dtype": "float64"}, device),
        promotion,
    ):
        outputs = call()
    if promotion.refused or scene.output >= len(outputs):
        return None
    output = promotion.value(outputs[scene.output])
    return output if output.dtype == torch.float64 else None


_NARROWING = frozenset(["half", "bfloat16", "float", "chalf", "cfloat", "type", "to", "type_as"])
"""Functions that cast to a dtype of their own, whatever they are given."""


def computes_in_float64(scene: Scene, run: str) -> bool:
    """Whether a run's function, given float64 and asked for float64, computes in it without any help."""
    side = scene.side(run)
    if side.function.rpartition(".")[2] in _NARROWING:
        return False
    data = tuple(d.double() if d.is_floating_point() else d for d in scene.data)
    wide = replace(
        side, args=_widened(side.args), kwargs=_widened(side.kwargs), flags={**side.flags, "autocast": None}
    )
    try:
        outputs = run_side(replace(scene, data=data, **{run: wide}), run, torch.device("cpu"))
    except SceneError:
        return False
    return outputs[scene.output].dtype == torch.float64


def _widened(value: Any) -> Any:
    """The same arguments with float64 for every floating dtype among them."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        return tuple([_widened(item) for item in value])
    if isinstance(value, list):
        return [_widened(item) for item in value]
    if isinstance(value, dict):
        return {key: _widened(item) for key, item in value.items()}
    return value


def errors_in_ulps(value: Tensor, exact: Tensor) -> Tensor:
    """The distance of each element from its exact value, in units in the last place of its dtype.

    The unit is the spacing of the dtype's numbers at the exact value.

    >>> errors_in_ulps(torch.tensor([1.0 + 2**-23]), torch.tensor([1.0], dtype=torch.float64)).tolist()
    [1.0]
    """
    return (value.double() - exact).abs() / unit_at(exact.abs(), value.dtype)
