"""Looking into some modules, and following the rest in passing: the same comes out as where all is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkpoint import Run
from forkpoint.capture.functions import UNWRITTEN
from forkpoint.capture.recorder import CopiedCall, Fetch
from forkpoint.capture.sites import NOWHERE
from forkpoint.capture.wanted import FetchTargets
from forkpoint.explain.session import Traced, trace_run
from forkpoint.probes.watchers import Store
from forkpoint.support.equality import same_bits

NO_PLACE = NOWHERE.site.chain
Wants = Callable[[Callable[[CopiedCall], None]], list[Fetch]]
X = torch.randn(2, 5, 8)


def described(taken: CopiedCall) -> tuple[Any, ...]:
    """All that is known of a call, in an order of its own."""

    def label(found: Any) -> Any:
        return None if found is None else (found.q.tolist(), None if found.k is None else found.k.tolist())

    def tensors(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        return [t for item in value for t in tensors(item)] if isinstance(value, (tuple, list)) else []

    given = tensors([*taken.args, *taken.kwargs.values()])
    return (
        taken.op, taken.call, taken.nth, taken.func, sorted(taken.kwargs),
        [(t.tolist(), t.stride(), label(taken.input_labels.get(id(t))), taken.owned.get(id(t))) for t in given],
        [(t.dtype, t.tolist(), t.stride()) for t in taken.outputs], [label(found) for found in taken.output_labels],
    )  # fmt: skip


def fetched(traced: Traced, wants: Wants, *, some: bool) -> list[CopiedCall]:
    """What is handed over, looking into some modules or into all."""
    found: list[CopiedCall] = []
    fetches = wants(found.append)
    assert FetchTargets.of(fetches, traced.recorder.tape.frames) is not None
    with mock.patch.object(FetchTargets, "of", FetchTargets.of if some else lambda *_: None):
        traced.again(fetches)
    return found


def check(run: Run, wants: Callable[[Traced], Wants], *, functions: bool = True) -> list[CopiedCall]:
    """Both ways give the same, though perhaps in another order."""
    traced = trace_run(run, functions=functions)
    some, every = (fetched(traced, wants(traced), some=some) for some in (True, False))
    assert len(some) == len(every) > 0
    assert sorted(map(repr, map(described, some))) == sorted(map(repr, map(described, every)))
    return some


def outputs_of_modules(traced: Traced) -> Wants:
    paths = [frame.path for frame in traced.recorder.tape.frames.values() if frame.path]
    return lambda take: [Fetch((path, "output", NO_PLACE), None, None, take) for path in paths]


def all_ops(traced: Traced) -> Wants:
    """Every tenth op that a module of the model calls."""
    ops = [op for op in traced.trace.ops if not op.is_boundary and op.module and not op.output]
    ops = [op for op in ops if op.function not in UNWRITTEN and op.function != "setitem"][::10]
    return lambda take: [Fetch((op.module, op.function, op.site.chain), None, None, take) for op in ops]


@pytest.mark.parametrize("wants", [outputs_of_modules, all_ops])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "mixtral"])
def test_models(name: str, wants: Callable[[Traced], Wants]):
    architecture = ARCHITECTURES[name]
    inputs = architecture.inputs([prompt(9), prompt(6)], 13, "left" if architecture.causal else "right")
    check(Run(architecture.build(), inputs), wants)


@pytest.mark.parametrize("nth", [None, 0, 1])
def test_a_module_that_is_called_twice(nth: int | None):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.inner(x).add_(1)
            return x

    def wants(traced: Traced) -> Wants:
        op = next(op for op in traced.trace.ops if op.function == "linear")
        return lambda take: [Fetch((op.module, op.function, op.site.chain), None, nth, take)]

    run = Run(Twice(), {"x": X})
    taken = check(run, wants)
    assert [t.nth for t in taken] == ([0, 1, 2] if nth is None else [nth])
    check(run, outputs_of_modules)


def test_an_output_that_is_written_to_later_is_kept_as_it_was_returned():
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            y.mul_(2)
            z = self.two(y)
            z[:, 0] = 0
            return z

    model = Writes()
    taken = check(Run(model, {"x": X}), outputs_of_modules)
    by_module = {t.op.module: t.outputs[0] for t in taken}
    with torch.no_grad():
        assert same_bits(by_module["one"], model.one(X))
        assert same_bits(by_module["two"], model.one(X) * 2)


def test_several_outputs_and_calls():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0]

    taken = check(Run(Pair(), [{"x": X}, {"x": X + 1}]), outputs_of_modules)
    assert {(t.call, t.op.output) for t in taken} == {(call, index) for call in (0, 1) for index in range(3)}


class Flips(nn.Module):
    """Writes to what a module has just returned, which moves its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        flipped = x.flip(1) * 1
        y = self.inner(x)
        y.copy_(flipped)
        return y * 2


