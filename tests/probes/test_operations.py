"""The operations probe: what float64 is worth where a model takes another path in it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, ids
from torch import Tensor

from forkpoint.explain.results import compare_results
from forkpoint.probes import operations as probe
from forkpoint.probes.inputs import inputs
from forkpoint.probes.operations import operations
from forkpoint.probes.precision import precision
from forkpoint.promotion import Promotion
from forkpoint.result import VerdictKind
from forkpoint.runs.run import Run


class Path(Model):
    """Takes a path by its dtype."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        narrow = hidden.dtype == torch.bfloat16
        if self.path == "sign" and narrow:
            return -hidden
        if self.path == "number":
            return hidden * (-1.0 if narrow else 1.0)
        if self.path == "clamp" and narrow:
            return hidden.clamp(-1e4, 1e4)
        if self.path == "mixed" and narrow:  # a path that is not taken where all tensors say one dtype
            wide = hidden.float()
            return -wide.to(hidden.dtype) if wide.dtype == torch.float32 else hidden
        return hidden


def asked(path: str, other: str | None = None) -> Any:
    model = Path(path).eval()
    narrow = copy.deepcopy(model).bfloat16()
    narrow.path = other or path
    both = session(Run(model, {"input_ids": ids(1)}), Run(narrow, {"input_ids": ids(1)}))
    weights = inputs(both).rounded
    exact = precision(both, weights)
    assert exact.vanishes
    return operations(both, exact, compare_results(both), weights)


def test_the_same_operations_are_nothing_to_tell(monkeypatch):
    def refuse(*_: Any) -> None:
        raise AssertionError("a run was made once more")

    monkeypatch.setattr(probe, "_made", refuse)
    assert asked("none") is None


class Moved(Model):
    """Calls what torch itself asks of tensors when a module is moved, and holds a layer that is not looked into."""

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        width = self.embed.embedding_dim
        self.fused = torch.nn.TransformerEncoderLayer(width, 1, 8, batch_first=True) if fused else None
        self.other = torch.nn.Linear(width, width)

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        self.other.to(hidden.device)
        return self.other(hidden if self.fused is None else self.fused(hidden))


@pytest.mark.parametrize("fused", [False, True])
def test_calls_that_no_trace_shows_are_no_other_operations(fused, monkeypatch):
    model = Moved(fused=fused).eval()
    both = session(Run(model, {"input_ids": ids(1)}), Run(model, {"input_ids": ids(2)[:1]}))
    assert bool(both.a.trace.opaque) is fused
    for traced in (both.a, both.b):
        promotion = Promotion()
        traced.in_float64(promotion)
        assert not probe._differ(traced, promotion.calls)


@pytest.mark.parametrize(
    ("path", "says"), [("sign", "/neg ("), ("number", "with other numbers than natively")]
)
def test_another_function_in_one_dtype_remains_on_its_own_path(path, says):
    found = asked(path)
    assert found.kind is VerdictKind.SEMANTIC
    assert (found.result.name, found.result.outcome) == ("operations", "remains")
    assert says in found.result.text
    assert found.result.text.startswith("in float64 run B calls ")


def test_another_form_of_one_function_vanishes_on_its_own_path():
    found = asked("clamp")
    assert (found.kind, found.result.outcome) == (VerdictKind.ROUNDING, "vanishes")


def test_a_path_that_can_not_be_taken_in_float64_is_told_by_the_gap():
    found = asked("mixed")
    assert (found.kind, found.result.outcome) == (None, "other")
    assert found.result.figure > 4


def test_told_tensors_say_the_native_dtype_and_hold_float64():
    with torch.no_grad(), Promotion(shown_dtype=torch.bfloat16) as promotion:
        made = F.linear(torch.ones(2, 3, dtype=torch.bfloat16), torch.full((3, 3), 1 / 3))
        assert made.dtype == torch.bfloat16
        assert torch.ones(2).dtype == torch.bfloat16
    assert promotion.value(made).dtype == torch.float64


def test_only_calls_of_the_model_are_counted():
    x = torch.ones(2, 3)
    with torch.no_grad(), Promotion() as promotion:
        F.softmax(F.normalize(x), dim=-1)
        torch.add(x, x)
    assert {func.__name__: times for func, times in promotion.calls.items()} == {
        "softmax": 1, "normalize": 1, "add": 1,
    }  # fmt: skip
