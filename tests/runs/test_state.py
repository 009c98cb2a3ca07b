"""A model is put back as it was, whatever a forward call rewrites in it."""

from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forkpoint import Run
from forkpoint.native.choice import python_alone
from forkpoint.runs.state import kept_state


class Keeper(nn.Module):
    """Rewrites everything that a module can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("seen", torch.zeros(2), persistent=False)
        self.plain = torch.zeros(2)
        self.count = 0
        self.items = [1, 2]
        self.empty: list[int] = []
        self.table = {"a": 1}
        self.order = OrderedDict(a=1)
        self.names = {"a"}
        self.inner = nn.Dropout(0.5)

    def forward(self, x):
        self.written += 1
        self.replaced = self.replaced + 1
        self.plain.add_(1)
        self.count += 1
        self.later = x
        self.items.append(3)
        self.empty.append(3)
        self.table["b"] = 2
        self.order.pop("a", None)
        self.names.add("b")
        self.register_forward_hook(lambda *_: None)
        self.inner.register_forward_pre_hook(lambda *_: None)
        self.register_buffer("fresh", torch.ones(1))
        self.inner.eval()
        self.added = nn.Linear(1, 1)
        return x + self.written


def state(model: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = (id(value), repr(value))
    return found


def test_everything_that_a_forward_call_rewrites_is_put_back():
    model = Keeper()
    before = state(model)
    first = Run(model, {"x": torch.arange(2.0)[None]}).execute()[0]
    assert state(model) == before
    assert torch.equal(Run(model, {"x": torch.arange(2.0)[None]}).execute()[0], first)
    assert not hasattr(model, "later")
    assert not hasattr(model, "fresh")
    assert not hasattr(model, "added")


def test_the_calls_of_one_run_see_what_the_earlier_ones_wrote():
    outputs = Run(Keeper(), [{"x": torch.zeros(1, 2)}] * 2).execute()
    assert [float(o[0, 0]) for o in outputs] == [1, 2]


def test_a_model_that_raises_is_put_back_too():
    model = Keeper()
    before = state(model)

    def spoil_and_raise() -> None:
        with kept_state(model):
            model(torch.arange(2.0)[None])
            raise RuntimeError("deliberate")

    with pytest.raises(RuntimeError, match="deliberate"):
        spoil_and_raise()
    assert state(model) == before


def test_a_buffer_written_without_a_count_is_put_back_in_inference_mode():
    with torch.inference_mode():
        model = nn.BatchNorm1d(2)
        before = {n: b.clone() for n, b in model.named_buffers()}
        with kept_state(model):
            model(torch.randn(4, 2))
        assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


class Many(nn.Module):
    """Buffers of many dtypes, shapes and strides."""

    def __init__(self) -> None:
        super().__init__()
        kinds = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
        shapes = [(), (0,), (1,), (2, 3), (3, 1, 2), (5,)]
        for kind in kinds:
            for number, shape in enumerate(shapes):
                values = torch.arange(1, 1 + math.prod(shape)).reshape(shape).to(kind)
                self.register_buffer(f"{str(kind)[6:]}_{number}", values)
        self.register_buffer("across", torch.arange(6.0).reshape(2, 3).t())
        self.register_buffer("strided", torch.arange(12.0)[::2])
        self.register_buffer("large", torch.ones(1 << 15))

    def forward(self, x: Tensor) -> Tensor:
        for _, buffer in self.named_buffers():
            buffer.zero_()
        return x


def test_buffers_of_all_kinds_are_put_back():
    model = Many()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    strides = {name: buffer.stride() for name, buffer in model.named_buffers()}
    with kept_state(model):
        model(torch.zeros(1))
        assert not any(bool(buffer.any()) for _, buffer in model.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
        assert buffer.stride() == strides[name], name


def test_a_buffer_replaced_by_another_dtype_is_put_back():
    model = Keeper()
    buffer = model.written
    with kept_state(model):
        model.double()
    assert model.written is buffer
    assert model.written.dtype == torch.float32


def test_an_order_is_put_back():
    model = nn.Sequential(nn.Linear(2, 2))
    table = {"a": 1, "b": 2}
    model.table = table

    def reorder() -> None:
        table["a"] = table.pop("a")
        model.__dict__["training"] = model.__dict__.pop("training")

    before = list(model.__dict__)
    with kept_state(model):
        reorder()
    assert list(table) == ["a", "b"]
    assert list(model.__dict__) == before


def test_an_attribute_that_goes_from_one_module_to_the_next_is_put_back():
    first, second = nn.ReLU(), nn.ReLU()
    first.note = note = object()
    with kept_state(nn.Sequential(first, second)):
        second.note = first.note
        del first.note
    assert first.note is note
    assert not hasattr(second, "note")


class Scaled(nn.Parameter):
    """A weight with a scale, as quantised ones have."""

    scale: Tensor | None


class HandsOn(nn.Module):
    """The first call takes the scale from the weight and keeps it elsewhere, as bitsandbytes does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Scaled(torch.ones(2), requires_grad=False)
        self.weight.scale = torch.full((2,), 3.0)
        self.state = SimpleNamespace(scale=None)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.scale is not None:
            self.state.scale, self.weight.scale = self.weight.scale, None
        return x if self.state.scale is None else x * self.weight * self.state.scale


