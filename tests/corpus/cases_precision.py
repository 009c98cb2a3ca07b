"""Narrower weights and narrower steps on the way: what differs, differs by the dtype."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from . import mixers, models, modules
from .case import UNCHECKED, Pair, Side, case
from .exact import gap, picked
from .expect import KERNEL, LOW_PRECISION, ROUNDING
from .modules import Tagger, seeded
from .pairs import padded, twice

# ---------------------------------------------------------------------- 8, 10: narrower weights


def adapted_llama(dtype: torch.dtype, **how: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    base = models.cast(models.llama("sdpa"), dtype)
    torch.manual_seed(5)
    adapted = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), **how)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    return adapted.eval()


def _ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of the numbers of a dtype at each value, as float64."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.double().abs().clamp(min=info.tiny)).exponent - 1
    return info.eps * 2.0**exponent


def lora_distance(pair: Pair, *, of_terms: bool = False) -> float:
    """Farthest that a merged weight is from the effective one, in ULP of the merged dtype.

    Args:
        of_terms: take the ULP at the largest of the weight, the terms of the adapters' product and
            the sum; where the sum cancels, rounding of the product is many ULP of the sum.
    """
    plain = dict(pair.b.model.named_modules())
    worst = 0.0
    for name, module in pair.a.model.named_modules():
        if not hasattr(module, "base_layer"):
            continue
        merged = plain[name.removeprefix("base_model.model.")].weight.detach()
        a, b = (getattr(module, f"lora_{part}")["default"].weight.detach().double() for part in "AB")
        scale = module.scaling["default"]
        base, delta = module.base_layer.weight.detach().double(), scale * b @ a
        size = merged.double().abs()
        if of_terms:
            size = torch.maximum(size, torch.maximum(base.abs(), scale * b.abs() @ a.abs()))
        off = (merged.double() - base - delta).abs() / _ulp(size, merged.dtype)
        worst = max(worst, float(off.max()))
    return worst


def _merged_by_rounding(pair: Pair) -> None:
    assert lora_distance(pair) <= 0.5 + 1e-6
    a, b = picked(pair.a), picked(pair.b)
    assert 0 < gap(a, b) < 0.2


@case(
    "08-lora-merged-bf16",
    "LoRA in bf16, adapters in fp32, unmerged or merged",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_merged_by_rounding,
    source="peft#1388",
)
def _() -> Pair:
    adapted = adapted_llama(torch.bfloat16)
    merged = copy.deepcopy(adapted).merge_and_unload()
    return twice(adapted, merged)


def _merged_by_two_roundings(pair: Pair) -> None:
    assert lora_distance(pair) > 1, "the product of the adapters is rounded to bf16 before it is added"
    assert lora_distance(pair, of_terms=True) <= 1
    assert 0 < gap(picked(pair.a), picked(pair.b)) < 0.2


@case(
    "08-lora-merged-bf16-adapters",
    "LoRA all in bf16, unmerged or merged by peft",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_merged_by_two_roundings,
    source="peft#1388",
    note="peft rounds the product of the adapters, then the sum: many ULP off where the two cancel",
)
def _() -> Pair:
    adapted = adapted_llama(torch.bfloat16, autocast_adapter_dtype=False)
    models.cast(adapted, torch.bfloat16)
    merged = copy.deepcopy(adapted).merge_and_unload()
    return twice(adapted, merged)


def _merged_fp32(pair: Pair) -> None:
    assert lora_distance(pair, of_terms=True) <= 4, "the product of the adapters is a sum in fp32"
    assert 0 < gap(picked(pair.a), picked(pair.b)) < 1e-4


@case(
    "08-lora-merged-fp32",
    "LoRA in fp32, unmerged or merged",
    ROUNDING,
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_merged_fp32,
)
def _() -> Pair:
    adapted = adapted_llama(torch.float32)
    return twice(adapted, copy.deepcopy(adapted).merge_and_unload())


def _rounded_weights(pair: Pair) -> None:
    wide = dict(pair.a.model.named_parameters())
    for name, narrow in pair.b.model.named_parameters():
        assert torch.equal(wide[name].detach().to(narrow.dtype), narrow.detach()), name
    same = Pair(pair.a, Side(copy.deepcopy(pair.a.model), pair.b.inputs, pair.b.pick))
    same.b.model.load_state_dict(pair.b.model.state_dict())
    same.a.model.load_state_dict(pair.b.model.state_dict())
    a, b = picked(same.a, exact=True), picked(same.b, exact=True)
    assert gap(a, b) < 1e-12


@case(
    "10-llama-fp32-bf16",
    "Llama with fp32 or bf16 weights",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_rounded_weights,
)
def _() -> Pair:
    return twice(models.llama("sdpa"), models.cast(models.llama("sdpa"), torch.bfloat16))


@case(
    "10-gpt2-fp32-fp16",
    "GPT-2 with fp32 or fp16 weights",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_rounded_weights,
)
def _() -> Pair:
    return twice(models.gpt2("eager"), models.cast(models.gpt2("eager"), torch.float16))


@case(
    "10-llama-to-bf16",
    "Llama in fp32, or all of it by .to(bfloat16), rotary table included",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_rounded_weights,
    note="a rounded buffer, as well as rounded parameters",
)
def _() -> Pair:
    return twice(models.llama("sdpa"), models.llama("sdpa").to(torch.bfloat16))


def _rounded_only(pair: Pair) -> None:
    pair.a.model.load_state_dict(pair.b.model.state_dict())
    assert gap(picked(pair.a, exact=True), picked(pair.b, exact=True)) < 1e-12


@case(
    "10-bf16-padded",
    "Llama fp32 alone, or bf16 and padded on the left",
    LOW_PRECISION,
    truth=UNCHECKED,
    check=_rounded_only,
)
def _() -> Pair:
    narrow = models.cast(models.llama("sdpa"), torch.bfloat16)
    return padded(models.llama("sdpa"), "left", position_ids=True, model_b=narrow)


def _under_autocast(model: Any, inputs: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(**inputs)


@case("10-autocast", "GPT-2 fp32, plain or under bf16 autocast", LOW_PRECISION, truth="same")
def _() -> Pair:
    pair = twice(models.gpt2("sdpa"))
    pair.b.call = _under_autocast
    return pair


@case(
    "10-norm-without-upcast",
    "RMSNorm in fp32 inside a bf16 model, or in bf16",
    LOW_PRECISION,
    KERNEL,
    truth="same",
    note="both runs return bf16; the op itself ran in another dtype",
)
def _() -> Pair:
    class Upcast(mixers.FeatureNorm):
        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            return super().forward(hidden.float(), mask).to(hidden.dtype)

    a, b = (
        models.cast(seeded(Tagger, norm(), modules.Feedforward()), torch.bfloat16)
        for norm in (Upcast, mixers.FeatureNorm)
    )
    return twice(a, b)


@case(
    "10-tf32-like",
    "Linear layers in fp32, or with inputs rounded to bf16 on the way",
    LOW_PRECISION,
    KERNEL,
    truth="same",
    note="as TF32 or oneDNN's bf16 math rounds inside a matmul",
)
def _() -> Pair:
    class Rounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(torch.bfloat16).to(x.dtype))

    a, b = (seeded(Tagger, modules.Plain(linear(32, 32))) for linear in (nn.Linear, Rounded))
    return twice(a, b)
