"""Which op makes NaN or infinity, in each run, and why."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.corpus import CASES
from torch import nn

import forkpoint as fp
from forkpoint.match.finite import all_finite, finite_part, is_finite
from forkpoint.match.pairs import Pairs
from forkpoint.result import NonFinite, Result


def compared(name: str) -> Result:
    a, b, how, patches = CASES[name].build()
    with patches:
        return fp.compare(a, b, **how)


def made(result: Result, run: str) -> NonFinite:
    found = result.first_nonfinite_a if run == "a" else result.first_nonfinite_b
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "run", "module", "function", "kind", "cause", "leads_to"),
    [
        ("26-nan-masked-rows", "b", "mixers.0", "softmax", "nan", "masked", ""),
        ("26-nan-in-padding", "b", "mixers.0", "masked_fill", "nan", "written", ""),
        ("26-fp16-overflow", "b", "mixers.0", "mul", "inf", "overflow", "mixers.0/div"),
        ("45-row-masked-everywhere", "b", "mixers.0", "softmax", "nan", "masked", ""),
        ("45-masks-added", "b", "mixers.0", "add", "-inf", "overflow", "mixers.0/softmax"),
        ("45-attention-overflows", "b", "mixers.0", "matmul", "inf", "overflow", "mixers.0/softmax"),
        ("45-both-overflow-apart", "a", "mixers.0", "pow", "inf", "overflow", "head/linear"),
        ("45-both-overflow-apart", "b", "mixers.0", "pow", "inf", "overflow", "head/linear"),
        ("45-both-overflow-alike", "a", "mixers.0", "mul", "-inf", "overflow", "head/linear"),
        ("45-zero-by-zero", "b", "mixers.0", "div", "nan", "exact", ""),
        ("45-log-of-zero", "b", "mixers.0", "log", "-inf", "exact", "mixers.0/mul"),
        ("45-variance-below-zero", "b", "mixers.0", "sqrt", "nan", "exact", ""),
        ("45-infinity-less-infinity", "b", "mixers.0", "exp", "inf", "overflow", "mixers.0/div"),
        ("45-all-nan", "a", "mixers.0", "sqrt", "nan", "exact", ""),
    ],
)  # fmt: skip
def test_the_op_that_makes_it(
    name: str, run: str, module: str, function: str, kind: str, cause: str, leads_to: str
) -> None:
    found = made(compared(name), run)
    assert (found.module, found.function) == (module, function)
    assert (found.kind, found.cause, found.leads_to) == (kind, cause, leads_to)


@pytest.mark.parametrize(
    "name",
    ["45-row-masked-by-a-number", "45-masks-added-and-clamped", "45-tokens-suppressed", "45-softmax-by-hand",
     "45-attention-divided-first", "45-nan-cleaned"],
)  # fmt: skip
def test_what_is_meant_or_reaches_nothing_is_not_named(name: str) -> None:
    result = compared(name)
    assert result.first_nonfinite_a is None
    assert result.first_nonfinite_b is None
    assert all(probe.name != "nan" for probe in result.verdict.evidence)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("26-", "45-"))])
def test_no_headline_contradicts_what_was_counted(name: str) -> None:
    result = compared(name)
    assert result.impact is not None
    text = result.to_text(width=120)
    for nonsense in ("at most 0 nats", "ahead by nan", "relative inf", "inf × the epsilon", "gap nan", "gap inf",
                     "gap is inf", "gap of inf", "by inf"):  # fmt: skip
        told = result.impact.nonfinite_a or result.impact.nonfinite_b
        if nonsense != "at most 0 nats" or (
            told and result.verdict.kind != "identical"
        ):  # the same bits are 0 nats apart
            assert nonsense not in text, text
    if result.impact.nonfinite_apart:
        assert "a result is NaN or infinite in one run alone" in text
        assert "differ in exact arithmetic" not in text
    elif result.first_nonfinite_a is not None:
        assert "NaN or infinite in both runs" in text
        assert "Nothing is wrong" not in text


def test_rounding_that_leaves_a_domain_is_told_from_a_domain_that_is_left_in_float64_too() -> None:
    assert "Rounding takes" in compared("45-variance-below-zero").verdict.advice
    assert "Keep the op's input inside its domain" in compared("45-zero-by-zero").verdict.advice


class Given(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_a_weight_or_an_input_that_holds_it_is_named() -> None:
    model, x = Given(), torch.ones(1, 3, 4)
    with torch.no_grad():
        model.linear.weight[0, 0] = math.nan
    result = fp.compare(fp.Run(model, {"x": x}), fp.Run(model, {"x": x}))
    assert (made(result, "a").cause, made(result, "a").name) == ("weight", "linear.weight")
    x[0, 0, 0] = math.nan
    result = fp.compare(fp.Run(Given(), {"x": x}), fp.Run(Given(), {"x": x}))
    assert (made(result, "b").cause, made(result, "b").name) == ("input", "x")
    assert "is given NaN in x" in result.to_text(width=120)


def test_without_nan_no_pass_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from forkpoint.probes import nonfinite

    monkeypatch.setattr(nonfinite, "_first", None)
    assert compared("45-tokens-suppressed").verdict.kind in ("identical", "rounding")


@pytest.mark.parametrize(
    ("name", "looked_through", "fetched"), [("26-fp16-overflow", 1, 1), ("45-both-overflow-apart", 2, 1)]
)
def test_a_run_that_is_finite_is_not_looked_through_and_a_call_is_fetched_once(
    name: str, looked_through: int, fetched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forkpoint.probes import maker, nonfinite

    made_again: list[object] = []
    fetches: list[object] = []
    fetch_op = maker.fetch_op

    finiteness = nonfinite.Finiteness

    def counted() -> Any:
        made_again.append(None)
        return finiteness()

    def fetch(*args: Any, **more: Any) -> Any:
        fetches.append(args)
        return fetch_op(*args, **more)

    monkeypatch.setattr(nonfinite, "Finiteness", counted)
    monkeypatch.setattr(maker, "fetch_op", fetch)
    assert compared(name).verdict.mechanism == "nan"
    assert len(made_again) == looked_through
    assert len(fetches) <= fetched  # of the run that does not make it


def test_counts_of_pairs() -> None:
    a = torch.tensor([1.0, math.inf, math.nan, 4.0, -math.inf])
    b = torch.tensor([1.5, -math.inf, math.nan, math.inf, -math.inf])
    pairs = Pairs(np.arange(5), np.arange(5), np.zeros(5, dtype=np.int64))
    part = finite_part(a, b, pairs)
    assert (part.elements, part.nonfinite_a, part.nonfinite_b, part.apart) == (5, 3, 4, 2)
    assert (part.max_abs, part.max_rel) == (0.5, 0.5)
    assert not all_finite(a)
    assert all_finite(torch.tensor([1, 2]))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
def test_narrow_dtypes_are_looked_at_as_any_other(dtype: torch.dtype) -> None:
    wide = torch.tensor([1.0, math.nan, 2.5])
    assert all_finite(wide[::2].to(dtype))
    assert is_finite(wide.to(dtype)).tolist() == [True, False, True]
    assert part_of(wide.to(dtype), wide) == (1, 1, 0)


def part_of(a: torch.Tensor, b: torch.Tensor) -> tuple[int, int, int]:
    part = finite_part(a, b, Pairs(np.arange(len(a)), np.arange(len(a)), np.zeros(len(a), dtype=np.int64)))
    return part.nonfinite_a, part.nonfinite_b, part.apart


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_value_is_finite_where_what_it_holds_is(layout):
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    for value, finite in ((dense, True), (dense / dense, False)):
        assert all_finite(value.to_sparse(layout=layout)) is finite
