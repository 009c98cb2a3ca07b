"""Positional inputs, and calls that need gradients."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import nn

import forkpoint as fp


class Force(nn.Module):
    """What an energy gives: its gradient by the positions."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 1)
        self.scale = scale

    def forward(self, x):
        energy = self.linear(torch.tanh(x) * self.scale).sum()
        return torch.autograd.grad(energy, x)[0]


def test_positional_inputs_go_by_the_names_of_the_parameters():
    x, w = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    assert list(fp.Run(nn.Linear(4, 2), x).calls[0]) == ["input"]
    assert list(fp.Run(nn.Bilinear(4, 4, 2), (x, w)).calls[0]) == ["input1", "input2"]
    assert len(fp.Run(nn.Linear(4, 2), [x, x]).calls) == 2
    result = fp.compare(fp.Run(nn.Bilinear(4, 4, 2), (x, w)), fp.Run(nn.Bilinear(4, 4, 2), (x, w)))
    assert result.verdict.mechanism == "parameters"


class Wrapper(nn.Module):
    """Hands on whatever it is given, as wrappers do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Nameless(nn.Module):
    def forward(self, x, /, y):
        return x - y


@pytest.mark.parametrize("model", [Wrapper(nn.Bilinear(4, 4, 2)), Nameless()], ids=["any number", "no name"])
def test_inputs_without_names_go_in_by_their_places(model):
    x, y = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    run = fp.Run(model, (x, y))
    assert list(run.calls[0]) == ["[0]", "[1]"]
    assert torch.equal(run.execute()[0], model(x, y))
    assert fp.compare(run, fp.Run(model, (x, y))).identical
    assert fp.compare(run, fp.Run(model, (x, y + 1))).verdict.kind is fp.VerdictKind.INPUTS


def test_places_and_names_of_one_call():
    run = fp.Run(Wrapper(nn.Bilinear(4, 4, 2)), {"[0]": torch.ones(1, 4), "input2": torch.ones(1, 4)})
    assert run.execute()[0].shape == (1, 2)


@pytest.mark.parametrize("given", [None, 3, "hello", [], {1, 2}, [None], torch.ones(1, 4).numpy()])
def test_what_is_no_input(given):
    with pytest.raises(fp.InputError, match=r"inputs of type .*; expected a mapping of keyword arguments"):
        fp.Run(nn.Linear(4, 2), given)


def test_more_of_them_than_there_are_names():
    with pytest.raises(fp.InputError, match="2 positional inputs for a Linear that has names for 1"):
        fp.Run(nn.Linear(4, 2), (torch.randn(1, 4), torch.randn(1, 4)))


def test_a_call_that_needs_gradients():
    x = torch.randn(2, 4, 3, requires_grad=True)
    alone = x.detach()[:1].clone().requires_grad_()
    model = Force()
    assert fp.compare(fp.Run(model, x), fp.Run(model, alone)).identical
    result = fp.compare(fp.Run(model, x), fp.Run(Force(1.5), alone))
    assert result.verdict.kind in (fp.VerdictKind.SEMANTIC, fp.VerdictKind.UNDETERMINED), str(result)
    assert result.first.function == "mul"
    assert all(p.grad is None for p in model.parameters())


def test_a_call_that_fails_with_gradients_too_says_what_it_said():
    class Failing(nn.Module):
        def forward(self, x):
            raise ValueError(f"gradients {torch.is_grad_enabled()}")

    run = fp.Run(Failing(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="gradients False"):
        fp.compare(run, run)
    assert run.gradients is False


def test_a_tuple_of_mappings_is_a_list_of_calls() -> None:
    """As `Run.calls` is one: a run with the calls of another is the same run."""
    run = fp.Run(nn.Linear(4, 2), [{"input": torch.ones(1, 4)}, {"input": torch.zeros(1, 4)}])
    again = fp.Run(run.model, run.calls)
    assert [set(call) for call in again.calls] == [{"input"}, {"input"}]
    with pytest.raises(fp.InputError, match="inputs of type tuple"):
        fp.Run(nn.Linear(4, 2), ())


@dataclass
class Held:
    """An argument that has a tensor in it."""

    x: torch.Tensor
    times: int = 2


class OfHeld(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)

    def forward(self, held):
        return self.linear(held.x) * held.times


class Pair(NamedTuple):
    x: torch.Tensor
    times: int = 2


@pytest.mark.parametrize("held", [Held, Pair])
def test_tensors_in_dataclasses_and_named_tuples_are_inputs(held):
    model, x = OfHeld(), torch.randn(2, 4)
    runs = [fp.Run(model, {"held": held(value)}) for value in (x, x.clone(), x + 0.1)]
    assert fp.compare(runs[0], runs[1]).identical
    verdict = fp.compare(runs[0], runs[2]).verdict
    assert verdict.kind is fp.VerdictKind.INPUTS
    assert "held" in verdict.summary


def test_exported_and_traced_modules_take_inputs_by_their_place():
    model, x = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.randn(3, 4)
    run = fp.Run(model, x)
    assert fp.compare(run, fp.Run(torch.export.export(model, (x,)).module(), x)).identical
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop it
        traced = torch.jit.trace(model, x)
    assert fp.compare(run, fp.Run(traced, x)).identical


@pytest.mark.parametrize(
    ("given", "said"),
    [(torch.zeros(0, 4), "without a row"), (torch.zeros(2, 4, device="meta"), "device meta")],
)
def test_inputs_without_values(given, said):
    with pytest.raises(fp.InputError, match=said):
        fp.Run(nn.Linear(4, 2), given)
