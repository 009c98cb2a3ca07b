"""The same run twice, and kernels that float64 can't check."""

from __future__ import annotations

import pytest
import torch

from . import mixers, models
from .case import UNCHECKED, Pair, Side, case
from .exact import gap, picked
from .expect import IDENTICAL, SOUND, UNDETERMINED
from .modules import Tagger, seeded
from .pairs import batched, padded, twice
from .tokens import (
    floats,
    row,
    whole,
    words,
)

# ---------------------------------------------------------------------- 33: the same run twice


@case("33-llama-twice", "The same Llama run twice, eager", IDENTICAL)
def _() -> Pair:
    return twice(models.llama("eager"))


@case("33-gpt2-train-no-dropout", "GPT-2 in train mode with dropout 0, twice", IDENTICAL)
def _() -> Pair:
    return twice(models.gpt2("sdpa").train())


@case(
    "33-batchnorm-buffers",
    "BatchNorm in train mode, twice: it rewrites its running statistics",
    IDENTICAL,
    note="the second run must find the buffers of the first",
)
def _() -> Pair:
    model = seeded(mixers.Tabular).train()
    x = {"x": floats(6, 12)}
    return Pair(Side(model, x, whole()), Side(model, dict(x), whole()))


@case("33-explicit-defaults", "Llama as it is, or with the position ids that it makes itself", IDENTICAL)
def _() -> Pair:
    pair = twice(models.llama("eager"))
    pair.b.change(position_ids=torch.arange(9)[None])
    return pair


@case(
    "33-given-cache",
    "The same cache handed to both runs, twice",
    IDENTICAL,
    note="a call that writes into the given cache must not change it for the next",
)
def _() -> Pair:
    model = models.llama("eager")
    with torch.no_grad():
        cache = model(input_ids=row(words(5))).past_key_values
    given = {"input_ids": row(words(3, 1)), "past_key_values": cache}
    return Pair(Side(model, given, whole()), Side(model, dict(given), whole()))


@case("33-permuted-rows", "Rows of a batch in another order: paired by what they hold", *SOUND)
def _() -> Pair:
    ids = torch.tensor([words(9, n) for n in range(4)])
    order = [2, 0, 3, 1]
    back = [order.index(n) for n in range(4)]
    model = models.llama("sdpa")
    return Pair(
        Side(model, {"input_ids": ids}, whole()),
        Side(model, {"input_ids": ids[order]}, lambda outputs: outputs[0].logits[back]),
    )


# ---------------------------------------------------------------------- 34: no float64


def _blocked_by_rounding(pair: Pair) -> None:
    a, b = picked(pair.a), picked(pair.b)
    assert gap(a, b) < 1e-4
    with pytest.raises(RuntimeError, match="float64"):
        picked(pair.a, exact=True)


@case(
    "34-fused-no-float64",
    "A fused kernel that refuses float64, padded on the right",
    UNDETERMINED,
    *SOUND,
    truth=UNCHECKED,
    check=_blocked_by_rounding,
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.FusedLinear(), mixers.FusedLinear()), "right", extra=8)


@case(
    "34-fused-no-float64-bf16",
    "The same kernel in bf16, alone or in a batch",
    UNDETERMINED,
    *SOUND,
    truth=UNCHECKED,
)
def _() -> Pair:
    return batched(models.cast(seeded(Tagger, mixers.FusedLinear()), torch.bfloat16), mates=3)
