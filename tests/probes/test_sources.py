"""Every independent source: as many as were planted, each at its place, and none that an earlier one brings along."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.questions.words import word_tokenizer

import forkpoint as fp

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
PLACES = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.1.mlp.down_proj",
    "model.norm",
]


@pytest.fixture
def llama():
    return ARCHITECTURES["llama"].build(attention="sdpa")


def plant(module, by: float) -> None:
    """Have a module return its values times `1 + by`."""
    forward = type(module).forward
    module.forward = MethodType(
        lambda self, *args, **kwargs: forward(self, *args, **kwargs) * (1 + by), module
    )


@pytest.mark.parametrize("count", range(len(PLACES) + 1))
def test_as_many_sources_as_faults(llama, count):
    other = copy.deepcopy(llama)
    for place in PLACES[:count]:
        plant(other.get_submodule(place), 1e-4)
    a, b = (fp.Run(model, {"input_ids": IDS}) for model in (llama, other))
    result = fp.compare(a, b, probes=False, sources=True)
    assert [found.module for found in result.sources] == PLACES[:count]
    assert all(found.error > 100 for found in result.sources)
    if count:
        assert result.sources[0].op == result.first.op
        assert f"{count} op" in result.to_text()


def test_without_being_asked_none_are_looked_for(llama):
    other = copy.deepcopy(llama)
    plant(other.model.norm, 1e-4)
    a, b = (fp.Run(model, {"input_ids": IDS}) for model in (llama, other))
    assert fp.compare(a, b, probes=False).sources == ()


def test_rounding_has_a_source_in_each_layer(llama):
    result = fp.attention(llama, word_tokenizer(), "w5 w6 w7 w8 w9 w10", "eager", probes=False, sources=True)
    assert [found.op for found in result.sources] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    for found in result.sources:
        assert 0 < found.error < 64
        assert any("softmax" in op for op in found.between)


def test_padding_parts_ways_at_the_kernel_and_not_at_what_repeats_heads(llama):
    result = fp.padding(llama, word_tokenizer(), "w5 w6 w7 w8 w9 w10 w11", 50, probes=False, sources=True)
    kernels = [found for found in result.sources if found.function == "scaled_dot_product_attention"]
    assert [found.module for found in kernels] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    assert all(not found.between for found in result.sources)


def test_one_that_a_later_one_hides(llama):
    """A fault that the next op takes back is a source, and so is that op: the result is the same, or nearly."""
    other = copy.deepcopy(llama)
    plant(other.model.layers[0].self_attn.v_proj, 1.0)
    plant(other.model.layers[0].self_attn.o_proj, -0.5)
    a, b = (fp.Run(model, {"input_ids": IDS}) for model in (llama, other))
    result = fp.compare(a, b, probes=False, sources=True)
    assert [found.module.rpartition(".")[2] for found in result.sources] == ["v_proj", "o_proj"]


def test_they_are_written_and_read(llama, tmp_path):
    other = copy.deepcopy(llama)
    plant(other.model.norm, 1e-4)
    a, b = (fp.Run(model, {"input_ids": IDS}) for model in (llama, other))
    result = fp.compare(a, b, probes=False, sources=True)
    result.to_json(tmp_path / "result.json")
    assert fp.Result.from_json(tmp_path / "result.json").sources == result.sources
