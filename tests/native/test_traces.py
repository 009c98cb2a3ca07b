"""A trace that C has taken says what one says that Python has taken, and nothing is left behind."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import tracemalloc
from typing import Any

import pytest
import torch
from tests.capture.passages import assert_same, assert_same_labels, forget
from tests.capture.test_passages import MODELS, PROMPT
from tests.corpus import models
from tests.native.test_parts import called_with
from torch import Tensor, nn

from forkpoint import Run
from forkpoint.capture import sites, taps
from forkpoint.capture.marks import LEAVING
from forkpoint.capture.sites import NOWHERE
from forkpoint.explain.session import trace_run
from forkpoint.native import compiled
from forkpoint.native.choice import python_alone

pytestmark = pytest.mark.skipif(compiled is None, reason="not compiled")


def check(run: Run) -> None:
    forget()
    with python_alone():
        slow = [trace_run(run) for _ in range(2)]
    forget()
    fast = [trace_run(run) for _ in range(2)]
    for a, b in zip(slow, fast, strict=True):
        assert_same(a.trace, b.trace)
        assert_same_labels(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    build, inputs = MODELS[name]
    check(Run(build(), inputs))


class Calls(nn.Module):
    """Calls functions in every way that a tap has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.picky = nn.Linear(4, 4), Picky()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> dict[str, Any]:
        sizes = [1, 3]
        first, *_ = x.split(sizes, dim=1)
        sizes[0] = 2  # after the call: the tape is read later
        y = self.inner(x)[:, [0, 2], ..., 1:3]
        y = torch.cat([y, y * 2], dim=-1).clamp(min=torch.tensor(-1.0), max=1.0)
        y[:, 0] = 0
        y.add_(1)
        torch.mul(y, 2, out=y)
        y = nn.functional.relu(y, inplace=True)
        for value in (x, -x.abs()):
            try:
                y = y + self.picky(value).mean()
            except ValueError:
                y = y - 1
        y = y + torch.vmap(lambda row: row * 2)(y).sum()
        y = y + torch.func.grad(lambda z: (z**2).sum())(y)
        values, where = y.max(dim=-1)
        y = y.to(torch.float64).float()
        self.count += 1
        assert x.shape[0] == x.size(0) == len(x)
        return {"y": y, "where": (values, [where]), "none": None, "first": first}


class Picky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        if bool((x < 0).all()):
            raise ValueError("nothing is above zero")
        return y


def test_every_kind_of_call():
    check(Run(Calls(), {"x": torch.rand(1, 4, 4) + 0.1}))


