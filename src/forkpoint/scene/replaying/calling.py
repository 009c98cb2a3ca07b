"""Calling the function of a scene as one run called it, on any device."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from forkpoint.capture.rules import tensors_in
from forkpoint.errors import SceneError
from forkpoint.runs.randomness import RandomState
from forkpoint.scene.format.arguments import filled
from forkpoint.scene.format.flags import in_force
from forkpoint.scene.format.functions import resolve_function
from forkpoint.scene.format.kernels import Kernels
from forkpoint.scene.format.records import Scene, SceneCall
from forkpoint.scene.format.tensors import materialise
from forkpoint.scene.replaying.profiling import kernels


def run_side(scene: Scene, run: str, device: torch.device, remarks: list[str] | None = None) -> list[Tensor]:
    """The outputs of one run's call, made anew on a device.

    Raises:
        SceneError: the function refuses its arguments.
    """
    side = scene.side(run)
    after = RandomState.take()
    try:
        with _one_error(side, run, device), torch.no_grad(), in_force(side.flags, device) as notes:
            call = call_of(scene, side, device)
            _restore_random(scene, side, device)
            outputs = call()
    finally:
        after.restore()
    if remarks is not None:
        remarks += notes
    if scene.output >= len(outputs):
        raise SceneError(f"{side.function} returned {len(outputs)} tensors", f"at least {scene.output + 1}")
    return outputs


def run_result(scene: Scene, run: str, device: torch.device) -> Any:
    """What one run's function returns, as it returns it.

    Raises:
        SceneError: the function refuses its arguments.
    """
    side = scene.side(run)
    with _one_error(side, run, device), torch.no_grad(), in_force(side.flags, device):
        return _function_call(scene, side, device)[0]()


@contextmanager
def _one_error(side: SceneCall, run: str, device: torch.device) -> Generator[None]:
    """Whatever a function makes of arguments that may be anybody's, as one error."""
    try:
        yield
    except SceneError:
        raise
    except Exception as error:
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise SceneError(
            f"{side.function} refuses the arguments of run {run.upper()} on {device.type}: {text}"
        ) from error


def call_of(scene: Scene, side: SceneCall, device: torch.device) -> Callable[[], list[Tensor]]:
    """The call of one run, on tensors of its own; returns the tensors that it makes."""
    call, first = _function_call(scene, side, device)

    def tensors() -> list[Tensor]:
        result = call()
        if result is None and isinstance(first, Tensor):
            return [first]  # `x[index] = value` returns nothing
        return tensors_in((result,))

    return tensors


def _function_call(scene: Scene, side: SceneCall, device: torch.device) -> tuple[Callable[[], Any], Any]:
    """The call of one run, on tensors of its own, and its first argument."""
    function = resolve_function(side.function, scene.trusted)
    by_number = materialise(scene.layouts, side.tensors, scene.data, device, scene.machine.device)
    tensors = [by_number.get(number, torch.empty(0)) for number in range(len(scene.layouts))]
    args, kwargs = filled(side.args, tensors, device), filled(side.kwargs, tensors, device)

    return lambda: function(*args, **kwargs), args[0] if args else None


def _restore_random(scene: Scene, side: SceneCall, device: torch.device) -> None:
    if side.random is None or device.type != scene.machine.device:
        return
    state = scene.extra[side.random]
    try:
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
    except (RuntimeError, TypeError) as error:
        raise SceneError(
            f"the random state of run {side.run} is refused: {error}", "the state that was saved"
        ) from error


def side_kernels(scene: Scene, run: str, device: torch.device) -> Kernels:
    """The kernels that one run's call runs on a device."""
    side = scene.side(run)
    after = RandomState.take()
    try:
        with torch.no_grad(), in_force(side.flags, device):
            return kernels(call_of(scene, side, device), device)
    finally:
        after.restore()
