"""Modules whose class is not what the source of their parent says."""

from __future__ import annotations

import torch
from torch import nn

from forkpoint.explain.replaced import replaced_modules
from forkpoint.result import ReplacedModule


class Other(nn.Linear):
    """Stands in for a quantised layer."""


class Layer(nn.Module):
    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2) if wide else nn.Identity()
        self.made = make()
        self.maybe = None
        self.items = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])


class Model(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.first = Other(2, 2)


def make() -> nn.Module:
    return nn.ReLU()


def test_a_model_as_its_source_says():
    assert replaced_modules(Layer()) == ()
    assert replaced_modules(Layer(wide=True)) == ()
    assert replaced_modules(Model()) == ()
    assert replaced_modules(None) == ()


def test_a_module_of_another_class():
    model = Layer()
    model.first = Other(2, 2)
    model.items[1] = Other(2, 2)
    model.norm = nn.ReLU()
    assert replaced_modules(model) == (
        ReplacedModule("first", "nn.Linear", "Other"),
        ReplacedModule("norm", "nn.Identity or nn.LayerNorm", "nn.ReLU"),
        ReplacedModule("items.1", "nn.Linear", "Other"),
    )


def test_a_module_inside_others():
    model = Model()
    model.layers[1].first = Other(2, 2)
    model.layers[0] = nn.Identity()
    assert replaced_modules(model) == (
        ReplacedModule("layers.0", "Layer", "nn.Identity"),
        ReplacedModule("layers.1.first", "nn.Linear", "Other"),
    )


def test_what_a_function_makes_is_anything():
    model = Layer()
    model.made = Other(2, 2)
    assert replaced_modules(model) == ()


def test_a_class_without_source():
    space: dict = {"nn": nn, "torch": torch}
    exec(
        "class Made(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.ReLU()\n",
        space,
    )
    assert replaced_modules(space["Made"]()) == ()