class Unseen(nn.Module):
    """Where no tap sees into: what comes out has the tokens of what went in, which nobody else holds any longer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.second = Leaving()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(30):  # as long as a passage has to be
            x = x * 1.01
        return self.second(self.first(x)) + 0


class Leaving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy()[..., :8].copy())


def test_the_arguments_of_a_module_that_is_still_open_are_known():
    run = Run(nn.Sequential(*(Unseen() for _ in range(6))), {"input": torch.rand(1, 5, 8)})
    check(run)
    trace = trace_run(run).trace
    outputs = [e for e in trace.events if trace.ops[e.op].name.endswith("second/output")]
    assert [e.cells.kind for e in outputs if e.cells is not None] == ["rows"] * 6


def test_calls_inside_inference_mode_and_of_subclasses():
    class Own(Tensor):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                y = x * self.weight
                y = y + 1
            z = (x.as_subclass(Own) * 2).relu()
            return z.as_subclass(Tensor) + y.clone()

    check(Run(Model(), {"x": torch.rand(1, 4, 4)}))


def test_models_that_hold_scripted_modules():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    check(Run(nn.Sequential(nn.Linear(4, 4), scripted, nn.Linear(4, 4)), {"input": torch.rand(1, 3, 4)}))


@pytest.mark.parametrize("batch_first", [True, 1])
def test_fused_modules_are_not_looked_into(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first).eval()
    run = Run(nn.Sequential(layer), {"input": torch.rand(1, 3, 8)})
    check(run)
    assert len(trace_run(run).trace.rows) < 10


def test_a_model_with_weights_that_are_yet_to_come_can_run():
    outputs = Run(nn.Sequential(nn.LazyLinear(3)), {"input": torch.rand(1, 2, 4)}).execute()
    assert outputs[0].shape == (1, 2, 3)


def test_the_signature_of_a_module_is_what_it_was():
    found: list[Any] = []

    class Looks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            call = type(self).__call__
            found.append((inspect.signature(self), inspect.signature(self.__call__), call.__name__))
            return x + 1

    run = Run(Looks(), {"x": torch.rand(1, 2, 2)})
    run.execute()
    trace_run(run)
    assert found[0] == found[1]


def test_code_that_shares_a_place_in_a_table_is_looked_at_once():
    body = "def forward(self, x):\n    return x + 1\n"
    layers: list[nn.Module] = []
    for _ in range(2000):  # more than the table has room for
        scope: dict[str, Any] = {}
        exec(body, scope)
        layers.append(type("Layer", (nn.Module,), scope)())
    run = Run(nn.Sequential(*layers), {"input": torch.rand(1, 2, 2)})
    trace_run(run)
    before = len(sites._codes)
    trace_run(run)
    assert len(sites._codes) == before


def test_a_list_that_holds_itself():
    endless: list[Any] = []
    endless.append(endless)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            try:
                return x.new_tensor(endless)
            except (RecursionError, ValueError, TypeError, RuntimeError):
                return x * 2

    assert trace_run(Run(Model(), {"x": torch.rand(1, 2, 2)})).trace.rows
    with pytest.raises(RecursionError):
        called_with(endless)


def test_what_a_model_raises_comes_through_and_nothing_stays_in_place():
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Picky()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(-x) + torch.ones(3).view(7)

    call, code = nn.Module.__call__, nn.Module.__call__.__code__
    with pytest.raises(ValueError, match="nothing is above zero"):
        trace_run(Run(Failing(), {"x": torch.ones(1, 2, 2)}))
    with pytest.raises(RuntimeError, match="shape"):
        trace_run(Run(Failing(), {"x": -torch.ones(1, 2, 2)}))
    assert nn.Module.__call__ is call
    assert call.__code__ is code


def test_modules_that_another_thread_calls_are_not_seen():
    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: list[Tensor] = []
            thread = threading.Thread(target=lambda: found.append(self.inner(x)))
            thread.start()
            thread.join()
            return x + 1

    run = Run(Threaded(), {"x": torch.rand(1, 4, 4)})
    check(run)
    assert not [op for op in trace_run(run).trace.ops if op.module == "inner"]


def test_a_module_s_call_is_the_method_that_it_was():
    seen: list[Any] = []
    original = nn.Module.__call__

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((nn.Module.__dict__["__call__"], self.__call__))
            return nn.Module.__call__(nn.ReLU(), x) + self.other.__call__(x)

        other = nn.Tanh()

    code = original.__code__
    traced = trace_run(Run(Spy(), {"x": torch.rand(1, 2, 2)}))
    unbound, bound = seen[0]
    assert unbound is original
    assert bound.__func__ is original
    assert original.__code__ is code
    assert [op.function for op in traced.trace.ops if not op.is_boundary] == ["relu", "tanh", "add"]
    with pytest.raises(TypeError):
        nn.Module.__call__()


def growth(run: Run, model: nn.Module) -> tuple[list[int], int]:
    """By how many references to what lasts, and by how many objects, tracing grows with each run, once it is warm."""
    watched = [
        torch.float32, torch.float64, torch.strided, NOWHERE, LEAVING, Tensor, nn.Linear, torch.add,
        *model.parameters(), *model.modules(),
    ]  # fmt: skip

    def counts() -> tuple[list[int], int]:
        gc.collect()
        return [sys.getrefcount(value) for value in watched], len(gc.get_objects())

    forget()
    for _ in range(4):
        trace_run(run)
    references, objects = counts()
    for _ in range(5):
        trace_run(run)
    more, last = counts()
    return [b - a for a, b in zip(references, more, strict=True)], last - objects


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("name", ["llama", "calls"])
def test_tracing_leaves_no_references_behind(name):
    model = models.llama(num_hidden_layers=3) if name == "llama" else Calls()
    run = Run(model, PROMPT if name == "llama" else {"x": torch.rand(1, 4, 4) + 0.1})
    with python_alone():
        growth(run, model)  # what earlier tests have left goes meanwhile
        slow, slow_objects = growth(run, model)
    fast, fast_objects = growth(run, model)
    assert fast == slow  # what cannot be taken over is noted anew
    assert fast_objects < max(slow_objects, 0) + 60
    if name == "llama":
        assert not any(fast)


@pytest.mark.slow
def test_tracing_leaves_no_memory_behind():
    run = Run(models.llama(num_hidden_layers=3), PROMPT)
    for _ in range(5):
        trace_run(run)
    gc.collect()
    tracemalloc.start()
    try:
        trace_run(run)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(20):
            trace_run(run)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000


def test_the_c_is_what_is_used():
    assert issubclass(taps.Tap, compiled.Tap)
