"""Tensors that a model swaps while it is watched, and models that are cast by swapping after they were."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator

import pytest
import torch
from torch import Tensor, nn
from torch.utils import swap_tensors

import forkpoint as fp
from forkpoint.native.choice import python_alone


@pytest.fixture(params=[True, False], ids=["C", "Python"], autouse=True)
def _both(request: pytest.FixtureRequest) -> Generator[None]:
    if request.param:
        yield
    else:
        with python_alone():
            yield


class Swapping(nn.Module):
    """Swaps two values, or two parameters, and may scale by the length of its input.

    Args:
        swaps: False for what comes to the same without a swap.
    """

    def __init__(self, *, swaps: bool = True, parameters: bool = False, by_length: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.swaps, self.parameters_too, self.by_length = swaps, parameters, by_length

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = torch.relu(y)
        if self.swaps:
            swap_tensors(y, z)
        else:
            y, z = z, y
        y = self.last(y * (1 + self.by_length * x.shape[1]))
        if self.parameters_too:
            other = nn.Parameter(self.last.weight.detach() * 2)
            swap_tensors(self.last.weight, other)
            y = self.last(y) * other.sum()
        return y + z


def inputs(length: int) -> dict[str, Tensor]:
    return {"x": torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(0))[:, :length].clone()}


def run(model: nn.Module, length: int = 4) -> fp.Run:
    mask = (torch.arange(length) < 4).long()[None]
    return fp.Run(model, inputs(length), layout=fp.Layout.from_mask(mask))


def test_what_was_recorded_of_a_tensor_goes_along_when_it_is_swapped():
    for _ in range(3):  # the later ones follow the first
        result = fp.compare(run(Swapping()), run(Swapping(swaps=False)), probes=False)
        assert result.first is None
        rows = {row.op: row.status for row in result.ops}
        assert rows["(model)/relu"] == rows["last/output"] == rows["(model)/add"] == "equal"
        assert not result.not_compared
        assert result.a.notes == ()


def test_a_difference_behind_a_swap_is_found():
    model = Swapping(by_length=0.25)
    result = fp.compare(run(model), run(model, 6))
    assert result.verdict.kind == "semantic"
    assert result.first is not None
    assert result.first.op == "(model)/mul"


def test_parameters_that_are_swapped_are_put_back():
    model = Swapping(parameters=True, by_length=0.25)
    before = {name: (value, value.clone()) for name, value in model.named_parameters()}
    result = fp.compare(run(model), run(model, 6))
    assert result.verdict.kind == "semantic"
    assert result.a.notes == ()
    for name, value in model.named_parameters():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])


def test_what_torch_would_not_swap_stays_as_it_is():
    class Referenced(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y, z = x * 2, x * 3
            reference = weakref.ref(y)
            with pytest.raises(RuntimeError, match="weakref"):
                swap_tensors(y, z)
            assert reference() is y
            return y + z

    result = fp.compare(run(Referenced()), run(Referenced()))
    assert result.identical
    assert {row.status for row in result.ops} == {"equal"}


def test_swaps_of_another_thread_are_left_alone():
    class Threaded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            others = [torch.zeros(1), torch.ones(1)]
            thread = threading.Thread(target=swap_tensors, args=others)
            thread.start()
            thread.join()
            return y * others[0]

    code = swap_tensors.__code__
    assert fp.compare(run(Threaded()), run(Threaded())).identical
    assert swap_tensors.__code__ is code


@pytest.mark.parametrize("probes", [True, False])
def test_a_model_can_be_cast_by_swapping_afterwards(probes: bool):
    model = Swapping(by_length=0.25)
    code = swap_tensors.__code__
    result = fp.compare(run(model), run(model, 6), probes=probes)
    assert swap_tensors.__code__ is code
    assert not any(weakref.getweakrefs(weight) for weight in model.parameters())
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.half()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    assert model.first.weight.dtype == torch.float16
    assert result.first is not None