def test_what_a_parameter_holds_is_put_back():
    model = HandsOn()
    run = Run(model, {"x": torch.ones(1, 2)})
    assert run.execute()[0].tolist() == [[3.0, 3.0]]
    assert model.weight.scale is not None
    assert run.execute()[0].tolist() == [[3.0, 3.0]]


def test_keys_that_cannot_be_compared_are_no_obstacle():
    model = nn.ReLU()
    keys = [torch.zeros(2), torch.zeros(2)]
    model.table = {keys[0]: 1}
    with kept_state(model):
        model.table.clear()
        model.table[keys[1]] = 1
    assert list(map(id, model.table)) == [id(keys[0])]


class Slotted:
    """An object that holds what it holds in slots, one of them empty."""

    __slots__ = ("count", "later", "tensor")

    def __init__(self) -> None:
        self.count, self.tensor = 0, torch.zeros(2)


class Oddities(nn.Module):
    """Writes what is in no attribute, container or tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.slotted, self.inner = Slotted(), SimpleNamespace(slotted=Slotted())
        self.array, self.objects = np.zeros(3), np.array([[], None], dtype=object)
        self.generator = torch.Generator().manual_seed(1)
        self.layer, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for slotted in (self.slotted, self.inner.slotted):
            slotted.count += 1
            slotted.tensor.add_(1)
            slotted.later = x
        self.array += 1
        self.objects[0].append(1)
        self.objects[1] = x
        noise = torch.randn(2, generator=self.generator)
        self.layer.weight.requires_grad_(False)
        with torch.enable_grad():
            (self.layer(x).sum() + self.other(x).sum()).backward()
        return x + self.slotted.tensor + self.array[0] + noise + self.other.weight.grad.sum()


@pytest.mark.parametrize("had_gradients", [False, True])
@pytest.mark.parametrize("context", [nullcontext, python_alone])
def test_slots_arrays_generators_and_gradients_are_put_back(context: Any, had_gradients: bool):
    torch.manual_seed(0)
    model = Oddities()
    if had_gradients:
        model.other(torch.ones(1, 2)).sum().backward()
    kept = model.other.weight.grad
    before = None if kept is None else kept.clone()
    drawn = model.generator.get_state()
    run = Run(model, {"x": torch.ones(1, 2)})
    with context():
        outputs = [run.execute()[0] for _ in range(3)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    for slotted in (model.slotted, model.inner.slotted):
        assert (slotted.count, slotted.tensor.tolist(), hasattr(slotted, "later")) == (0, [0.0, 0.0], False)
    assert model.array.tolist() == [0.0] * 3
    assert model.objects.tolist() == [[], None]
    assert torch.equal(model.generator.get_state(), drawn)
    assert model.layer.weight.requires_grad
    assert model.layer.bias.grad is None
    assert model.other.weight.grad is kept
    assert kept is None or torch.equal(kept, before)


def test_an_array_that_nobody_may_write_is_left_alone():
    model = nn.ReLU()
    model.array = np.zeros(2)
    model.array.flags.writeable = False
    with kept_state(model):
        pass
    assert not model.array.flags.writeable


def test_a_buffer_into_which_gradients_were_written_is_a_plain_one_again():
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("mean", torch.zeros(2))
            self.table = torch.zeros(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                y = self.layer(x)
                self.mean.mul_(0.5).add_(y.mean(0))
                self.table[0].add_(y[0])
            return y + self.mean + self.table.sum()

    model = Running()
    tensors = {"mean": model.mean, "table": model.table}
    run = Run(model, {"x": torch.ones(1, 2)})
    first = run.execute()[0]
    for name, tensor in tensors.items():
        assert getattr(model, name) is tensor
        assert not tensor.requires_grad, name
        assert tensor.grad_fn is None
        assert not tensor.any()
    assert torch.equal(run.execute()[0], first)
