"""Models that do what none should: an error is forkpoint's own in one line, and nothing of the model stays changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import forkpoint as fp


class Model(nn.Module):
    """Two layers, and a function that makes of them what it likes."""

    def __init__(self, body: Callable[..., Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.body = body

    def forward(self, x: Tensor, gain: float = 1.0) -> Any:
        return self.last(self.first(x)) * gain if self.body is None else self.body(self, x, gain)


def compared(model: nn.Module, gain: float = 1.5) -> fp.Result:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    return fp.compare(fp.Run(model, {"x": x, "gain": 1.0}), fp.Run(model, {"x": x, "gain": gain}))


class Slotted(Model):
    __slots__ = ("scale",)

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(4)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        self.scale = self.scale * 2
        self.scale.add_(1)
        return self.last(x) * self.scale * gain


def test_what_a_module_holds_in_slots_is_put_back():
    model = Slotted()
    held = model.scale
    assert compared(model, 1.0).identical
    assert compared(model).verdict.kind == "semantic"
    assert model.scale is held
    assert held.tolist() == [1.0] * 4


class Unfriendly(Model):
    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise KeyError(name) from None


def test_a_model_whose_attributes_raise_other_errors():
    assert compared(Unfriendly()).verdict.kind == "semantic"


def of_itself(model: Model, x: Tensor, gain: float) -> list[Any]:
    found: list[Any] = [model.last(x) * gain]
    found.append(found)
    return found


def test_a_list_that_holds_itself():
    assert compared(Model(of_itself)).verdict.kind == "semantic"
    assert compared(Model(of_itself), 1.0).identical


def deep(model: Model, x: Tensor, gain: float) -> list[Any]:
    found: Any = model.last(x) * gain
    for _ in range(5000):
        found = [found]
    return found


def test_lists_of_thousands_of_levels():
    with pytest.raises(fp.ForkpointError, match="200 levels deep"):
        compared(Model(deep))


def test_a_model_that_has_no_weights_yet():
    model = Model()
    model.last = nn.LazyLinear(4)
    with pytest.raises(fp.InputError, match=r"2 parameters that the first call makes, last\.weight first"):
        compared(model)
    assert type(model.last) is nn.LazyLinear


def test_a_model_that_torch_can_not_list():
    model = Model()
    model._modules["no module"] = len  # type: ignore[assignment]
    with pytest.raises(fp.InputError, match="whose parameters torch can't list"):
        compared(model)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        return self.last(x) * gain


def test_the_values_of_a_scripted_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripts old
        model = torch.jit.script(Plain())
    result = compared(model)
    assert result.verdict.kind == "semantic"
    assert torch.equal(result.value("last", "weight"), model.last.weight)
    with pytest.raises(fp.InputError, match="no module 'other' in the model"):
        result.value("other", "weight")


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
def test_numbers_that_torch_can_not_copy():
    def body(model: Model, x: Tensor, gain: float) -> Any:
        packed = torch.full((2, 3, 4), 8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        return model.last(x) * gain, packed

    assert compared(Model(body)).verdict.kind == "semantic"
    assert compared(Model(body), 1.0).identical
