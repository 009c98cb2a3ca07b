"""Random data in place of a scene's own, so that its script can be shown to anyone.

What carries a model's weights or a user's text (numbers that differ from element to element, token ids) is drawn
anew with the same mean and spread, or in the same range. What carries structure alone (masks, constants, ranges)
is kept. Elements that both runs share are made equal again.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from forkpoint.errors import SceneError
from forkpoint.scene.format.arguments import short
from forkpoint.scene.format.records import Scene
from forkpoint.scene.format.sharing import Index, Repeat, as_indexing, repeated
from forkpoint.scene.replaying.calling import run_side
from forkpoint.scene.replaying.replay import equal_elements

SEEDS = 8
FEW_VALUES = 4
"""A tensor of no more different values than this is structure."""
MAX_LITERAL = 40
MAX_PACKED = 3000


@dataclass(frozen=True)
class Filling:
    """How the elements of one storage are made."""

    kind: str
    """`normal`, `integers`, `runs`, `packed` or `range`."""
    dtype: torch.dtype
    elements: int
    mean: float = 0.0
    spread: float = 0.0
    low: int = 0
    high: int = 0
    values: tuple[float | int | bool, ...] = ()
    lengths: tuple[int, ...] = ()
    packed: str = ""

    def make(self) -> Tensor:
        """The elements; draws from torch's generator just as `code` does."""
        if self.kind == "normal":
            return (torch.randn(self.elements) * self.spread + self.mean).to(self.dtype)
        if self.kind == "integers":
            return torch.randint(self.low, self.high, (self.elements,)).to(self.dtype)
        if self.kind == "range":
            return torch.arange(self.low, self.low + self.elements).to(self.dtype)
        if not self.elements:
            return torch.zeros(0, dtype=self.dtype)
        if self.kind == "runs":
            return torch.tensor(self.values, dtype=self.dtype).repeat_interleave(torch.tensor(self.lengths))
        content = bytearray(zlib.decompress(base64.b85decode(self.packed)))
        return torch.frombuffer(content, dtype=self.dtype).clone()

    @property
    def code(self) -> str:
        """An expression for them."""
        dtype = f"torch.{short(self.dtype)}"
        if self.kind == "normal":
            return f"(torch.randn({self.elements}) * {self.spread!r} + {self.mean!r}).to({dtype})"
        if self.kind == "integers":
            return f"torch.randint({self.low}, {self.high}, ({self.elements},)).to({dtype})"
        if self.kind == "range":
            return f"torch.arange({self.low}, {self.low + self.elements}).to({dtype})"
        if not self.elements:
            return f"torch.zeros(0, dtype={dtype})"
        if self.kind == "runs":
            values = ", ".join(
                f'float("{v}")' if isinstance(v, float) and not math.isfinite(v) else repr(v)
                for v in self.values
            )
            return f"torch.tensor([{values}], dtype={dtype}).repeat_interleave(torch.tensor({list(self.lengths)}))"
        return (
            f"torch.frombuffer(bytearray(zlib.decompress(base64.b85decode({self.packed!r}))), dtype={dtype})"
        )


@dataclass(frozen=True)
class Copy:
    """Shared elements of one tensor copied to the other: `target[at_target] = repeated(source)[at_source]`."""

    source: int
    """Number of the tensor."""
    target: int
    at_source: Index
    at_target: Index
    repeat: Repeat | None
    from_a: bool
    """Whether the source is run A's."""


@dataclass(frozen=True)
class Recipe:
    """How all data of a scene is made anew."""

    fillings: dict[int, Filling]
    """By number of the storage."""
    copies: tuple[Copy, ...]
    """What both runs have is made equal."""

    def make(self, scene: Scene, seed: int) -> Scene:
        """The scene with data drawn from a seed; its recorded outputs are meaningless."""
        state = torch.get_rng_state()
        try:
            torch.manual_seed(seed)
            data = [
                self.fillings[i].make() if i in self.fillings else old for i, old in enumerate(scene.data)
            ]
        finally:
            torch.set_rng_state(state)
        drawn = replace(scene, data=tuple(data))
        for copy in self.copies:
            source = repeated(drawn.tensor(copy.source), copy.repeat)
            drawn.tensor(copy.target)[copy.at_target or ...] = source[copy.at_source or ...]
        return drawn


