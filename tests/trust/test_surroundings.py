"""Whatever is in force where a comparison is asked for, it says what it says elsewhere, and is in force afterwards, too."""

from __future__ import annotations

import cProfile
import gc
import os
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.trust.wrapping import Between
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode

import forkpoint as fp
from forkpoint.native.choice import python_alone


@pytest.fixture(params=[True, False], ids=["C", "Python"], autouse=True)
def _both(request: pytest.FixtureRequest) -> Generator[None]:
    if request.param:
        yield
    else:
        with python_alone():
            yield


class Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def set_trace() -> Generator[None]:
    """As coverage and debuggers do."""
    seen: set[str] = set()

    def trace(frame: Any, event: str, _: Any) -> Any:
        seen.add(frame.f_code.co_name)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
    assert "compare" in seen
    assert "forward" in seen


@contextmanager
def set_profile() -> Generator[None]:
    calls: list[str] = []
    sys.setprofile(lambda frame, event, _: calls.append(event))
    try:
        yield
    finally:
        sys.setprofile(None)
    assert calls


@contextmanager
def monitoring() -> Generator[None]:
    """As coverage does from Python 3.12 on."""
    monitor: Any = getattr(sys, "monitoring", None)
    if monitor is None:
        pytest.skip("Python 3.12 has it")
    lines: list[int] = []
    monitor.use_tool_id(monitor.COVERAGE_ID, "test")
    monitor.register_callback(monitor.COVERAGE_ID, monitor.events.LINE, lambda _, line: lines.append(line))
    monitor.set_events(monitor.COVERAGE_ID, monitor.events.LINE)
    try:
        yield
    finally:
        monitor.set_events(monitor.COVERAGE_ID, 0)
        monitor.free_tool_id(monitor.COVERAGE_ID)
    assert lines


@contextmanager
def allocations() -> Generator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@contextmanager
def profiled() -> Generator[None]:
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()


@contextmanager
def no_collection() -> Generator[None]:
    gc.disable()
    try:
        yield
        assert not gc.isenabled()
    finally:
        gc.enable()


@contextmanager
def errors_for_warnings() -> Generator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


AROUND: dict[str, Callable[[], Any]] = {
    "function mode": Functions,
    "dispatch mode": Dispatched,
    "counting flops": lambda: FlopCounterMode(display=False),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "anomalies": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "torch's profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
    "meta device": lambda: torch.device("meta"),
    "forked random state": torch.random.fork_rng,
    "settrace": set_trace,
    "setprofile": set_profile,
    "sys.monitoring": monitoring,
    "tracemalloc": allocations,
    "cProfile": profiled,
    "no collection": no_collection,
    "warnings are errors": errors_for_warnings,
    "no functions": torch._C.DisableTorchFunctionSubclass,
}


def in_force() -> tuple[Any, ...]:
    return (
        list(map(id, _get_current_function_mode_stack())),
        list(map(id, _get_current_dispatch_mode_stack())),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_anomaly_enabled(),
        torch.get_default_dtype(),
    )


def runs_on(length: int) -> fp.Run:
    x = torch.randn(1, 7, 8, device="cpu", generator=torch.Generator("cpu").manual_seed(0))
    mask = (torch.arange(length, device="cpu") < 4).long()[None]
    return fp.Run(MODEL, {"x": x[:, :length]}, layout=fp.Layout.from_mask(mask))


MODEL = Between(torch.tanh, by_length=0.25)


def said() -> tuple[Any, ...]:
    result = fp.compare(runs_on(4), runs_on(7))
    rows = [(row.op, row.status, row.compared, row.differing) for row in result.ops]
    assert result.first is not None
    assert result.origin is not None
    return result.verdict.kind, result.first.op, result.origin.op, rows


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", AROUND)
def test_the_answer_is_the_same(name: str):
    expected = said()
    assert expected[:3] == ("semantic", "(model)/mul", "(model)/mul")
    with AROUND[name]():
        before = in_force()
        found = said()
        assert in_force() == before
    if name == "autocast":  # other numbers, in another dtype, may be equal where these are not
        found, expected = found[:3], expected[:3]
    assert found == expected
    assert said()[:3] == expected[:3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_model_that_forks():
    """The child computes, and leaves; the parent's trace is of the parent alone."""
    expected = said()

    def forks(y: Tensor) -> Tensor:
        child = os.fork()
        if not child:
            try:
                good = torch.tanh(y).shape == y.shape
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)
        assert status == 0
        return torch.tanh(y)

    does, MODEL.does = MODEL.does, forks
    try:
        assert said()[:3] == expected[:3]
    finally:
        MODEL.does = does
