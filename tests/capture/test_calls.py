"""The calls of modules: something else makes them for a while, and then they are made as before."""

from __future__ import annotations

import inspect
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from forkpoint.capture.calls import Caller

X = torch.ones(2)


def counting(caller: Caller) -> tuple[list[str], Any]:
    """What notes whose calls it makes, and then makes them."""
    seen: list[str] = []

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(module).__name__)
        return caller.original(module, *args, **kwargs)

    return seen, call


def another_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What somebody else put in the place of torch's own."""
    return self._call_impl(*args, **kwargs)


def with_a_cell() -> Any:
    seen: list[str] = []

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append("called")
        return self._call_impl(*args, **kwargs)

    return call


class Method:
    """A method that is no function."""

    def __get__(self, module: nn.Module | None, kind: type) -> Any:
        return self if module is None else module._call_impl

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)


OTHERS = {
    "torch's own": None,
    "a function": another_call,
    "with other parameters": lambda module, *inputs, **more: module._call_impl(*inputs, **more),
    "with a cell": with_a_cell(),
    "no function": Method(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_call_goes_through_what_stands_in_and_later_none(name):
    other = OTHERS[name]
    with patch.object(nn.Module, "__call__", nn.Module.__call__ if other is None else other):
        before = nn.Module.__dict__["__call__"]
        caller = Caller()
        seen, call = counting(caller)
        model = nn.Sequential(nn.ReLU(), nn.Tanh())
        with caller.replaced(call):
            inside = model(X)
            with caller.as_before():
                model(X)
            model[0](input=X)
        assert seen == ["Sequential", "ReLU", "Tanh", "ReLU"]
        assert torch.equal(inside, model(X))
        assert len(seen) == 4
        assert nn.Module.__dict__["__call__"] is before


def test_the_class_is_left_as_it_is():
    function, code = nn.Module.__call__, nn.Module.__call__.__code__
    caller = Caller()
    with caller.replaced(caller.original):
        assert nn.Module.__call__ is function
        assert inspect.signature(function) == inspect.signature(caller.original)
        assert function.__code__ is not code
    assert function.__code__ is code


def test_torch_s_own_is_told_from_another():
    assert Caller().is_torchs
    with patch.object(nn.Module, "__call__", another_call):
        assert not Caller().is_torchs
    outer = Caller()
    with outer.replaced(outer.original):
        assert not Caller().is_torchs


def test_one_inside_another():
    outer = Caller()
    seen, call = counting(outer)
    with outer.replaced(call):
        inner = Caller()
        seen_inside, call_inside = counting(inner)
        with inner.replaced(call_inside):
            nn.ReLU()(X)
        assert seen == seen_inside == ["ReLU"]
        nn.ReLU()(X)
        assert (len(seen), len(seen_inside)) == (2, 1)


def test_an_error_comes_through_and_nothing_stays():
    code = nn.Module.__call__.__code__
    caller = Caller()

    def fail(module: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("deliberate")

    with pytest.raises(ValueError, match="deliberate"), caller.replaced(fail):
        nn.ReLU()(X)
    assert nn.Module.__call__.__code__ is code


def test_code_that_stands_in_can_be_a_key():
    """Tools that look at frames keep something for each code that they see."""
    caller = Caller()
    _, call = counting(caller)
    with caller.replaced(call):
        code = nn.Module.__call__.__code__
        assert {code: "seen"}[code] == "seen"
