"""A scene as one object: plain, frozen records that everything here is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from forkpoint.scene.format.arguments import refs_in
from forkpoint.scene.format.flags import Flags
from forkpoint.scene.format.kernels import Kernels, differ, evidence
from forkpoint.scene.format.machine import Machine
from forkpoint.scene.format.parts import Inside
from forkpoint.scene.format.sharing import Sharing
from forkpoint.scene.format.tensors import Storage, TensorLayout


@dataclass(frozen=True)
class SceneCall:
    """The call of a scene's op as one run made it."""

    run: str
    """What the run is called."""
    function: str
    """Import path of the torch function."""
    args: tuple[Any, ...]
    """With a `Ref` for every tensor."""
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    """Numbers of the tensors that it returned when the run was made."""
    flags: Flags
    """Settings that were in force."""
    random: str | None
    """Key of the state of the random generator before the call, if it drew from it."""
    kernels: Kernels
    reproduced: bool | None
    """Whether the call alone gave the same bits when the scene was saved."""
    note: str = ""

    @property
    def tensors(self) -> list[int]:
        """Numbers of the tensors that go in."""
        return list(dict.fromkeys(refs_in((self.args, self.kwargs))))


@dataclass(frozen=True, eq=False)
class InputPair:
    """One tensor input of the op in both runs."""

    name: str
    """Parameter of the torch function."""
    a: int | None
    """Number of A's tensor; None where only B has one."""
    b: int | None
    sharing: Sharing
    parameter: str | None
    """Full name of the model's parameter or buffer, if it is one."""


@dataclass(frozen=True)
class Location:
    """Where in the model the op is."""

    op: str
    module: str
    function: str
    source: str
    code: str
    variable: str | None
    sample: str | int | None
    position: int | None
    token: str | None
    first: tuple[int, int] | None = None
    """Flat indices of the first differing element, in A and in B: of the first token that differs."""
    between: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, eq=False)
class Scene:
    """One op with its inputs and outputs in two runs: what `forkpoint.scene.load` returns."""

    place: Location
    a: SceneCall
    b: SceneCall
    output: int
    """Index of the output that differs between the runs."""
    sharing: Sharing
    """Shared elements of that output."""
    inputs: tuple[InputPair, ...]
    layouts: tuple[TensorLayout, ...]
    storages: tuple[Storage, ...]
    machine: Machine
    """Where it was saved."""
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    inside: Inside | None = None
    data: tuple[Tensor, ...] = field(default=(), repr=False)
    """The storages' contents, on the CPU."""
    extra: dict[str, Tensor] = field(default_factory=dict[str, Tensor], repr=False)
    """States of random generators, by key."""
    trusted: tuple[str, ...] = ()
    """Namespaces of operators that it may call besides torch's own."""

    def side(self, run: str) -> SceneCall:
        return self.a if run == "a" else self.b

    def recorded(self, run: str) -> list[Tensor]:
        """The outputs as they were when the run was made, on the CPU."""
        return [self.tensor(number) for number in self.side(run).outputs]

    def tensor(self, number: int) -> Tensor:
        """One tensor of the scene, on the CPU; it shares memory with the scene."""
        layout = self.layouts[number]
        return self.data[layout.storage].as_strided(
            layout.shape, layout.stride, self.data[layout.storage].storage_offset() + layout.offset
        )

    @property
    def different_kernels(self) -> bool | None:
        """Whether the two runs ran different kernels; None where that is not known."""
        return differ(self.a.kernels, self.b.kernels)

    @property
    def kernel_evidence(self) -> str:
        """What the kernels that ran on either side tell, in one sentence."""
        return evidence(self.a.kernels, self.b.kernels)

    @property
    def bytes(self) -> int:
        """Size of its tensors."""
        return sum(storage.bytes for storage in self.storages)
