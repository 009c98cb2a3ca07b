"""The slow and obvious way: autograd is asked for the gradient of every value that a model makes. Knows nothing of forkpoint."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Gradients:
    """Of every value, in the order in which they were made, and of every parameter; zero where autograd has none."""

    values: list[Tensor]
    parameters: dict[str, Tensor]


class _Edges(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.edges: list[GradientEdge] = []
        self.shapes: list[torch.Size] = []
        self._seen: list[tuple[Tensor, int]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                self._add(value)
        return result

    def _add(self, value: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            if not any(value is known and value._version == version for known, version in self._seen):
                self._seen.append((value, value._version))
                self.edges.append(get_gradient_edge(value))
                self.shapes.append(value.shape)


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> Gradients:
    """Every gradient of the loss that a copy of a model returns."""
    model = copy.deepcopy(model)
    with _Edges() as seen:
        loss = model(**inputs)["loss"]
    names, weights = zip(*model.named_parameters(), strict=True)
    made = torch.autograd.grad(loss, [*seen.edges, *weights], allow_unused=True)
    found = cast("tuple[Tensor | None, ...]", made)
    values = [torch.zeros(shape) if g is None else g for g, shape in zip(found, seen.shapes, strict=False)]
    rest = found[len(values) :]
    return Gradients(
        values,
        {
            name: torch.zeros_like(w) if g is None else g
            for name, w, g in zip(names, weights, rest, strict=True)
        },
    )
