"""Comparisons in several threads at once, one within another, and in a process that was forked meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.native.choice import python_alone


@pytest.fixture(params=[True, False], ids=["C", "Python"], autouse=True)
def _both(request: pytest.FixtureRequest) -> Generator[None]:
    if request.param:
        yield
    else:
        with python_alone():
            yield


class Layers(nn.Module):
    def __init__(self, depth: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x)) * (1 + x.shape[1])
        return x


def compared(model: nn.Module, inputs: Tensor) -> tuple[Any, ...]:
    longer = torch.cat([inputs, inputs[:, :2]], 1)
    layouts = [
        fp.Layout.from_mask((torch.arange(x.shape[1]) < inputs.shape[1]).long()[None])
        for x in (inputs, longer)
    ]
    runs = [
        fp.Run(model, {"x": x}, layout=layout) for x, layout in zip((inputs, longer), layouts, strict=True)
    ]
    result = fp.compare(*runs)
    rows = [(row.op, row.status, row.compared, row.differing) for row in result.ops]
    return result.verdict.kind, result.first and result.first.op, rows


def test_comparisons_in_several_threads_say_what_each_says_alone():
    models = [Layers(2 + n, n) for n in range(3)]
    inputs = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))
    code = nn.Module.__call__.__code__
    alone = [compared(model, inputs) for model in models]
    together = [*models, *models]
    begin = threading.Barrier(len(together))

    def one(model: nn.Module) -> tuple[Any, ...]:
        begin.wait()
        return compared(model, inputs)

    with ThreadPoolExecutor(len(together)) as pool:
        assert list(pool.map(one, together)) == alone * 2
    assert nn.Module.__call__.__code__ is code


def test_a_thread_that_uses_models_meanwhile_is_not_seen():
    model, other = Layers(3, 0), Layers(5, 1)
    inputs = torch.randn(1, 4, 8)
    expected, before = compared(model, inputs), other(inputs)
    stop, same = threading.Event(), []

    def work() -> None:
        while not stop.is_set():
            same.append(torch.equal(other(inputs), before))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = [compared(model, inputs) for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    assert found == [expected] * 3
    assert same
    assert all(same)


def test_one_within_another():
    inner, inputs = Layers(2, 1), torch.randn(1, 3, 8)
    expected = compared(inner, inputs)
    found: list[Any] = []

    class Outer(Layers):
        def forward(self, x: Tensor) -> Tensor:
            if len(found) < 3:
                found.append(compared(inner, inputs))
            return super().forward(x)

    code = nn.Module.__call__.__code__
    alone = compared(Layers(2, 0), inputs)
    assert compared(Outer(2, 0), inputs)[1] == alone[1]
    assert found == [expected] * 3
    assert nn.Module.__call__.__code__ is code


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_by_another_thread_meanwhile_can_compare():
    model, inputs = Layers(2, 0), torch.randn(1, 3, 8)
    expected = compared(model, inputs)
    inside, forked = threading.Event(), threading.Event()

    class Waits(Layers):
        def forward(self, x: Tensor) -> Tensor:
            inside.set()
            forked.wait(30)
            return super().forward(x)

    thread = threading.Thread(target=compared, args=(Waits(2, 0), inputs))
    thread.start()
    inside.wait(30)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(compared(model, inputs) == expected))
    try:
        child.start()
        assert receive.poll(60)
        assert receive.recv()
    finally:
        forked.set()
        thread.join()
        child.terminate()
        child.join()
