"""The modules and weights of a model, kept between its runs: worked out again only when the model has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from forkpoint.capture.labels import Labels
from forkpoint.capture.marks import Frame, Mark, TensorRecord, entering
from forkpoint.capture.pattern import device_of, size_of
from forkpoint.native.choice import choose
from forkpoint.runs.modules import Survey, owned, survey, walk

WeightForm = tuple[torch.dtype, torch.Size, int]
"""Dtype, size and device of a weight."""


class Inventory:
    """The modules and weights of a model, for one run after another.

    It holds no reference to a weight, not even a weak one, since `torch.utils.swap_tensors`, by which a model may be cast,
    refuses tensors that have one. So weights are compared by id, dtype, size and device: for a trace, a new tensor that has
    all four of the old one is as good as the old one.

    Args:
        parts: the survey of the model.
        model: the model.
        last: an earlier inventory of it, whose frames are used again; None for the first.

    Attributes:
        frames: of its modules, by the id of the module.
        names: of its parameters and buffers, by the id of the tensor.
    """

    def __init__(self, parts: Survey, model: nn.Module, last: Inventory | None) -> None:
        self._structure = parts.structure
        walked = walk(model)
        weights = owned(walked)
        self.frames = _frames_of(walked, {} if last is None else last.frames)
        self.names = {key: name for key, (name, _) in weights.items()}
        self._weights = [None if tensor is None else id(tensor) for tensor in parts.weights]
        self._forms = [None if tensor is None else _form(tensor) for tensor in parts.weights]
        self._marks: WeakKeyDictionary[Labels, list[Mark]] = WeakKeyDictionary()

    def fits(self, parts: Survey) -> bool:
        """Whether a survey shows the same modules in the same places, with the same weights, as this inventory."""
        return (
            parts.structure == self._structure
            and len(parts.weights) == len(self._weights)
            and same_weights(parts.weights, self._weights, self._forms, size_of, device_of)
        )

    def records(
        self, weights: list[Tensor | None], labels: Labels, mark: Callable[[Tensor], Mark]
    ) -> dict[int, TensorRecord]:
        """The records with which a run begins: one for each weight, by its id.

        Args:
            weights: as in a survey that this inventory `fits`.
            labels: the run's.
            mark: gives the mark of a weight in that run; asked once for all runs with these labels.
        """
        tensors = [tensor for tensor in weights if tensor is not None]
        marks = self._marks.get(labels)
        if marks is None:
            marks = self._marks[labels] = [mark(tensor) for tensor in tensors]
        return {id(tensor): (ref(tensor), its, -1, -1) for tensor, its in zip(tensors, marks, strict=True)}


_inventories: WeakKeyDictionary[nn.Module, Inventory] = WeakKeyDictionary()


def inventory_of(model: nn.Module, parts: Survey | None = None) -> Inventory:
    """The inventory of a model: that of its last trace if the model is the same, else a new one.

    Args:
        model: the model.
        parts: a survey of it that was just made; None to make one.
    """
    parts = parts or survey(model)
    last = _inventories.get(model)
    if last is None or not last.fits(parts):
        last = _inventories[model] = Inventory(parts, model, last)
    return last


def _form(weight: Tensor) -> WeightForm:
    """What a weight's mark depends on; it may change while the id stays, as `half` replaces a parameter's data."""
    return weight.dtype, size_of(weight), device_of(weight)


def python_same_weights(
    weights: list[Tensor | None],
    before: list[int | None],
    forms: list[WeightForm | None],
    size: Callable[[Tensor], Any],
    device: Callable[[Tensor], int],
) -> bool:
    """Whether weights have the same ids as before, and the same dtypes, sizes and devices.

    It is asked for every run, so that it is also written in C (`native/held.c`).

    Args:
        weights: now.
        before: the ids that they had.
        forms: the forms that they had.
        size, device: give these of a tensor.
    """
    return all(
        key is None
        if weight is None
        else key == id(weight) and (weight.dtype, size(weight), device(weight)) == form
        for weight, key, form in zip(weights, before, forms, strict=True)
    )


same_weights = choose(python_same_weights, "same_weights")


def _frames_of(modules: list[tuple[str, nn.Module]], last: dict[int, Frame]) -> dict[int, Frame]:
    """A frame for every module of a model: the one of the last trace if the module still has the same path."""
    frames: dict[int, Frame] = {}
    for path, module in modules:
        key = id(module)
        frame = last.get(key)
        names = entering(type(module)).names
        if frame is None or frame.path != path or frame.names is not names:
            frame = Frame(path, names)
        frames[key] = frame
    return frames
