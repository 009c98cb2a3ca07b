"""NaN that one run alone has."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from . import models, modules
from .case import NAN, Pair, case
from .exact import gap, picked
from .expect import NOT_A_NUMBER
from .modules import Tagger, seeded
from .pairs import padded, replaced, twice

# ---------------------------------------------------------------------- 26: NaN


@case(
    "26-nan-masked-rows",
    "Attention masked by -inf: fully masked rows of left padding become NaN and spread",
    NOT_A_NUMBER,
    truth=NAN,
    origin=("softmax", "mixers."),
    source="pytorch#103749",
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.InfinityAttention(), modules.InfinityAttention()), "left")


class _NanInPadding(nn.Module):
    """Puts NaN into the states of padding, as an older fused attention did."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden if mask is None else hidden.masked_fill(mask[..., None] == 0, float("nan"))


@case(
    "26-nan-in-padding",
    "NaN in the states of padding, then sound attention: 0 times NaN is NaN",
    NOT_A_NUMBER,
    truth=NAN,
    origin="mixers.0/masked_fill",
)
def _() -> Pair:
    return padded(seeded(Tagger, _NanInPadding(), modules.CausalAttention()), "right", mates=1)


def _sound_unpatched_native(pair: Pair) -> None:
    assert gap(picked(pair.a), picked(pair.b)) < 1e-5


def _infinite_mask(config: Any, **given: Any) -> Any:
    from transformers.masking_utils import create_causal_mask

    mask = create_causal_mask(config=config, **given)
    return mask if mask is None else mask.masked_fill(mask == torch.finfo(mask.dtype).min, float("-inf"))


@case(
    "26-llama-eager-infinity",
    "Llama eager, masked by -inf instead of the least number (patched), padded on the left",
    NOT_A_NUMBER,
    truth=NAN,
    check=_sound_unpatched_native,
    origin="self_attn/softmax",
    note="it makes NaN of padding alone; what reads that in the next layer has none of its own",
)
def _() -> Pair:
    from transformers.models.llama import modeling_llama

    patch = lambda: replaced(modeling_llama, "create_causal_mask", _infinite_mask)  # noqa: E731
    return padded(models.llama("eager"), "left", position_ids=True, patches=(patch,))


def _overflows(pair: Pair) -> None:
    with torch.no_grad():
        wide = copy.deepcopy(pair.b)
        wide.model = copy.deepcopy(pair.a.model)
        assert gap(picked(pair.a), picked(wide)) == 0


@case(
    "26-fp16-overflow",
    "A model in fp32, or in fp16 where an activation overflows",
    NOT_A_NUMBER,
    truth=NAN,
    check=_overflows,
    note="NaN in one run, though it comes of the narrower dtype",
)
def _() -> Pair:
    class Large(nn.Module):
        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            large = hidden * 300
            squares = large * large
            return hidden * (squares / (squares + squares.amax(-1, keepdim=True)))

    wide, narrow = (seeded(Tagger, Large(), spread=1.0) for _ in range(2))
    return twice(wide, models.cast(narrow, torch.float16))
