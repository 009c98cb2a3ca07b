"""What a trace has to know of a model before it runs; looked up anew only where the model is not what it was."""

from __future__ import annotations

from collections.abc import Callable
from operator import call, is_
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from forkpoint.capture.labels import Labels
from forkpoint.capture.marks import Frame, Known, Mark, entering
from forkpoint.modules import Survey, owned, survey, walk


class Inventory:
    """The modules and weights of a model.

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
        self._weights = [_nothing if tensor is None else ref(tensor) for tensor in found.weights]
        self._forms = _forms(found.weights)
        self._known: WeakKeyDictionary[Labels, dict[int, Known]] = WeakKeyDictionary()

    def fits(self, found: Survey) -> bool:
        """Whether these are the very same modules, in the same places, with the same weights."""
        return (
            found.structure == self._structure
            and len(found.weights) == len(self._weights)
            and all(map(is_, map(call, self._weights), found.weights))
            and _forms(found.weights) == self._forms
        )

    def known(self, labels: Labels, mark: Callable[[Tensor], Mark]) -> dict[int, Known]:
        """What is known of the weights in a run, by their ids.

        Args:
            labels: the run's.
            mark: gives the mark of a weight there.
        """
        found = self._known.get(labels)
        if found is None:
            tensors = [tensor for weight in self._weights if (tensor := weight()) is not None]
            found = {id(tensor): (ref(tensor), mark(tensor), -1, -1) for tensor in tensors}
            self._known[labels] = found
        return found


_inventories: WeakKeyDictionary[nn.Module, Inventory] = WeakKeyDictionary()


def inventory_of(model: nn.Module) -> Inventory:
    """The inventory of a model, that of the last trace if nothing is different."""
    found = survey(model)
    last = _inventories.get(model)
    if last is None or not last.fits(found):
        last = _inventories[model] = Inventory(found, model, last)
    return last


def _nothing() -> None:
    """Stands for a reference to a weight where a module has none."""


def _forms(weights: list[Tensor | None]) -> list[Any]:
    """What a mark says of each weight; a parameter's data can be replaced in place, as `half` does."""
    return [(t.dtype, t.shape, t.get_device()) for t in weights if t is not None]


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
