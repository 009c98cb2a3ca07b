"""Function and dispatch modes that follow the labels through the inside of a call, and keep its intermediate values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from forkpoint.capture.functions import resolve
from forkpoint.capture.labels import Label, Labels
from forkpoint.capture.rules import Call, UnknownMovementError, propagate, tensors_in

_LIKE = {
    "_softmax": "softmax", "_safe_softmax": "softmax", "_log_softmax": "log_softmax", "native_layer_norm": "layer_norm",
    "_fused_rms_norm": "rms_norm", "native_group_norm": "group_norm", "convolution": "conv1d",
}  # fmt: skip
"""Inner operators that move tokens as the public function of another name does."""


class Labelling:
    """The labels of the tensors of one call.

    Args:
        labels: of the run, so that they are the ones that its traces use.
        by_id: the label of each tensor that goes into the call, by its id.
    """

    def __init__(self, labels: Labels, by_id: dict[int, Label | None]) -> None:
        self._labels = labels
        self._by_id = dict(by_id)
        self._alive: list[Tensor] = []

    def of(self, tensor: Tensor) -> Label | None:
        return self._by_id.get(id(tensor))

    def follow(
        self, rule: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Label what a call returned."""
        outputs = tuple(tensors_in((result,)))
        if not outputs:
            return
        try:
            call = Call(rule, func, args, kwargs, outputs, self.of, self._labels)
            labels = propagate(call)
        except (
            UnknownMovementError,
            IndexError,
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RuntimeError,
        ):
            labels = [None] * len(outputs)
        for output, label in zip(outputs, labels, strict=True):
            self._alive.append(output)  # an id is used again once its tensor is gone
            fits = label is not None and label.q.ndim == output.dim()
            self._by_id[id(output)] = label if fits else None


class Following(TorchFunctionMode):
    """Labels the values of every torch function called in the block."""

    def __init__(self, labelling: Labelling) -> None:
        super().__init__()
        self._labelling = labelling

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        function = resolve(func)
        if not function.silent:
            with torch._C.DisableTorchFunction():
                self._labelling.follow(function.rule, func, args, kwargs, result)
        return result


@dataclass
class AtenCall:
    """One ATen operator, and what it returned."""

    name: str
    outputs: tuple[Tensor, ...]
    labels: tuple[Label | None, ...]


class Steps(TorchDispatchMode):
    """Keeps every ATen operator below a call, with its values and their labels."""

    def __init__(self, labelling: Labelling) -> None:
        super().__init__()
        self.steps: list[AtenCall] = []
        self._labelling = labelling

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            name = str(func._schema.name).removeprefix("aten::")
            rule = "scaled_dot_product_attention" if "attention" in name else _LIKE.get(name, name)
            self._labelling.follow(rule, func, args, kwargs, result)
            outputs = tensors_in((result,))
            self.steps.append(
                AtenCall(
                    func._schema.name,
                    tuple(value.detach().clone() for value in outputs),
                    tuple(self._labelling.of(value) for value in outputs),
                )
            )
        return result
