"""Paths of modules, and what wraps a model."""

from __future__ import annotations

import pytest
from torch import nn

from forkpoint.modules import owned, unwrapped, walk


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("", ""),
        ("model.norm", "model.norm"),
        ("base_model", "base_model"),
        ("base_model.model", ""),
        ("base_model.model.model.layers.0", "model.layers.0"),
        ("base_model.modelling", "base_model.modelling"),
        ("_orig_mod", ""),
        ("_orig_mod.model.norm", "model.norm"),
        ("_orig_mod.base_model.model.lm_head", "lm_head"),
        ("layers._orig_mod", "layers._orig_mod"),
    ],
)
def test_a_wrapped_model_has_the_paths_of_its_own(path: str, plain: str) -> None:
    assert unwrapped(path) == plain


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
