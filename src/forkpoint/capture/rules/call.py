"""One call of a torch function, as a rule sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.labels import Label, Labels, Shape

MAX_WRITTEN_OUT = 1 << 24
"""Most ids that a movement may write out; beyond it a value counts as not compared."""


class UnknownMovementError(Exception):
    """No rule says how a function moves tokens; the text is the reason shown to the user."""


@dataclass
class Call:
    """One call of a torch function, as a rule sees it."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Tensor, ...]
    label_of: Callable[[Tensor], Label | None]
    labels: Labels
    reads_values: bool = field(default=False)
    """Set by a rule whose answer depends on an index tensor's values, so that it isn't cached."""

    def arg(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument by position or by any of its names. If it is a tensor that holds a number, the answer isn't cached."""
        argument = default
        if position < len(self.args):
            argument = self.args[position]
        else:
            argument = next((self.kwargs[name] for name in names if name in self.kwargs), default)
        if position and is_number(argument):
            self.reads_values = True  # a dimension, a size, a place
        return argument

    def tensors(self) -> list[Tensor]:
        """All tensor arguments, in order, those in lists and tuples too."""
        return tensors_in((self.args, tuple(self.kwargs.values())))

    def label(self, value: Any) -> Label | None:
        return self.label_of(value) if isinstance(value, Tensor) else None

    def values(self, tensor: Tensor) -> np.ndarray[Any, Any]:
        """The values of an index tensor, on the host."""
        self.reads_values = True
        return tensor.detach().cpu().numpy()

    def plain(self, argument: Any) -> Any:
        """An argument of a movement without its data: a number that a tensor holds, or else the tensor's shape."""
        if not isinstance(argument, Tensor):
            return argument
        return (
            self.values(argument).item()
            if is_number(argument)
            else torch.empty(argument.shape, device="meta")
        )


def is_number(value: Any) -> bool:
    """Whether a value is a tensor that can stand for a whole number: an index, a size, a dimension."""
    if not isinstance(value, Tensor) or value.dim():
        return False
    return not (value.dtype.is_floating_point or value.dtype.is_complex or value.dtype == torch.bool)


def tensors_in(value: Any, depth: int = 4) -> list[Tensor]:
    """Tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if depth and isinstance(value, (tuple, list)):
        return [t for item in value for t in tensors_in(item, depth - 1)]
    if depth and isinstance(value, dict):
        return [t for item in value.values() for t in tensors_in(item, depth - 1)]
    return []


def check_size(sizes: Sequence[int]) -> None:
    if sum(sizes) > MAX_WRITTEN_OUT * 64:
        raise UnknownMovementError("too large for its coordinates to be followed")


def check_written(shape: Shape) -> None:
    if math.prod(shape) > MAX_WRITTEN_OUT:
        raise UnknownMovementError("too large for its coordinates to be followed")
