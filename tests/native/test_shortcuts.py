"""What a tap is told of by shortcuts, against what torch tells it; and that all is as it was afterwards."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from tests.capture.passages import assert_same, assert_same_labels, forget
from tests.corpus import models
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkpoint import Run, compare, investigation
from forkpoint.capture import shortcuts, taps
from forkpoint.capture.mode import Tap
from forkpoint.capture.shortcuts import targets
from forkpoint.explain.session import Traced, trace_run
from forkpoint.native import compiled

pytestmark = [
    pytest.mark.skipif(compiled is None, reason="not compiled"),
    pytest.mark.skipif(bool(shortcuts.unchecked()), reason=f"none are made with {shortcuts.unchecked()}"),
]

Forward = Callable[[Tensor], Any]


class Calls(nn.Module):
    """A model that makes some calls."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.calls = forward
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16).view(4, 4))

    def forward(self, x: Tensor) -> Any:
        return self.calls(x)


def run_of(forward: Forward) -> Run:
    return Run(Calls(forward), {"x": torch.linspace(0.1, 2, 16).view(1, 4, 4)})


@contextmanager
def torchs_way() -> Generator[None]:
    with patch.object(taps, "shortcuts_to", lambda _: nullcontext()):
        yield


@contextmanager
def counted() -> Generator[Counter[str]]:
    """What a tap is told of torch's way, by the names of functions."""
    told: Counter[str] = Counter()
    original = Tap.__torch_function__

    class Counting(Tap):
        def __getattribute__(self, name: str) -> Any:
            if name == "__torch_function__":  # which the C gives out by itself
                return object.__getattribute__(self, "tell")
            return object.__getattribute__(self, name)

        def tell(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
            told[func.__name__] += 1
            return original(self, func, types, args, kwargs or {})

    with patch.object(taps, "Tap", Counting):
        yield told


def both_ways(run: Run) -> tuple[Traced, Counter[str]]:
    """A trace with shortcuts that are known, once it is held against one without; and what came torch's way."""
    forget()
    with torchs_way():
        slow = trace_run(run)
    forget()
    trace_run(run)
    fast = trace_run(run)
    with counted() as told:
        trace_run(run)
    assert_same(slow.trace, fast.trace)
    assert_same_labels(slow, fast)
    assert torch._C._len_torch_function_stack() == 0
    return fast, told


def functions_of(traced: Traced) -> list[str]:
    ops = [traced.trace.ops[event.op] for event in traced.trace.events]
    return [op.function for op in ops if not op.is_boundary]


def arithmetic(x: Tensor) -> Tensor:
    y = -x * 2 + 1 - 3 * x / 4 + (1 + x) @ x.transpose(1, 2)
    y = torch.cat([y, y.pow(2)], dim=-1)[..., : x.shape[-1]].to(torch.float64).float()
    y = torch.where(y > 0, y, y.mean(-1, keepdim=True)).view(x.shape).unsqueeze(0).contiguous()
    return F.linear(y, x[0]) if x.ndim == 3 and x.dtype is torch.float32 else y


def test_what_models_call_most_is_told_by_shortcuts():
    traced, told = both_ways(run_of(arithmetic))
    assert functions_of(traced) == [
        "neg", "mul", "add", "mul", "div", "sub", "add", "transpose", "matmul", "add", "pow", "cat", "getitem", "to", "float",
        "gt", "mean", "where", "view", "unsqueeze", "contiguous", "getitem", "linear",
    ]  # fmt: skip
    assert not told


def test_a_llama_hardly_makes_a_call_that_comes_torchs_way():
    ids = torch.arange(1, 7).view(1, 6)
    run = Run(models.llama(num_hidden_layers=2), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    _, told = both_ways(run)
    assert sum(told.values()) < 12
    assert not {"__get__", "mul", "linear", "cat", "__getitem__", "to", "view"} & told.keys()


KINDS = ["add", "mul", "to", "shape", "dtype", "cat", "linear"]


def test_functions_are_the_same_objects_while_a_run_lasts():
    names = {name: getattr(Tensor, name, None) or getattr(torch, name, None) or F.linear for name in KINDS}
    seen: dict[str, Any] = {}

    def forward(x: Tensor) -> Tensor:
        seen.update({k: getattr(Tensor, k, None) or getattr(torch, k, None) or F.linear for k in KINDS})
        return x + 1

    trace_run(run_of(forward))
    assert all(seen[name] is names[name] for name in KINDS)


def bits_of(target: Any) -> bytes:
    """What an object is in memory, but for how many hold it."""
    return ctypes.string_at(id(target), type(target).__basicsize__)[8:]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was_afterwards(fails):
    def forward(x: Tensor) -> Tensor:
        during.update({id(target): bits_of(target) for target in plain})
        return (x + 1).view(7) if fails else x[0] + 1

    trace_run(run_of(lambda x: x + 1))
    plain = [target for target in targets() if not isinstance(target, type)]
    during: dict[int, bytes] = {}
    before = {id(target): bits_of(target) for target in plain}
    with pytest.raises(RuntimeError, match="shape") if fails else nullcontext():
        trace_run(run_of(forward))
    assert {id(target): bits_of(target) for target in plain} == before
    changed = Counter(type(target).__name__ for target in plain if during[id(target)] != before[id(target)])
    assert changed.keys() == {"method_descriptor", "getset_descriptor", "builtin_function_or_method"}
    assert changed["method_descriptor"] > 100


def test_what_a_call_refuses_is_left_to_others():
    class Other:
        def __rmul__(self, other: Tensor) -> Tensor:
            return other + 10

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    def forward(x: Tensor) -> Tensor:
        for wrong in (
            lambda: x + "a",
            lambda: x.view(7),
            lambda: torch.cat([x, x], dim=9),
            lambda: x[0, 0, 0, 0],
        ):
            with pytest.raises((TypeError, RuntimeError, IndexError)):
                wrong()
        assert x.__mul__("a") is NotImplemented  # type: ignore[operator]
        assert x == Other()
        return x * Other() + 1  # type: ignore[operator, no-any-return]

    traced, told = both_ways(run_of(forward))
    assert functions_of(traced)[-2:] == ["add", "add"]
    assert told.keys() <= {"__eq__"}


class Length:
    """A number that takes ops to find out."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __index__(self) -> int:
        return int((self.x > 0).all(-1).sum())


def test_what_torch_calls_to_read_arguments_is_recorded_as_ever():
    def forward(x: Tensor) -> Tensor:
        y = x.view(Length(x), -1) + x.narrow(1, 0, Length(x))
        return y[:, Length(x) :]

    traced, told = both_ways(run_of(forward))
    assert "all" in functions_of(traced)
    assert {"view", "narrow"} <= told.keys()


def test_writes_are_recorded_as_writes():
    def forward(x: Tensor) -> Tensor:
        y = x * 2
        torch.add(y, 1, out=y)
        y = F.relu(y, inplace=True)
        y[:, 0] = 0
        y.mul_(3)
        return torch.exp(y, out=None) + y

    both_ways(run_of(forward))


class Own(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_a_mode_of_the_model_s_own_sees_what_it_would_see():
    seen: list[list[Any]] = []

    def forward(x: Tensor) -> Tensor:
        with Own() as own:
            y = arithmetic(x)
        seen.append(own.seen)
        return y + 1

    both_ways(run_of(forward))
    Run(Calls(forward), {"x": torch.linspace(0.1, 2, 16).view(1, 4, 4)}).execute()
    assert all(each == seen[0] for each in seen)
    assert len(seen[0]) > 20


def test_subclasses_of_tensors_see_what_they_would_see():
    seen: list[list[Any]] = []

    class Watching(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func.__name__ != "__get__" and func not in (
                Tensor.data_ptr,
                Tensor.untyped_storage,
            ):  # as a trace looks at tensors
                seen[-1].append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    def forward(x: Tensor) -> Tensor:
        seen.append([])
        y = (x.as_subclass(Watching) * 2)[0].to(torch.float64) + x.double()
        return y.as_subclass(Tensor).float() * x

    run = run_of(forward)
    both_ways(run)
    run.execute()
    assert len(seen) == 5
    assert all(each == [Tensor.mul, Tensor.__getitem__, Tensor.to, Tensor.add] for each in seen)


def test_where_modes_are_switched_off_nothing_is_told():
    def forward(x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            y = x * 2 + 3
        with torch._C.DisableTorchFunctionSubclass():  # which leaves modes on
            z = x - 1
        return z / y

    traced, _ = both_ways(run_of(forward))
    assert functions_of(traced) == ["sub", "div"]


def test_calls_of_other_threads_are_not_told():
    def forward(x: Tensor) -> Tensor:
        found: list[Tensor] = []

        def others() -> None:
            with Own() as own:
                y = torch.cat([x * 2, x[..., :1]], dim=-1)
            found.append(y + len(own.seen) * x.new_zeros(()))

        thread = threading.Thread(target=others)
        thread.start()
        thread.join()
        return found[0][..., :4] + x

    traced, _ = both_ways(run_of(forward))
    assert functions_of(traced) == ["getitem", "add"]


def test_a_trace_inside_a_run_leaves_the_outer_one_its_shortcuts():
    inner = run_of(arithmetic)
    alone = functions_of(trace_run(inner))
    found: list[list[str]] = []

    def forward(x: Tensor) -> Tensor:
        y = torch.exp(x)
        found.append(functions_of(trace_run(inner)))
        return torch.tanh(y)

    outer = run_of(forward)
    trace_run(outer)
    with counted() as told:
        traced = trace_run(outer)
    assert found == [alone, alone]
    assert functions_of(traced)[0] == "exp"
    assert functions_of(traced)[-1] == "tanh"
    assert "matmul" in told  # of the inner one, which has none
    assert not {"exp", "tanh"} & told.keys()


def test_inside_transforms_nothing_is_recorded():
    def forward(x: Tensor) -> Tensor:
        y = torch.vmap(lambda row: (row * 2)[..., :2].to(torch.float64).float())(x)
        return y + torch.func.grad(lambda z: (z * z).sum())(x)[..., :2]

    traced, _ = both_ways(run_of(forward))
    assert functions_of(traced) == ["getitem", "add"]


def test_functions_that_hold_others_by_name_or_in_parts():
    from functools import partial

    add, double = torch.add, partial(torch.mul, other=2)

    def forward(x: Tensor) -> Tensor:
        method = x.to
        y = add(double(x), method(torch.float32))
        return sum([y, x, torch.stack([y, x]).sum(0)], start=torch.zeros(())) + torch.Tensor.mul(y, x)

    traced, _ = both_ways(run_of(forward))
    assert functions_of(traced)[:3] == ["mul", "to", "add"]


STACK = (
    torch._C._is_torch_function_mode_enabled,
    torch._C._pop_torch_function_stack,
    torch._C._push_on_torch_function_stack,
)


def test_a_larger_torch_has_no_more_than_there_is_room_for():
    """In a process of its own, as what is shortened stays so for good."""
    program = """
import gc, importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("compiled", sys.argv[1])
compiled = importlib.util.module_from_spec(importlib.util.spec_from_loader("compiled", loader))
stack = gc.isenabled, gc.disable, len
methods = [[].append for _ in range(600)]
print(compiled.shorten(tuple(methods[:100]), *stack), compiled.shorten(tuple(methods), *stack))
print(compiled.shorten(tuple(methods), *stack))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, compiled.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["100", "512", "512"]


@pytest.mark.parametrize("error", [ValueError, TypeError, SystemError, AttributeError])
def test_what_torch_has_instead_fails_no_comparison(error: type[Exception]):
    with patch.object(shortcuts, "targets", side_effect=error):
        assert not shortcuts._made.__wrapped__()


def test_another_torch_has_none():
    for names in (("absent",) * 3, tuple(reversed(shortcuts._STACK))):
        with patch.object(shortcuts, "_STACK", names):
            assert not shortcuts._made.__wrapped__()
    assert shortcuts._made.__wrapped__()


def test_wrong_arguments():
    known = compiled.shorten((), *STACK)
    append = list[int]().append  # can have one
    assert compiled.shorten((object(), 3, append, Calls, int), *STACK) == known + 1
    assert compiled.shorten((append,), *STACK) == known + 1
    with pytest.raises(TypeError, match="other arguments"):
        compiled.shorten((), *reversed(STACK))
    with pytest.raises(TypeError):
        compiled.shorten([], *STACK)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not to a int"):
        compiled.take_shortcuts(3)  # type: ignore[arg-type]
    compiled.leave_shortcuts(3)  # type: ignore[arg-type] # to which none are taken


def test_a_class_that_takes_elements_in_python_has_no_shortcut():
    class Doubling(Tensor):
        def __getitem__(self, index: Any) -> Tensor:  # type: ignore[override]
            return super().__getitem__(index) * 2

    known = compiled.shorten((), *STACK)
    assert compiled.shorten((Doubling,), *STACK) == known
    assert compiled.shorten((type("AsEver", (Tensor,), {}),), *STACK) == known + 1


class Interrupted(ModuleType):
    """The C, where somebody presses Ctrl-C right after shortcuts are taken."""

    def __getattr__(self, name: str) -> Any:
        return getattr(compiled, name)

    def take_shortcuts(self, tap: Tap) -> None:
        compiled.take_shortcuts(tap)
        raise KeyboardInterrupt


def test_an_interrupt_leaves_nothing_behind():
    run = run_of(lambda x: x + 1)
    trace_run(run)
    before = bits_of(Tensor.__add__)
    with patch.object(shortcuts, "compiled", Interrupted("interrupted")), pytest.raises(KeyboardInterrupt):
        trace_run(run)
    assert bits_of(Tensor.__add__) == before
    assert torch._C._len_torch_function_stack() == 0
    assert not both_ways(run)[1]


def test_a_call_that_torch_refuses_ends_nothing():
    refused: list[str] = []

    def forward(x: Tensor) -> Tensor:
        y = (x * 2).add_(1)
        try:
            y @ "a"  # type: ignore[operator]
        except TypeError:
            refused.append("@")
        with (
            torch._C.DisableTorchFunction()
        ):  # a value that is changed right after a function returned is that function's
            y.mul_(3)
        return y + x @ x

    traced, _ = both_ways(run_of(forward))
    assert not traced.trace.skipped
    assert len(refused) == 4


# ---------------------------------------------------------------------- the fence


def made(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether shortcuts are taken while a run is traced."""
    asked: list[bool] = []
    monkeypatch.setattr(shortcuts, "_made", lambda: bool(asked.append(True)))
    trace_run(run_of(arithmetic))
    return bool(asked)


def test_shortcuts_are_taken_with_versions_on_the_list(monkeypatch):
    assert shortcuts.note_of_shortcuts() == ""
    assert made(monkeypatch)


def test_the_environment_leaves_them_out_and_nothing_is_said(monkeypatch):
    monkeypatch.setenv("FORKPOINT_SHORTCUTS", "0")
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    assert not made(monkeypatch)
    assert shortcuts.note_of_shortcuts() == ""


@pytest.mark.parametrize(
    ("owner", "name", "value", "what"),
    [
        (torch, "__version__", "9.9.0+cpu", "torch 9.9"),
        (sys, "version_info", (3, 99, 0), "cpython 3.99"),
        (sys, "_is_gil_enabled", lambda: False, "Python without a global lock"),
    ],
)
def test_what_was_not_checked_takes_torchs_way_and_the_report_says_so_once(
    monkeypatch, owner, name, value, what
):
    run = run_of(arithmetic)
    fast = trace_run(run)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, value, raising=False)
        assert shortcuts.unchecked() == what
        patched.setattr(shortcuts, "_made", lambda: pytest.fail("shortcuts were made"))
        forget()
        slow = trace_run(run)
        said = shortcuts.note_of_shortcuts()
    assert_same(slow.trace, fast.trace)
    assert said.endswith(f"not checked with {what}")
    monkeypatch.setattr(investigation, "note_of_shortcuts", lambda: said)
    notes = compare(run, run).notes
    assert list(notes).count(said) == 1
