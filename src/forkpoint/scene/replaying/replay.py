"""Replaying a scene: the op alone, on both inputs, on any device, and what can be said of its outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.match.align import index_of
from forkpoint.match.distance import compare, ulps
from forkpoint.scene.format.arguments import short
from forkpoint.scene.format.kernels import Kernels
from forkpoint.scene.format.machine import Machine, device_of, machine
from forkpoint.scene.format.records import Scene
from forkpoint.scene.replaying.calling import run_side, side_kernels
from forkpoint.scene.replaying.exactness import Exactness, exactness

TOLERANCES = tuple(10.0**-k for k in range(3, 9))
"""The `atol` of each `torch.allclose`; its `rtol` is torch's default, 1e-5."""


@dataclass(frozen=True)
class ReplayCheck:
    """One comparison: what, how it came out, and by how much."""

    name: str
    equal: bool | None
    """None where it could not be made."""
    differing: int = 0
    compared: int = 0
    max_abs: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Unequal:
    """The first shared element that the two outputs don't agree on."""

    index_a: tuple[int, ...]
    index_b: tuple[int, ...]
    value_a: float | complex | int | bool
    value_b: float | complex | int | bool
    ulps: float | None


@dataclass(frozen=True)
class Replay:
    """A scene on one device."""

    device: str
    machine: Machine
    recorded_here: bool
    """Whether it is the type of device that the scene was recorded on."""
    weights: tuple[ReplayCheck, ...]
    """Inputs that are the model's parameters or buffers."""
    inputs: tuple[ReplayCheck, ...]
    """The other inputs, at shared coordinates."""
    recorded_a: ReplayCheck
    """Whether run A's output is again the recorded one, bit for bit."""
    recorded_b: ReplayCheck
    outputs: ReplayCheck
    """Whether the two outputs are the same at shared coordinates."""
    first: Unequal | None
    allclose: tuple[tuple[float, bool], ...]
    """(atol, whether `torch.allclose` holds)."""
    exact_a: Exactness
    exact_b: Exactness
    kernels_a: Kernels
    kernels_b: Kernels
    remarks: tuple[str, ...] = ()

    @property
    def reproduces(self) -> bool:
        """Whether both outputs are the recorded ones, on the type of device on which they were recorded."""
        return self.recorded_here and bool(self.recorded_a.equal) and bool(self.recorded_b.equal)


def replay(scene: Scene, device: str | None = None) -> Replay:
    """Repeat a scene's op on both inputs, and compare.

        replay(forkpoint.scene.load("scene")).reproduces

    Args:
        scene: as `forkpoint.scene.load` or `save` returns it.
        device: `cpu` or `cuda`; by default the one on which it was recorded.

    Raises:
        SceneError: no such device here, or the op can't be called.
    """
    try:
        return _replay(scene, device)
    except (RuntimeError, MemoryError, OverflowError) as error:  # no room for what the scene asks for, say
        raise SceneError(f"the scene can't be replayed: {error}") from error


def _replay(scene: Scene, device: str | None) -> Replay:
    on = device_of(device or scene.machine.device)
    remarks: list[str] = []
    outputs_a, outputs_b = (run_side(scene, run, on, remarks) for run in "ab")
    a, b = (outputs[scene.output] for outputs in (outputs_a, outputs_b))
    for run, value in (("a", a), ("b", b)):
        expected = scene.layouts[scene.side(run).outputs[scene.output]].shape
        if tuple(value.shape) != expected:
            what = f"{scene.side(run).function} returned shape {list(value.shape)} for run {run.upper()}"
            raise SceneError(what, f"{list(expected)}, as it was recorded")
    shared_a, shared_b = scene.sharing.take(a, b)
    checks = [(pair, compare_input(scene, index)) for index, pair in enumerate(scene.inputs)]
    at = _first_place(scene, shared_a, shared_b)
    return Replay(
        device=on.type,
        machine=machine(on),
        recorded_here=on.type == scene.machine.device,
        weights=tuple(check for pair, check in checks if pair.parameter is not None),
        inputs=tuple(check for pair, check in checks if pair.parameter is None),
        recorded_a=_compare_recorded(scene.recorded("a"), outputs_a),
        recorded_b=_compare_recorded(scene.recorded("b"), outputs_b),
        outputs=_counted("outputs", shared_a, shared_b),
        first=None if at is None else _unequal(scene, at, a, b),
        allclose=_allclose(shared_a, shared_b),
        exact_a=exactness(scene, "a", on, shared_a, at),
        exact_b=exactness(scene, "b", on, shared_b, at),
        kernels_a=side_kernels(scene, "a", on),
        kernels_b=side_kernels(scene, "b", on),
        remarks=tuple(dict.fromkeys(remarks)),
    )


