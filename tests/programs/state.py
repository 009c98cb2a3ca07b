"""The model that every random program is: its layers, hooks, and state of every kind."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .blocks import Pair

WIDTH = 6


class Pairing(nn.Module):
    """Returns structures."""

    def forward(self, x: Tensor, *, y: Tensor, scale: float = 1.0) -> dict[str, Any]:
        left = torch.relu(x) * scale
        return {"pair": Pair(left, y + 1), "both": (left + y, None)}


class Recursive(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        return x if not depth else torch.tanh(self.layer(self(x, depth - 1)))


class Slots:
    """An object without a dictionary."""

    __slots__ = ("tensor", "value")

    def __init__(self) -> None:
        self.value, self.tensor = 0, torch.ones(WIDTH)


class Model(nn.Module):
    """What blocks use.

    Args:
        blocks: the blocks that a program calls; layers that few of them need are there for those alone.
    """

    def __init__(self, blocks: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 8), nn.Linear(8, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.stack = nn.Sequential(
            nn.Linear(WIDTH, 4), nn.GELU(), nn.Sequential(nn.Linear(4, WIDTH), nn.ReLU())
        )
        self.pairing, self.recursive = Pairing(), Recursive()
        if "fused" in blocks:
            self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, batch_first=True)
            self.attends = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        if "recurrent" in blocks:
            self.recurrent = nn.LSTM(WIDTH, WIDTH, batch_first=True)
            self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        if "compiled_layer" in blocks:
            self.compiled = torch.compile(nn.Linear(WIDTH, WIDTH), backend="eager", dynamic=True)
        self.batch = nn.BatchNorm1d(WIDTH)
        self.hooked = nn.Linear(WIDTH, WIDTH)
        self.hooked.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
        self.hooked.register_forward_hook(lambda _, __, output: torch.relu(output))  # pyright: ignore[reportArgumentType]
        self.hooked.register_forward_hook(lambda *_: None, with_kwargs=True)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("running", torch.zeros(WIDTH))
        self.register_buffer("count", torch.zeros(()))
        self.kept: dict[str, Any] = {}
        self.history: list[Tensor] = []
        self.notes = SimpleNamespace(value=0, tensor=torch.zeros(WIDTH))
        self.seen: set[tuple[int, ...]] = set()
        self.latest: Tensor | None = None
        self.queue: deque[Tensor] = deque(maxlen=3)
        self.counts: defaultdict[str, int] = defaultdict(int)
        self.slots, self.array = Slots(), np.zeros(3, dtype=np.float32)
        self.nested = {"deep": [{"tensor": torch.zeros(WIDTH)}]}
        self.generator = torch.Generator().manual_seed(3)
        if "parametrised" in blocks:
            self.spectral = spectral_norm(nn.Linear(WIDTH, WIDTH))
            self.shared = nn.ModuleList([nn.Linear(WIDTH, WIDTH)] * 2)
            self.table = nn.ParameterDict({"a": nn.Parameter(torch.ones(WIDTH))})
        with torch.no_grad():
            for index, weight in enumerate(self.parameters()):
                weight.copy_(_values(tuple(weight.shape), index))


@cache
def _values(shape: tuple[int, ...], index: int) -> Tensor:
    """What the parameter with this number holds; every model is made anew, and its values are not."""
    numbers = torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape)
    return torch.sin(numbers * 1.7 + index) * 0.4
