"""Arrays with names, as an ONNX Runtime session gives them, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.engines.test_comparing import PROMPTS, made

import forkpoint as fp

NAMES = (
    "model.embed_tokens",
    "model.layers.0.mlp.down_proj",
    "model.layers.0",
    "model.layers.1",
    "model.norm",
    "lm_head",
)


def arrays(model: torch.nn.Module, ids: list[int]) -> dict[str, Any]:
    """What some modules of a model return, as arrays."""
    found: dict[str, Any] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: found.update({name: out.numpy().copy()}))
        for name in NAMES
    ]  # fmt: skip
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return found


def test_arrays_are_compared(tmp_path: Path) -> None:
    model = made("llama")
    fp.record_outputs(tmp_path / "r", [(ids, arrays(model, ids)) for ids in PROMPTS])
    found = fp.compare_engine(model, tmp_path / "r", prompts=PROMPTS)
    assert found.agrees, str(found)
    assert {row.reference for row in found.ops} == {f"{name}/output" for name in NAMES}


def test_a_difference_is_found_where_it_is(tmp_path: Path) -> None:
    model = made("llama")
    changed = [(ids, arrays(model, ids)) for ids in PROMPTS]
    changed[1][1]["model.layers.1"] = changed[1][1]["model.layers.1"] * np.float32(1.001)
    fp.record_outputs(tmp_path / "r", changed)
    found = fp.compare_engine(model, tmp_path / "r")
    assert found.verdict == "semantic"
    assert found.first is not None
    assert (found.first.reference, found.first.sample, found.first.position) == (
        "model.layers.1/output",
        1,
        0,
    )


def test_the_first_of_a_pair_under_the_name_of_the_sum_is_told_as_that(tmp_path: Path) -> None:
    model = made("llama")
    changed = [(ids, arrays(model, ids)) for ids in PROMPTS]
    for _, outputs in changed:
        outputs["model.layers.0"] = outputs["model.layers.0.mlp.down_proj"]
    fp.record_outputs(tmp_path / "r", changed)
    found = fp.compare_engine(model, tmp_path / "r")
    assert found.notes[0] == (
        "what was recorded as model.layers.0/output is the value of model.layers.0.mlp.down_proj/output"
    )
    assert found.agrees


def test_what_can_not_be_used_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(fp.InputError, match=r"lm_head of shape \[3, 8\] for 2 tokens; expected \[2, …\]"):
        fp.record_outputs(tmp_path / "a", [([1, 2], {"lm_head": torch.zeros(3, 8)})])
    with pytest.raises(fp.InputError, match="no answers"):
        fp.record_outputs(tmp_path / "b", [])
    with pytest.raises(fp.InputError, match="'forward'"):
        fp.record_outputs(tmp_path / "c", [([1], {"forward": torch.zeros(1, 8)})])