def plan(scene: Scene) -> Recipe:
    """How to make the data anew.

    Raises:
        SceneError: it can't be done so that the effect could show; the message says why.
    """
    fillings: dict[int, Filling] = {}
    for number in dict.fromkeys((*scene.a.tensors, *scene.b.tensors)):
        storage = scene.layouts[number].storage
        if storage not in fillings:
            fillings[storage] = _filling(scene.data[storage])
    copies = [
        copy for index in range(len(scene.inputs)) if (copy := _copy(scene, index, fillings)) is not None
    ]
    return Recipe(fillings, tuple(copies))


def _copy(scene: Scene, index: int, fillings: dict[int, Filling]) -> Copy | None:
    """What has to be copied so that an input is the same in both runs."""
    pair = scene.inputs[index]
    if pair.a is None or pair.b is None:
        return None
    a, b = scene.layouts[pair.a], scene.layouts[pair.b]
    if a.storage == b.storage or not a.elements or not b.elements:
        return None
    if not len(pair.sharing):
        raise SceneError(
            f"{pair.name} can't be lined up between the runs ({pair.sharing.reason})", "inputs that can"
        )
    if not {fillings[layout.storage].kind for layout in (a, b)} & {"normal", "integers"}:
        return None  # kept as it is, so that it is the same already
    indexing = as_indexing(pair.sharing, a.shape, b.shape)
    if indexing is None:
        raise SceneError(f"the shared elements of {pair.name} lie scattered", "a block of each tensor")
    from_a = pair.sharing.repeat_b is None
    target = b if from_a else a
    if any(s == 0 and n > 1 for n, s in zip(target.shape, target.stride, strict=True)):
        raise SceneError(f"{pair.name} is expanded", "an input with memory of its own")
    if from_a:
        return Copy(pair.a, pair.b, indexing[0], indexing[1], pair.sharing.repeat_a, from_a=True)
    return Copy(pair.b, pair.a, indexing[1], indexing[0], pair.sharing.repeat_b, from_a=False)


def _filling(data: Tensor) -> Filling:
    count, dtype = data.numel(), data.dtype
    if not count:
        return Filling("runs", dtype, 0)
    if dtype.is_complex or (dtype.itemsize == 1 and dtype.is_floating_point):
        raise SceneError(f"data of {short(dtype)}", "real numbers or integers")
    values = data.double()
    unique = torch.unique(values)
    if dtype == torch.bool or len(unique) <= FEW_VALUES:
        return _verbatim(data)
    if not dtype.is_floating_point:
        low, high = int(data.min()), int(data.max())
        if count > 1 and bool((data[1:].long() - data[:-1].long() == 1).all()):
            return Filling("range", dtype, count, low=low)
        return Filling("integers", dtype, count, low=low, high=high + 1)
    finite = values[torch.isfinite(values)]
    if not len(finite):
        return _verbatim(data)
    mean, spread = float(finite.mean()), float(finite.std(correction=0))
    return Filling("normal", dtype, count, mean=float(f"{mean:.4g}"), spread=float(f"{spread:.4g}"))


def _verbatim(data: Tensor) -> Filling:
    values = data.double().numpy()
    steps = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    lengths = np.diff(np.r_[steps, len(data)])
    if len(steps) <= MAX_LITERAL:
        values = tuple(data[int(at)].item() for at in steps)
        return Filling(
            "runs", data.dtype, data.numel(), values=values, lengths=tuple(int(n) for n in lengths)
        )
    content = zlib.compress(data.contiguous().view(torch.uint8).numpy().tobytes(), 9)
    packed = base64.b85encode(content).decode()
    if len(packed) > MAX_PACKED:
        raise SceneError(f"a mask that packs to {len(packed)} characters", f"at most {MAX_PACKED}")
    return Filling("packed", data.dtype, data.numel(), packed=packed)


def differs(scene: Scene) -> bool:
    """Whether a scene's outputs differ at shared elements on this machine's recorded device."""
    device = torch.device(scene.machine.device)
    a, b = (run_side(scene, run, device)[scene.output] for run in "ab")
    left, right = scene.sharing.take(a.cpu(), b.cpu())
    return not bool(equal_elements(left, right).all())


def find_seed(scene: Scene, recipe: Recipe) -> int | None:
    """The first seed with which the outputs differ; None where none of a few does."""
    for seed in range(SEEDS):
        try:
            if differs(recipe.make(scene, seed)):
                return seed
        except SceneError:
            continue
    return None
