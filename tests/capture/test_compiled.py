"""Functions that are compiled, in a model that is traced: Dynamo compiles nothing of what looks on, nor because of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.native.choice import python_alone

pytestmark = pytest.mark.filterwarnings("ignore")

AS_PYTHON = "compiled functions were traced as the Python that they were made from"
MODULES_ALONE = "looking at single functions changes this model's bits; only its modules were watched"


@pytest.fixture(params=[True, False], ids=["C", "Python"], autouse=True)
def _both(request: pytest.FixtureRequest) -> Generator[None]:
    torch.compiler.reset()
    if request.param:
        yield
    else:
        with python_alone():
            yield
    torch.compiler.reset()


class Counting:
    """A backend that counts what it compiles, and computes something else if that is wanted."""

    def __init__(self, times: float = 1.0) -> None:
        self.times, self.compiled = times, 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.compiled += 1
        return lambda *args: [
            value * self.times if torch.is_tensor(value) and value.is_floating_point() else value
            for value in graph(*args)
        ]


class Compiled(nn.Module):
    """A compiled function, one that Dynamo breaks in two, a compiled layer, and a compiled function that calls a layer."""

    def __init__(self, backend: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.inner = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.layer = torch.compile(nn.Linear(8, 8), backend=backend)
        self.scaled = torch.compile(lambda x: x * torch.sigmoid(1.7 * x) + 1, backend=backend, **options)
        self.through = torch.compile(self._through, backend=backend)
        self.broken = torch.compile(self._broken, backend=backend)
        self.by_length = 0.0

    def _through(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2

    def _broken(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        torch._dynamo.graph_break()
        return y * 2 + x

    def forward(self, x: Tensor) -> Tensor:
        y = self.broken(self.scaled(self.first(x)))
        return self.last(self.layer(y) * (1 + self.by_length * x.shape[1])) + self.through(y)


def compared(model: nn.Module, more: int = 0, *, probes: bool = True) -> fp.Result:
    x = torch.randn(1, 4 + more, 8, generator=torch.Generator().manual_seed(0))
    runs = [
        fp.Run(model, {"x": x[:, :n]}, layout=fp.Layout.from_mask((torch.arange(n) < 4).long()[None]))
        for n in (4, 4 + more)
    ]
    return fp.compare(*runs, probes=probes)


@pytest.mark.parametrize("options", [{}, {"fullgraph": True}, {"dynamic": True}], ids=str)
def test_compiled_functions_are_seen_and_it_is_said(options: dict[str, Any]):
    backend = Counting()
    model = Compiled(backend, **options)
    x = torch.randn(1, 4, 8)
    with torch.no_grad():
        before = model(x)
    compiled = backend.compiled
    for _ in range(2):
        result = compared(model)
        assert result.identical
        assert AS_PYTHON in result.a.notes
        assert "not looked into, since that would change its bits: layer" in result.a.notes
        rows = [row.op for row in result.ops]
        assert rows.count("(model)/sigmoid") == rows.count("(model)/relu") == rows.count("inner/linear") == 1
        assert {row.status for row in result.ops} == {"equal"}
    with torch.no_grad():
        assert torch.equal(model(x), before)
    assert backend.compiled == compiled


def test_a_difference_in_a_model_with_compiled_functions():
    model = Compiled(Counting())
    model.by_length = 0.25
    result = compared(model, 3)
    assert result.verdict.kind == "semantic"
    assert result.first is not None
    assert result.first.op == "(model)/mul"


def test_compiled_functions_with_bits_of_their_own_run_as_they_are():
    backend = Counting(1.5)
    model = Compiled(backend)
    x = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(x)
    compiled = backend.compiled
    outputs: list[Tensor] = []

    def call(model: nn.Module, inputs: Any) -> Tensor:
        outputs.append(model(**inputs))
        return outputs[-1]

    run = fp.Run(model, {"x": x}, call=call)
    result = fp.compare(run, run)
    assert result.identical
    assert MODULES_ALONE in result.a.notes
    assert AS_PYTHON not in result.a.notes
    assert torch.equal(outputs[-1], before)
    assert sum(torch.equal(output, before) for output in outputs) >= 4
    assert backend.compiled == compiled


def test_another_thread_runs_what_it_has_compiled():
    backend = Counting(1.5)
    elsewhere = torch.compile(lambda x: x * 2 + 1, backend=backend)
    expected = elsewhere(torch.ones(3))
    found: list[Tensor] = []

    class Threaded(Compiled):
        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: found.append(elsewhere(torch.ones(3))))
            thread.start()
            thread.join()
            return super().forward(x)

    model = Threaded(Counting())
    model.by_length = 0.25
    assert compared(model, 3).verdict.kind == "semantic"
    assert len(found) >= 8
    assert all(torch.equal(value, expected) for value in found)


def test_nothing_is_left_changed():
    model = Compiled(Counting())
    compared(model)  # Dynamo is there from here on
    dynamo: Any = torch._dynamo.eval_frame
    before = dynamo._callback_from_stance, dynamo._stance
    model.by_length = 0.25
    compared(model, 3)
    assert (dynamo._callback_from_stance, dynamo._stance) == before
