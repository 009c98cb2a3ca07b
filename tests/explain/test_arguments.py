"""Scalar arguments and entries of the configuration that differ."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.corpus import CASES
from tests.corpus.cases_remaining import ARGUMENTS
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.capture.recorder import CopiedCall
from forkpoint.capture.trace import Op
from forkpoint.explain.arguments import compare_arguments, compare_configurations
from forkpoint.report import to_text


class Step(nn.Module):
    """Token ids, an embedding, one function of the hidden states."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.function = nn.Embedding(9, 4), function

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.function(self.embed(input_ids))


def compared(function: Any, one: Any, other: Any) -> fp.Result:
    ids = torch.tensor([[1, 2, 3]])
    runs = (fp.Run(Step(lambda x, v=v: function(x, v)), {"input_ids": ids}) for v in (one, other))
    return fp.compare(*runs)


@pytest.mark.parametrize(
    ("function", "one", "other", "name"),
    [
        (lambda x, v: F.layer_norm(x, (4,), eps=v), 1e-5, 1e-2, "eps"),
        (lambda x, v: x * v, 2.0, 3.0, "other"),
        (lambda x, v: x.softmax(v), 2, 1, "dim"),
        (lambda x, v: F.gelu(x, approximate=v), "none", "tanh", "approximate"),
        (lambda x, v: x.clamp(max=v), 0.5, 0.25, "max"),
        (lambda x, v: F.scaled_dot_product_attention(x, x, x, scale=v), 0.7, None, "scale"),
        (lambda x, v: F.scaled_dot_product_attention(x, x, x, is_causal=v), False, True, "is_causal"),
    ],
)  # fmt: skip
def test_an_argument_that_differs_is_shown_with_both_values(
    function: Any, one: Any, other: Any, name: str
) -> None:
    result = compared(function, one, other)
    assert result.first is not None
    assert [(a.name, a.value_a, a.value_b) for a in result.first.arguments] == [
        (name, repr(one), repr(other))
    ]
    text = to_text(result)
    assert f"arguments     {name}  A {one!r}  B {other!r}" in text
    assert "Its tensors are equal, other arguments are not" in text
    assert "其他参数" in to_text(result, lang="zh")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_origin_shows_the_argument_that_differs(name: str) -> None:
    a, b, how, patches = CASES[f"49-argument-{name}"].build()
    with patches:
        result = fp.compare(a, b, **how)
    _, one, other, _, argument, _ = ARGUMENTS[name]
    assert result.origin is not None
    if name == "dim":
        one = 2
    assert [(a.name, a.value_a, a.value_b) for a in result.origin.arguments] == [
        (argument, repr(one), repr(other))
    ]
    assert f"{argument}  A {one!r}  B {other!r}" in to_text(result)


def test_a_dimension_counted_from_behind_is_no_other() -> None:
    ids = torch.tensor([[1, 2, 3]])
    steps = (Step(lambda x, d=d, by=by: (x * by).softmax(d)) for d, by in ((-1, 1.0), (2, 2.0)))
    result = fp.compare(*(fp.Run(step, {"input_ids": ids}) for step in steps))
    assert result.first is not None
    assert [a.name for a in result.first.arguments] == ["other"]
    called = (
        CopiedCall(Op("", "sum", None), 0, 0, None, (torch.ones(2, 3),), {"dim": d}, (), {}, ())
        for d in ([-1], (1,))
    )
    assert compare_arguments(*called) == ()


def test_a_padded_runs_origin_shows_the_scale_too() -> None:
    a, b, how, patches = CASES["49-argument-padded"].build()
    with patches:
        result = fp.compare(a, b, **how)
    assert result.origin is not None
    assert [(a.name, a.value_a, a.value_b) for a in result.origin.arguments] == [("scale", "0.2", "0.3")]


@dataclass
class Rope:
    base: float
    table: Any = None


@dataclass
class Settings:
    rope: Rope
    width: int = 4


@pytest.mark.parametrize(
    "of",
    [
        lambda base: {"width": 4, "rope": {"base": base}},
        lambda base: Settings(Rope(base, torch.ones(3))),
        lambda base: SimpleNamespace(width=4, rope=SimpleNamespace(base=base)),
    ],
)
def test_configurations_of_any_form_are_compared(of: Any) -> None:
    models = [Step(torch.sin), Step(torch.sin)]
    for model, base in zip(models, (1e4, 1e6), strict=True):
        model.config = of(base)
    assert [(c.name, c.value_a, c.value_b) for c in compare_configurations(*models)] == [
        ("rope.base", "10000.0", "1000000.0")
    ]


def test_sizes_are_no_arguments_that_differ() -> None:
    model = Step(lambda x: x.reshape(x.shape[0], x.shape[1] * 4).reshape(1, -1, 4).cumsum(-1) * 0.3)
    ids, padded = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 3, 0]])
    layout = fp.Layout.from_mask((padded > 0).long())
    result = fp.compare(
        fp.Run(model, {"input_ids": ids}), fp.Run(model, {"input_ids": padded}, layout=layout)
    )
    assert result.first is None or result.first.arguments == ()


def test_entries_of_configurations_that_differ() -> None:
    from transformers import LlamaConfig

    class Configured(Step):
        def __init__(self, **entries: Any) -> None:
            super().__init__(lambda x: x * float(entries["rms_norm_eps"]))
            self.config = LlamaConfig(hidden_size=8, num_attention_heads=2, **entries)

    one, other = Configured(rms_norm_eps=1e-6), Configured(rms_norm_eps=1e-5)
    assert [(c.name, c.value_a, c.value_b) for c in compare_configurations(one, other)] == [
        ("rms_norm_eps", "1e-06", "1e-05")
    ]
    assert compare_configurations(one, one) == ()
    assert compare_configurations(one, None) == ()
    ids = torch.tensor([[1, 2, 3]])
    result = fp.compare(fp.Run(one, {"input_ids": ids}), fp.Run(other, {"input_ids": ids}))
    assert [c.name for c in result.configuration] == ["rms_norm_eps"]
    assert "config.rms_norm_eps  1e-06" in to_text(result)