# ---------------------------------------------------------------------- comparing


def _compare(name: str, a: Tensor, b: Tensor) -> ReplayCheck:
    """Two tensors of one shape, element by element; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        what = f"{short(a.dtype)} {list(a.shape)} and {short(b.dtype)} {list(b.shape)}"
        return ReplayCheck(name, equal=False, compared=a.numel(), reason=what)
    return _counted(name, a, b)


def _counted(name: str, a: Tensor, b: Tensor) -> ReplayCheck:
    difference = compare(a.cpu(), b.cpu())
    count = int((~difference.same).sum())
    return ReplayCheck(name, count == 0, count, a.numel(), float(difference.apart.max()) if count else 0.0)


def equal_elements(a: Tensor, b: Tensor) -> Tensor:
    """Element by element; NaN equals NaN."""
    return compare(a, b).same


def _compare_recorded(recorded: list[Tensor], outputs: list[Tensor]) -> ReplayCheck:
    name = "output"
    if len(recorded) != len(outputs):
        return ReplayCheck(name, equal=False, reason=f"{len(outputs)} tensors, {len(recorded)} recorded")
    checks = [_compare(name, x, y) for x, y in zip(recorded, outputs, strict=True)]
    return ReplayCheck(
        name, all(c.equal for c in checks), sum(c.differing for c in checks), sum(c.compared for c in checks),
        max((c.max_abs for c in checks), default=0.0), next((c.reason for c in checks if c.reason), ""),
    )  # fmt: skip


def compare_input(scene: Scene, index: int) -> ReplayCheck:
    """Whether one input is the same in both runs, at shared coordinates."""
    pair = scene.inputs[index]
    if pair.a is None or pair.b is None:
        return ReplayCheck(pair.name, None, reason=f"only run {'B' if pair.a is None else 'A'} has it")
    a, b = scene.tensor(pair.a), scene.tensor(pair.b)
    if not len(pair.sharing):
        if not a.numel() and not b.numel():
            return ReplayCheck(pair.name, equal=True)
        return ReplayCheck(pair.name, None, reason=pair.sharing.reason or "the runs share no element of it")
    shared_a, shared_b = pair.sharing.take(a, b)
    return _compare(
        pair.name, shared_a, shared_b if shared_a.dtype == shared_b.dtype else shared_b.to(shared_a.dtype)
    )


def _first_place(scene: Scene, left: Tensor, right: Tensor) -> int | None:
    """Which of the shared elements is the first that differs: the recorded one, if it does, else by A's order."""
    differ = ~equal_elements(left.cpu(), right.cpu())
    if not bool(differ.any()):
        return None
    if scene.place.first is not None:
        at_a, at_b = scene.sharing.indices()
        recorded = differ & (at_a == scene.place.first[0]) & (at_b == scene.place.first[1])
        if bool(recorded.any()):
            differ = recorded
    return int(torch.argmax(differ.to(torch.uint8)))


def _unequal(scene: Scene, at: int, a: Tensor, b: Tensor) -> Unequal:
    at_a, at_b = (int(index[at]) for index in scene.sharing.indices())
    value_a, value_b = a.reshape(-1)[at_a].item(), b.reshape(-1)[at_b].item()
    apart = None
    if isinstance(value_a, float) and isinstance(value_b, float):
        apart = ulps(value_a, value_b, a.dtype, b.dtype)
    places = index_of(at_a, tuple(a.shape)), index_of(at_b, tuple(b.shape))
    return Unequal(*places, value_a, value_b, apart)


def _allclose(left: Tensor, right: Tensor) -> tuple[tuple[float, bool], ...]:
    wide = torch.complex128 if left.dtype.is_complex or right.dtype.is_complex else torch.float64
    left, right = left.cpu().to(wide), right.cpu().to(wide)
    return tuple((atol, torch.allclose(left, right, atol=atol, equal_nan=True)) for atol in TOLERANCES)
