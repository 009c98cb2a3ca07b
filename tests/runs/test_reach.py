"""Modules are found behind callables, where they can be."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import forkpoint as fp
from forkpoint.runs.reach import modules_behind

GLOBAL = nn.Linear(2, 2)


def _by_name(x: Any) -> Any:
    return GLOBAL(x)


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: nn.Module) -> None:
        self.held = held

    def __call__(self, x: Any) -> Any:
        return self.held(x)


class Named:
    """Its attribute has the name of a global, which it does not read."""

    def __init__(self) -> None:
        self.GLOBAL = 3

    def __call__(self) -> Any:
        return self.GLOBAL


def test_what_is_found():
    model = nn.Linear(2, 2)

    def closure(x: Any) -> Any:
        return [model(part) for part in x]

    def default(x: Any, *, by: nn.Module = model) -> Any:
        return by(x)

    decorated = partial(closure, 1)
    ways = [
        closure,
        default,
        decorated,
        model.forward,
        lambda x: closure(x)[0],
        Slotted(model),
        Slotted(model).__call__,
    ]
    ways += [SimpleNamespace(pipeline={"parts": [model]}), partial(max, model)]
    for way in ways:
        assert modules_behind(way) == (model,), way
    assert modules_behind(_by_name) == (GLOBAL,)
    assert modules_behind(Named()) == ()
    assert modules_behind(len, None, 3, "text", torch.ones(2)) == ()


def test_of_modules_that_hold_others_only_these():
    outer = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert modules_behind([outer[0], outer[1].forward, outer]) == (outer,)


def test_a_run_knows_what_it_calls():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    inputs = {"input": torch.ones(1, 1, 2)}
    assert fp.Run(lambda **given: first(**given) + 1, inputs).modules is first
    both = fp.Run(None, inputs, call=lambda _, given: second(first(**given)))
    assert both.roots == (first, second)
    assert list(both.modules) == [first, second]
    own = fp.Run(first, inputs, call=lambda model, given: second(model(**given)))
    assert (own.modules, own.roots) == (first, (first, second))


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Any) -> Any:
        self.count.data.add_(1)
        return x + self.count


def test_what_is_behind_a_callable_is_put_back():
    inner, head = Writing(), Writing()
    inputs = {"x": torch.ones(1, 3)}
    runs = [fp.Run(None, inputs, call=lambda _, given: head(inner(**given))) for _ in range(2)]
    assert fp.compare(*runs).verdict.kind == "identical"
    assert not bool(inner.count + head.count)


HIDDEN: dict[str, nn.Module] = {}


def test_what_was_not_seen_is_said_to_be_unknown():
    HIDDEN.update(a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    inputs = {"input": torch.ones(1, 3, 2)}
    runs = [fp.Run(None, inputs, call=lambda _, given, name=name: HIDDEN[name](**given)) for name in "ab"]
    found = {probe.name: probe for probe in fp.compare(*runs).verdict.evidence}["inputs"]
    assert found.outcome == "unknown"
    assert found.text.endswith(
        "whether parameters and buffers are is not known: no module was found behind run A"
    )
