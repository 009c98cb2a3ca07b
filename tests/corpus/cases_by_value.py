"""State that a forward call writes without torch counting it; buffers that were narrowed; inputs of other names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize
from torch.nn import functional as F

from .case import BITS, DIFFERS, UNCHECKED, Pair, Side, case
from .exact import gap
from .expect import BUFFERS, IDENTICAL
from .modules import seeded
from .tokens import floats, whole

# ---------------------------------------------------------------------- what nobody counts


class Writing(nn.Module):
    """A layer that writes what it holds before it computes with it."""

    def __init__(self, write: Callable[[Any], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.seen = {"calls": [torch.zeros(1)]}
        self.write = (write,)

    def forward(self, x: Tensor) -> Tensor:
        self.write[0](self)
        return self.linear((x - self.mean) / self.var.sqrt()) + self.seen["calls"][0]


def _statistics(model: Any) -> None:
    F.batch_norm(torch.linspace(-1, 3, 64).view(8, 8), model.mean, model.var, training=True)


WRITES: dict[str, Callable[[Any], object]] = {
    "running-statistics": _statistics,
    "data-of-a-weight": lambda model: model.linear.weight.data.mul_(1.5),
    "data-in-a-list": lambda model: model.seen["calls"][0].data.add_(1),
}


def _moves(pair: Pair) -> None:
    """In plain torch, a second call of the model gives something else: the first has changed it."""
    with torch.no_grad():
        first, second = (pair.a.model(**pair.a.calls[0]) for _ in range(2))
    assert gap(first, second) > 1e-3


def _written(name: str) -> tuple[nn.Module, nn.Module]:
    """A model that writes, and its deep copy, before either has run."""
    model = seeded(Writing, WRITES[name]).train()
    return model, copy.deepcopy(model)


def _register(name: str) -> None:
    @case(
        f"42-{name}",
        "A forward call writes what torch counts no write of; a copy of the model, made before, computes the same",
        IDENTICAL,
        truth=BITS,
        check=_moves,
    )
    def _() -> Pair:
        a, b = _written(name)
        x = floats(2, 3, 8)
        return Pair(Side(a, {"x": x}, whole()), Side(b, {"x": x}, whole()))


for _name in WRITES:
    _register(_name)


@case(
    "42-running-statistics-differ",
    "The same layer, whose copy has seen another batch before: its statistics are others",
    BUFFERS,
    truth=DIFFERS,
)
def _() -> Pair:
    a, b = _written("running-statistics")
    x = floats(2, 3, 8)
    with torch.no_grad():
        b(x)
    return Pair(Side(a, {"x": x}, whole()), Side(b, {"x": x}, whole()))


def _observed() -> tuple[nn.Module, nn.Module]:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), FusedMovingAvgObsFakeQuantize())

    model = seeded(build).train()
    return model, copy.deepcopy(model)


def _observes(pair: Pair) -> None:
    before = copy.deepcopy(pair.a.model.state_dict())
    with torch.no_grad():
        pair.a.model(**pair.a.calls[0])
    assert any(not torch.equal(value, before[name]) for name, value in pair.a.model.state_dict().items())


@case(
    "42-fused-observer",
    "A fused observer in train mode, and a copy of it",
    IDENTICAL,
    truth=BITS,
    check=_observes,
)
def _() -> Pair:
    a, b = _observed()
    x = floats(2, 3, 8)
    return Pair(Side(a, {"input": x}, whole()), Side(b, {"input": x}, whole()))


@case(
    "42-fused-observer-differs",
    "A fused observer, and one that has seen something larger before",
    BUFFERS,
    truth=UNCHECKED,
    check=_observes,
)
def _() -> Pair:
    a, b = _observed()
    x = floats(2, 3, 8)
    with torch.no_grad():
        b(4 * x)
    return Pair(Side(a, {"input": x}, whole()), Side(b, {"input": x}, whole()))