class Encoder(nn.Module):
    """Its last layers are not looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Flips()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
            x.copy_(x.flip(1) * 1)
        return x


class Quiet(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def outputs_and_ops(traced: Traced) -> Wants:
    """Both at once, so that an output comes from a module that is looked into, or from one inside of it."""
    return lambda take: [*outputs_of_modules(traced)(take), *all_ops(traced)(take)]


def under_a_mode(model: nn.Module, inputs: Any) -> Tensor:
    with Quiet():
        return model(**inputs)


CALLS: dict[str, Callable[[Any, Any], Tensor] | None] = {
    "the model": None,
    "part of it": lambda model, inputs: model.layers[0](model.first(**inputs)),
    "what is looked into": lambda model, inputs: model.first(**inputs),
    "under a mode": under_a_mode,
}


@pytest.mark.parametrize("functions", [True, False], ids=["functions", "modules"])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_is_called_last_and_written_to(call: str, functions: bool):
    run = Run(Encoder(), {"x": X}, call=CALLS[call])
    check(run, outputs_of_modules, functions=functions)
    if functions:
        taken = check(run, outputs_and_ops)
        labels = {t.op.name: t.output_labels[0] for t in taken}
        assert labels["first.inner/output"] is not labels["first/output"] is not None


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_a_module_that_is_transformed_as_well(transform: str):
    class Transformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.GELU())

        def forward(self, x: Tensor) -> Tensor:
            z = x.repeat_interleave(torch.tensor([1, 1, 1, 1, 1]), 1).index_select(1, torch.arange(5).flip(0))
            if transform == "grad":
                a = torch.func.grad(lambda t: self.inner(t).sum())(z)
            elif transform == "jvp":
                a = torch.func.jvp(self.inner, (z,), (torch.ones_like(z),))[1]
            else:
                a = torch.vmap(self.inner)(z)
            return a + self.inner(z)

    run = Run(Transformed(), {"x": X})
    for wants in (outputs_of_modules, all_ops, outputs_and_ops):
        for taken in check(run, wants):
            assert taken.output_labels[0] is not None


def test_outputs_beside_a_watcher_are_handed_over_once():
    traced = trace_run(Run(Flips(), {"x": X}))
    found: list[CopiedCall] = []
    traced.again(outputs_of_modules(traced)(found.append), watcher=Store(1 << 20))
    assert [taken.op.name for taken in found] == ["inner/output"]


def test_a_module_made_in_a_forward_may_go_by_the_path_of_another():
    class Act(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class Makes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"Act": Act()})
            self.Act = Act()

        def forward(self, x: Tensor) -> Tensor:
            return Act()(self.Act(x))

    traced = trace_run(Run(Makes(), {"x": X}))
    found: list[CopiedCall] = []
    fetches = [Fetch(("Act", "output", NO_PLACE), None, None, found.append)]
    assert traced.recorder.unregistered == {"Act"}
    traced.again(fetches)
    assert len(found) == 2


@pytest.mark.parametrize(
    "key",
    [("", "add", "here"), ("absent", "linear", "here"), ("one", "input:input", NO_PLACE)],
    ids=["the model itself", "no module of it", "an input"],
)
def test_what_is_not_in_a_module_of_the_model_is_looked_for_everywhere(key: tuple[str, str, str]):
    traced = trace_run(Run(nn.Sequential(nn.Linear(8, 8)), {"input": X}))
    assert FetchTargets.of([Fetch(key, None, None, lambda _: None)], traced.recorder.tape.frames) is None


def test_one_of_several_passes_of_an_output_is_looked_for_everywhere():
    traced = trace_run(Run(nn.Sequential(nn.Linear(8, 8)), {"input": X}))
    frames = traced.recorder.tape.frames
    assert FetchTargets.of([Fetch(("0", "output", NO_PLACE), None, 0, lambda _: None)], frames) is None
    assert FetchTargets.of([Fetch(("0", "output", NO_PLACE), 0, None, lambda _: None)], frames) is not None
