"""Sound transformers architectures: in float64 padding changes nothing, whatever dtype the weights are in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, Architecture, Side, prompt

from forkpoint.promotion import Promotion
from forkpoint.runs.returned import cache_parameters, caches_in

DTYPES = (torch.float32, torch.bfloat16)
COLUMN_POSITIONS = {"bert", "distilbert", "electra", "deberta", "bart"}
"""Architectures that count positions from the first column, so that padding on the left moves the tokens."""

PADDED = [
    pytest.param(name, attention, dtype, side, id=f"{name}-{attention}-{str(dtype)[6:]}-{side}")
    for name, architecture in ARCHITECTURES.items()
    if architecture.mask and architecture.input_features is None
    for attention in architecture.attentions
    for dtype in DTYPES
    for side in ("left", "right")
    if not (side == "left" and name in COLUMN_POSITIONS)
]


def main_output(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    result = model(**inputs)
    return result.logits if "logits" in result else result.last_hidden_state


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of b; NaN where either holds one."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def run_padded(
    architecture: Architecture, model: torch.nn.Module, side: Side
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output alone and padded, promoted, and alone in native precision; real tokens only."""
    tokens, padding = prompt(7), 4
    alone = architecture.inputs([tokens])
    padded = architecture.inputs([tokens], pad_to=len(tokens) + padding, side=side)
    with torch.no_grad():
        native = main_output(model, alone)
        with Promotion() as promotion:
            promoted, shifted = main_output(model, alone), main_output(model, padded)
    assert promotion.refused == []
    if not architecture.decoder:
        shifted = shifted[:, padding:] if side == "left" else shifted[:, : len(tokens)]
    return promoted, shifted, native


@pytest.mark.parametrize(("name", "attention", "dtype", "side"), PADDED)
def test_padding_changes_nothing(name: str, attention: str, dtype: torch.dtype, side: Side) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build(dtype=dtype, attention=attention)
    before = copy.deepcopy(model.state_dict())
    promoted, padded, native = run_padded(architecture, model, side)

    assert promoted.dtype == torch.float64
    assert gap(padded, promoted) <= 1e-12
    assert gap(native, promoted) < (1e-4 if dtype == torch.float32 else 0.25), "another function"
    after = model.state_dict()
    assert all(
        torch.equal(after[key], value) and after[key].dtype == value.dtype for key, value in before.items()
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_every_way_to_run_experts_gives_the_same(name: str, implementation: str, dtype: torch.dtype) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build(dtype=dtype)
    model.set_experts_implementation(implementation)
    promoted, padded, _ = run_padded(architecture, model, "left")
    model.set_experts_implementation("eager")
    eager, _, _ = run_padded(architecture, model, "left")

    assert gap(padded, promoted) <= 1e-12
    assert gap(promoted, eager) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_falcon_with_alibi(dtype: torch.dtype) -> None:
    architecture = ARCHITECTURES["falcon"]
    for attention in ("eager", "sdpa"):
        model = architecture.build(
            dtype=dtype, attention=attention, alibi=True, new_decoder_architecture=False
        )
        promoted, padded, _ = run_padded(architecture, model, "left")
        assert gap(padded, promoted) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["fnet", "whisper", "wav2vec2", "vit"])
def test_a_sample_alone_or_in_a_batch(name: str, dtype: torch.dtype) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build(dtype=dtype)
    batch = architecture.inputs([prompt(9, seed) for seed in range(3)])
    batch = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}
    with torch.no_grad(), Promotion() as promotion:
        together = main_output(model, batch)
        alone = main_output(model, {key: value[:1] for key, value in batch.items()})
    assert promotion.refused == []
    assert together.dtype == torch.float64
    assert gap(together[:1], alone) <= 1e-12


@pytest.mark.parametrize("name", ["gpt2", "bart", "fnet", "electra", "whisper"])
def test_agrees_with_a_model_in_float64_where_that_is_right(name: str) -> None:
    """These casts nothing to float32 by name, so that `double()` alone is exact, at twice the weights."""
    architecture = ARCHITECTURES[name]
    model = architecture.build(dtype=torch.float32)
    inputs = architecture.inputs([prompt(9)])
    with torch.no_grad(), Promotion():
        promoted = main_output(model, inputs)
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    with torch.no_grad():
        reference = main_output(copy.deepcopy(model).double(), wide)
    assert gap(promoted, reference) <= 1e-14


def test_where_a_model_in_float64_is_not_enough() -> None:
    """The reason for all this: `double()` leaves the casts in the model's code."""
    architecture = ARCHITECTURES["llama"]
    model = architecture.build(dtype=torch.float32)
    with torch.no_grad():
        reference = main_output(copy.deepcopy(model).double(), architecture.inputs([prompt(9)]))
        with Promotion():
            promoted = main_output(model, architecture.inputs([prompt(9)]))
    assert 1e-9 < gap(promoted, reference) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "mamba", "mamba2"])
def test_prefill_and_decoding_against_one_forward(name: str, dtype: torch.dtype) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build(dtype=dtype)
    ids = torch.tensor([prompt(9)])
    with torch.no_grad(), Promotion() as promotion:
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :6], use_cache=True)
        caches, steps = caches_in(first, model), [first.logits]
        for column in range(6, 9):
            more = model(input_ids=ids[:, column : column + 1], use_cache=True, **caches)
            caches = caches_in(more, model)
            steps.append(more.logits)
    assert promotion.refused == []
    assert gap(torch.cat(steps, dim=1), whole) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_static_cache_made_before_is_written_beside_itself(dtype: torch.dtype) -> None:
    from transformers import StaticCache

    architecture = ARCHITECTURES["llama"]
    model = architecture.build(dtype=dtype)
    ids = torch.tensor([prompt(9)])
    cache = StaticCache(config=model.config, max_cache_len=12)
    given = {cache_parameters(model)[0]: cache}
    with torch.no_grad():
        model(input_ids=ids[:, :1], **given)  # allocates it in the model's dtype
    cache.reset()
    before = [layer.keys.clone() for layer in cache.layers]
    with torch.no_grad(), Promotion():
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :6], **given).logits
        rest = model(input_ids=ids[:, 6:], **given).logits
    assert gap(torch.cat([first, rest], dim=1), whole) <= 1e-12
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
