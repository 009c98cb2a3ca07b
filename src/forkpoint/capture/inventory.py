"""What a trace has to know of a model before it runs; looked up anew only where the model is not what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from forkpoint.capture.labels import Labels
from forkpoint.capture.marks import Frame, Known, Mark, entering
from forkpoint.capture.pattern import device_of, size_of
from forkpoint.native.choice import choose
from forkpoint.runs.modules import Survey, owned, survey, walk

WeightForm = tuple[torch.dtype, torch.Size, int]
"""Dtype, size and device of a weight."""


class Inventory:
    """The modules and weights of a model.

    It outlives the runs, and holds no reference to a weight, not even a weak one: torch swaps no tensors that have any
    (`torch.utils.swap_tensors`, by which a model may be cast). That a weight of the same form lies where another one lay
    is as good as that it is the same.

    Attributes:
        frames: of its modules, by the id of the module.
        names: of its parameters and buffers, by the id of the tensor.
    """

    def __init__(self, found: Survey, model: nn.Module, last: Inventory | None) -> None:
        self._structure = found.structure
        walked = walk(model)
        weights = owned(walked)
        self.frames = _frames_of(walked, {} if last is None else last.frames)
        self.names = {key: name for key, (name, _) in weights.items()}
        self._weights = [None if tensor is None else id(tensor) for tensor in found.weights]
        self._forms = [None if tensor is None else _form(tensor) for tensor in found.weights]
        self._marks: WeakKeyDictionary[Labels, list[Mark]] = WeakKeyDictionary()

    def fits(self, found: Survey) -> bool:
        """Whether these are the very same modules, in the same places, with the same weights."""
        return (
            found.structure == self._structure
            and len(found.weights) == len(self._weights)
            and same_weights(found.weights, self._weights, self._forms, size_of, device_of)
        )

    def known(
        self, weights: list[Tensor | None], labels: Labels, mark: Callable[[Tensor], Mark]
    ) -> dict[int, Known]:
        """What is known of the weights in a run, by their ids.

        Args:
            weights: those that the inventory fits.
            labels: the run's.
            mark: gives the mark of a weight there.
        """
        tensors = [tensor for tensor in weights if tensor is not None]
        marks = self._marks.get(labels)
        if marks is None:
            marks = self._marks[labels] = [mark(tensor) for tensor in tensors]
        return {id(tensor): (ref(tensor), its, -1, -1) for tensor, its in zip(tensors, marks, strict=True)}


_inventories: WeakKeyDictionary[nn.Module, Inventory] = WeakKeyDictionary()


def inventory_of(model: nn.Module, found: Survey | None = None) -> Inventory:
    """The inventory of a model, that of the last trace if nothing is different.

    Args:
        model: the model.
        found: what it consists of, where somebody has just looked.
    """
    found = found or survey(model)
    last = _inventories.get(model)
    if last is None or not last.fits(found):
        last = _inventories[model] = Inventory(found, model, last)
    return last


def _form(weight: Tensor) -> WeightForm:
    """What a mark says of a weight; a parameter's data can be replaced in place, as `half` does."""
    return weight.dtype, size_of(weight), device_of(weight)


def python_same_weights(
    weights: list[Tensor | None],
    before: list[int | None],
    forms: list[WeightForm | None],
    size: Callable[[Tensor], Any],
    device: Callable[[Tensor], int],
) -> bool:
    """Whether weights lie where those of before lay, and are of the same dtype, size and device.

    It is asked for every run, so that it is also written in C (`native/held.c`).
    """
    return all(
        key is None
        if weight is None
        else key == id(weight) and (weight.dtype, size(weight), device(weight)) == form
        for weight, key, form in zip(weights, before, forms, strict=True)
    )


same_weights = choose(python_same_weights, "same_weights")


def _frames_of(modules: list[tuple[str, nn.Module]], last: dict[int, Frame]) -> dict[int, Frame]:
    """A frame for every module of a model; that of the last trace, if the module still goes by its path."""
    frames: dict[int, Frame] = {}
    for path, module in modules:
        key = id(module)
        frame = last.get(key)
        names = entering(type(module)).names
        if frame is None or frame.path != path or frame.names is not names:
            frame = Frame(path, names)
        frames[key] = frame
    return frames
