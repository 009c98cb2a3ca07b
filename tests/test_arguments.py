"""Scalar arguments and entries of the configuration that differ."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.explain.arguments import compare_configurations
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
        (lambda x, v: x.softmax(v), -1, 1, "dim"),
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
    text = str(result)
    assert f"arguments     {name}  A {one!r}  B {other!r}" in text
    assert "Its tensors are equal, other arguments are not" in text
    assert "其他参数" in to_text(result, lang="zh")


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
    assert "config.rms_norm_eps  1e-06" in str(result)
