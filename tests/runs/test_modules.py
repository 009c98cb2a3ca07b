"""Paths of modules, and what wraps a model."""

from __future__ import annotations

import pytest
from torch import nn

from forkpoint.runs.modules import WRAPPER, owned, unwrapped, walk, wrappings


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("", WRAPPER),
        ("base_model", f"{WRAPPER}.base_model"),
        ("base_model.model", ""),
        ("base_model.model.model.layers.0", "model.layers.0"),
        ("base_model.modelling", f"{WRAPPER}.base_model.modelling"),
    ],
)
def test_a_wrapped_model_has_the_paths_of_its_own(path: str, plain: str) -> None:
    assert unwrapped(path, "base_model.model") == plain
    assert unwrapped(path, "") == path


class Adapted(nn.Module):
    """Holds a model as PEFT does, and says so."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = held("model", model)

    def get_base_model(self) -> nn.Module:
        return self.base_model.model


def held(path: str, model: nn.Module) -> nn.Module:
    """A module that has a model at a path."""
    for name in reversed(path.split(".")):
        holder = nn.Module()
        holder.add_module(name, model)
        model = holder
    return model


def test_what_wraps_is_taken_off_where_that_makes_models_alike() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    adapted, compiled = Adapted(model), held("_orig_mod", model)
    both = Adapted(compiled)
    assert wrappings(adapted, model) == ("base_model.model", "")
    assert wrappings(model, both) == ("", "base_model.model._orig_mod")
    assert wrappings(compiled, adapted) == ("_orig_mod", "base_model.model")
    assert wrappings(adapted, Adapted(model)) == ("", "")
    assert wrappings(adapted, nn.Linear(2, 2)) == wrappings(None, adapted) == ("", "")
    assert (
        wrappings(held("base_model.model", model), model)
        == wrappings(held("backbone", model), model)
        == ("", "")
    )


def test_every_module_once_with_the_paths_that_torch_gives() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU())}), nn.Tanh())
    assert walk(model) == list(model.named_modules())
    assert walk(None) == []


def test_what_modules_own_by_the_first_of_its_names() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].weight = model[0].bias  # tied
    names = {name for name, _ in owned(walk(model)).values()}
    assert names == {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
