"""The taps: in place while a call runs, on its thread, and gone whatever happens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from tests.capture.tracing import Traced
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkpoint import Layout, Run
from forkpoint.capture import hooks
from forkpoint.capture.recorder import CopiedCall, Fetch, Recorder
from forkpoint.capture.taps import Observation, is_opaque

X = torch.randn(1, 3, 4)


@pytest.fixture(autouse=True)
def nothing_left_behind():
    call, code = nn.Module.__call__, nn.Module.__call__.__code__
    depth = torch._C._len_torch_function_stack()
    yield
    assert nn.Module.__call__ is call
    assert call.__code__ is code
    assert torch._C._len_torch_function_stack() == depth


def names(traced: Traced) -> list[str]:
    return [op.name for op, _ in traced.events if not op.is_boundary]


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor, how: str = "") -> Tensor:
        hidden = self.inner(x)
        if how == "python":
            raise RuntimeError("deliberate")
        if how == "torch":
            return hidden @ hidden
        if how == "interrupt":
            raise KeyboardInterrupt
        return hidden


@pytest.mark.parametrize(("how", "error"), [("python", RuntimeError), ("torch", RuntimeError), ("interrupt", KeyboardInterrupt)])  # fmt: skip
def test_an_error_of_the_model_goes_through_and_leaves_nothing(how, error):
    model = Raising()
    recorder = Recorder(Layout.from_mask(torch.ones(1, 3)), model)
    with pytest.raises(error):
        Run(model, {"x": X, "how": how}).execute(Observation(recorder))
    assert [frame.path for frame in recorder.tape.stack] == [""]


def test_a_module_that_raises_inside_one_that_goes_on():
    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Raising()

        def forward(self, x: Tensor) -> Tensor:
            try:
                self.inner(x, "python")
            except RuntimeError:
                x = x + 1
            return x * 2

    model = Trying()
    traced = Traced(model, {"x": X}, model=model)
    assert names(traced) == ["inner.inner/linear", "(model)/add", "(model)/mul"]


def test_other_threads_are_not_watched():
    seen = {}
    layer = nn.Linear(4, 4)

    def work() -> None:
        seen["modes"] = torch._C._len_torch_function_stack()
        seen["value"] = layer(X)

    def program(x: Tensor) -> Tensor:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return x * 2

    traced = Traced(program, {"x": X})
    assert names(traced) == ["(model)/mul"]
    assert seen["modes"] == 0
    assert torch.equal(seen["value"], layer(X))


def test_a_mode_of_the_model_s_own_sees_what_it_sees_without_taps():
    class Names(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[str] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    found: list[list[str]] = []

    def program(x: Tensor) -> Tensor:
        with Names() as mode:
            y = (x * 2).softmax(-1)
        found.append(mode.seen)
        return y

    program(X)
    traced = Traced(program, {"x": X})
    assert found[0] == found[1]
    assert names(traced) == ["(model)/mul", "(model)/softmax"]


def test_a_call_goes_on_if_the_model_calls_itself_again():
    class Twice(nn.Module):
        def forward(self, x: Tensor, again: bool = True) -> Tensor:
            return self(x + 1, again=False) if again else x * 2

    model = Twice()
    assert names(Traced(model, {"x": X}, model=model)) == ["(model)/add", "(model)/mul"]


# --- Modules that are not looked into ------------------------------------------------------------------------------


def encoder(**options: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


@pytest.mark.parametrize(
    ("module", "opaque"),
    [
        (lambda: nn.MultiheadAttention(4, 2, batch_first=True).eval(), True),
        (lambda: nn.MultiheadAttention(4, 2, batch_first=True).train(), False),
        (lambda: encoder().eval(), True),
        (lambda: encoder().train(), False),
        (lambda: encoder().eval().layers[0], True),
        (lambda: torch.compile(nn.Linear(4, 4), backend="eager"), True),
        (lambda: nn.Linear(4, 4), False),
    ],
)
def test_modules_with_a_fast_path_of_their_own(module, opaque):
    assert is_opaque(module()) == opaque


def test_a_module_that_is_not_looked_into_computes_what_it_computes_alone():
    model = encoder(dropout=0.0).eval()
    mask = torch.tensor([[False, False, True]])
    with torch.no_grad():
        alone = model(X, src_key_padding_mask=mask)
    recorder = Recorder(Layout.from_mask(~mask), model)
    observation = Observation(recorder)
    (output,) = Run(model, {"src": X, "src_key_padding_mask": mask}).execute(observation)
    assert torch.equal(output, alone)
    assert observation.opaque == [""]
    assert [op.function for op in recorder.finish().ops] == [
        "input:src",
        "input:src_key_padding_mask",
        "output",
    ]


def test_looking_inside_shows_the_functions():
    model = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    recorder = Recorder(Layout.from_mask(torch.ones(1, 3)), model)
    given = {"query": X, "key": X, "value": X}
    Run(model, given).execute(Observation(recorder, inside=True))
    found = [op.function for op in recorder.finish().ops]
    assert "linear" in found
    assert "baddbmm" in found or "bmm" in found


def test_modules_alone():
    model = Raising()
    recorder = Recorder(Layout.from_mask(torch.ones(1, 3)), model)
    Run(model, {"x": X}).execute(Observation(recorder, functions=False))
    assert [op.name for op in recorder.finish().ops] == [
        "(model)/input:x", "inner/input:input", "inner/output", "(model)/output",
    ]  # fmt: skip


# --- Fetching ---------------------------------------------------------------------------------------------------------


def fetch(function, wanted: str, nth: int | None = None, model: nn.Module | None = None) -> list[CopiedCall]:
    first = Traced(function, {"x": X}, model=model)
    op = next(op for op, _ in first.events if op.name == wanted)
    found: list[CopiedCall] = []
    recorder = Recorder(
        Layout.read([{"x": X}]),
        model,
        (Fetch((op.module, op.function, op.site.chain), None, nth, found.append),),
    )
    Run(model, {"x": X}, call=lambda _, given: function(**given)).execute(Observation(recorder))
    return found


def test_a_fetched_call_has_its_values_as_they_were():
    def program(x: Tensor) -> Tensor:
        y = x * 2
        for _ in range(2):
            y.add_(1)
        return y

    passes = fetch(program, "(model)/add_")
    assert [t.nth for t in passes] == [0, 1]
    assert torch.equal(passes[0].args[0], X * 2)
    assert torch.equal(passes[0].outputs[0], X * 2 + 1)
    assert torch.equal(passes[1].args[0], X * 2 + 1)
    (second,) = fetch(program, "(model)/add_", 1)
    assert torch.equal(second.outputs[0], X * 2 + 1 + 1)


@pytest.mark.parametrize("large", [False, True])
def test_parameters_of_a_fetched_call_have_their_names_and_large_ones_are_not_copied(large, monkeypatch):
    model = Raising()
    monkeypatch.setattr(hooks, "MOST_COPIED", model.inner.weight.nbytes - large)
    (taken,) = fetch(model, "inner/linear", model=model)
    weight = taken.args[1]
    assert (weight.data_ptr() == model.inner.weight.data_ptr()) is large
    assert torch.equal(weight, model.inner.weight)
    assert taken.owned[id(weight)] == "inner.weight"
    assert id(taken.args[0]) not in taken.owned


def test_a_fetched_copy_has_the_strides_of_the_value():
    def program(x: Tensor) -> Tensor:
        return x.mT[:, None].expand(1, 2, 4, 3) * 1

    (taken,) = fetch(program, "(model)/mul")
    assert taken.args[0].stride() == X.mT[:, None].expand(1, 2, 4, 3).stride()
    assert torch.equal(taken.args[0], X.mT[:, None].expand(1, 2, 4, 3))
