"""The native probe: what ran against its own operations in float64."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.corpus.cases_kernels import Gate
from tests.corpus.modules import Tagger, seeded
from tests.joined import session
from tests.plain import ids
from torch import nn

import forkpoint as fp
from forkpoint.explain.results import compare_results
from forkpoint.probes.native import BEYOND, _unit, native
from forkpoint.probes.precision import precision
from forkpoint.runs.run import Run


def asked(a: dict[str, Any], b: dict[str, Any]) -> Any:
    runs = [Run(seeded(Tagger, Gate(**kernel)), {"input_ids": ids(1)}) for kernel in (a, b)]
    both = session(*runs)
    exact = precision(both)
    assert exact.vanishes
    return native(both, exact, compare_results(both))


def test_rounding_is_within_rounding():
    assert asked({"own": False}, {}) is None
    assert asked({"own": False}, {"off": 1 + 2.0**-22}) is None


@pytest.mark.parametrize(
    ("a", "b", "run"), [({"own": False}, {"off": 1.01}, "B"), ({"off": 1.01}, {"own": False}, "A")]
)
def test_the_run_that_is_off_is_named(a, b, run):
    found = asked(a, b)
    assert (found.runs, found.result.name, found.result.outcome) == ((run,), "native", "one")
    assert found.result.text.startswith(f"run {run} is ")
    assert found.result.text.endswith(
        " times as far from its own operations in float64 as rounding makes: what ran computes something else"
    )
    assert found.result.figure > BEYOND


def test_two_runs_that_are_both_off_are_not_told():
    found = asked({"off": 1.01}, {"off": 1.02})
    assert (found.runs, found.result.outcome) == (("A", "B"), "both")


@pytest.mark.parametrize(
    ("precision", "unit"), [("highest", 2.0**-23), ("high", 2.0**-10), ("medium", 2.0**-7)]
)
def test_float32_on_a_gpu_may_be_coarser_than_it_says(precision, unit, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    rows = [(None, 0, SimpleNamespace(dtype="float32", floating=True), 0, 0)]

    def traced(device: str) -> Any:
        run = SimpleNamespace(devices={torch.device(device)})
        return SimpleNamespace(trace=SimpleNamespace(rows=rows), run=run, dtypes_inside=frozenset())

    assert _unit(traced("cuda")) == unit
    assert _unit(traced("cpu")) == 2.0**-23


@pytest.fixture
def _medium() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_medium")
def test_float32_on_a_cpu_may_be_bfloat16():
    rows = [(None, 0, SimpleNamespace(dtype="float32", floating=True), 0, 0)]
    run = SimpleNamespace(devices={torch.device("cpu")})
    traced: Any = SimpleNamespace(trace=SimpleNamespace(rows=rows), run=run, dtypes_inside=frozenset())
    assert _unit(traced) == 2.0**-7


@pytest.mark.usefixtures("_medium")
def test_one_row_that_a_cpu_multiplies_in_float32_and_several_in_bfloat16_differ_by_rounding():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256)).eval()
    x = torch.randn(2, 1, 256, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if torch.equal(model(x)[:1], model(x[:1])):
            pytest.skip("this processor multiplies both in float32")
    result = fp.compare(fp.Run(model, {"input": x[:1]}), fp.Run(model, {"input": x}))
    assert result.verdict.kind == "rounding"
