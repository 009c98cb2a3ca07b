"""What couples the rows of a batch: quantised activations, experts of limited capacity, statistics."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from . import mixers, models, modules
from .case import UNCHECKED, Pair, Side, case
from .exact import gap, picked
from .expect import CAPACITY, LEAK_MEANT, OUTLIERS, SCALE, SOUND, STATISTICS, WRONG_SCALE, one_of, semantic
from .modules import Tagger, seeded
from .pairs import batched, padded
from .tokens import PAD, first_rows, floats, whole, words

# ---------------------------------------------------------------------- 23: int8 outliers


def _int8(linear: nn.Linear, threshold: float) -> Any:
    import bitsandbytes as bnb

    quantised = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        has_fp16_weights=False,
        threshold=threshold,
    )
    quantised.load_state_dict(linear.state_dict())
    return quantised


def _quantise(model: Any, threshold: float = 6.0) -> Any:
    """Every linear layer but the head in int8, the rest in fp16: what `load_in_8bit` makes."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and "head" not in name:
                setattr(module, name, _int8(child, threshold))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dtype == torch.float32 and type(parameter) is nn.Parameter:
                setattr(module, name, nn.Parameter(parameter.half()))
    return model.to("cpu").eval()


LOUD = 4
"""A token whose embedding holds outliers."""


def _loud_tagger(threshold: float = 6.0, spread: float = 0.3) -> Any:
    model = seeded(
        Tagger, modules.Plain(nn.Linear(64, 64)), modules.Feedforward(width=64), width=64, spread=spread
    )
    with torch.no_grad():
        model.embed.weight.clamp_(-1, 1)
        model.embed.weight[LOUD, 5] = 40.0
        model.embed.weight[PAD, 9] = 40.0
    return _quantise(model, threshold)


def _only_through_outliers(pair: Pair) -> None:
    """Without the outlier path the rows are independent, bit for bit; with it they are not."""
    a, b = picked(pair.a), picked(pair.b)
    assert 1e-4 < gap(a, b) < 0.2
    for side in (pair.a, pair.b):
        side.model = copy.deepcopy(side.model)
        for module in side.model.modules():
            if hasattr(module, "state") and hasattr(module.state, "threshold"):
                module.state.threshold = 0.0
    assert gap(picked(pair.a), picked(pair.b)) == 0


@case(
    "23-int8-loud-mate",
    "bitsandbytes int8, threshold 6, a row alone or beside one with an outlier",
    OUTLIERS,
    truth=UNCHECKED,
    check=_only_through_outliers,
    origin=("int8", "Linear8bitLt", "linear", "mixers.0"),
    source="transformers#22269, bitsandbytes#28",
)
def _() -> Pair:
    return batched(_loud_tagger(), rows=[[*words(8, 1), LOUD]])


@case(
    "23-int8-loud-padding",
    "bitsandbytes int8, threshold 6, padding with an outlier",
    OUTLIERS,
    truth=UNCHECKED,
    check=_only_through_outliers,
    origin=("int8", "Linear8bitLt", "linear", "mixers.0"),
)
def _() -> Pair:
    return padded(_loud_tagger(), "right")


@case(
    "23-int8-opt-mate",
    "OPT in int8, threshold 6, beside a row with an outlier",
    OUTLIERS,
    truth=UNCHECKED,
    check=_only_through_outliers,
    origin=("int8", "layers.0"),
)
def _() -> Pair:
    model = models.opt("eager")
    with torch.no_grad():
        # Pre-norm evens out large embeddings; a scale does not.
        model.model.decoder.layers[0].self_attn_layer_norm.weight[3] = 12.0
        model.model.decoder.embed_tokens.weight[:, 3].clamp_(-0.05, 0.05)
        model.model.decoder.embed_positions.weight[:, 3].clamp_(-0.02, 0.02)
        model.model.decoder.embed_tokens.weight[LOUD, 3] = 2.0
    return batched(_quantise(model), rows=[[*words(8, 1), LOUD]])


def _quiet(pair: Pair) -> None:
    assert gap(picked(pair.a), picked(pair.b)) == 0


@case(
    "m-int8-no-outliers",
    "bitsandbytes int8, a row alone or beside a quiet one",
    *SOUND,
    truth=UNCHECKED,
    check=_quiet,
    note="nothing promotes int8 to float64: equal bits, or replay, must prove it",
)
def _() -> Pair:
    return batched(_loud_tagger(spread=0.1), mates=1)


# ---------------------------------------------------------------------- 24, 25: scales


LOUD_ROWS = [[*words(8, 1), LOUD], words(9, 2), words(9, 3)]


def _scaled(linear: nn.Module) -> Any:
    """A tagger one of whose tokens is six times as large as the rest."""
    model = seeded(Tagger, modules.Plain(linear))
    with torch.no_grad():
        model.embed.weight[[LOUD, PAD]] *= 6
    return model


@case(
    "24-scale-per-tensor",
    "int8 activations with one scale for the whole tensor, alone or in a batch",
    SCALE,
    floor=1e-4,
    origin=("amax", "abs", "div", "round"),
    source="vllm#6547",
)
def _() -> Pair:
    return batched(_scaled(mixers.DynamicLinear()), rows=LOUD_ROWS)


@case(
    "24-scale-per-tensor-fp8",
    "The same with 8-bit floats",
    SCALE,
    truth="differs",
    floor=1e-4,
    origin=("amax", "div", "to", "mixers.0"),
    note="narrowing to float8 is the quantisation itself, and must not be promoted away",
)
def _() -> Pair:
    return batched(_scaled(mixers.Float8Linear()), rows=LOUD_ROWS)


@case(
    "24-scale-per-tensor-padding",
    "One scale for the whole tensor, padding with a large embedding",
    SCALE,
    LEAK_MEANT,
    floor=1e-4,
    origin=("amax", "abs", "div", "round"),
)
def _() -> Pair:
    return padded(_scaled(mixers.DynamicLinear()))


@case(
    "25-scale-over-tokens",
    "A scale meant for each token, reduced over the tokens instead",
    WRONG_SCALE,
    floor=1e-4,
    origin=("amax", "abs", "div", "round"),
    source="compressed-tensors#393",
)
def _() -> Pair:
    return padded(seeded(Tagger, modules.Plain(mixers.DynamicLinear(over="tokens"))), extra=6, mates=1)


class _OverRows(mixers.DynamicLinear):
    def amax(self, x: Tensor) -> Tensor:
        return x.abs().amax(0, keepdim=True)


@case(
    "25-scale-over-rows",
    "A scale meant for each token, reduced over the rows of the batch",
    WRONG_SCALE,
    floor=1e-4,
    origin=("amax", "abs", "div", "round"),
)
def _() -> Pair:
    return batched(seeded(Tagger, modules.Plain(_OverRows())), mates=3)


# ---------------------------------------------------------------------- capacity


@case(
    "m-capacity-mates",
    "Top-1 experts that take 6 tokens of the batch, a row alone or last among three",
    CAPACITY,
    floor=1e-3,
    origin=("index_copy", "getitem", "experts", "mixers.0"),
)
def _() -> Pair:
    return batched(seeded(Tagger, mixers.CapacityExperts(capacity=6)), mates=2, place=2, length=8)


@case(
    "m-capacity-factor",
    "Top-1 experts with a capacity factor of 1, a row alone or last among four",
    CAPACITY,
    floor=1e-3,
    origin=("index_copy", "getitem", "experts", "mixers.0"),
)
def _() -> Pair:
    return batched(seeded(Tagger, mixers.CapacityExperts(factor=1.0)), mates=3, place=3)


@case(
    "m-switch-left-padding",
    "Switch Transformers, capacity 4, padded on the left: padding takes the places",
    CAPACITY,
    LEAK_MEANT,
    floor=1e-3,
    origin=("mlp", "router", "experts", "layer.1"),
)
def _() -> Pair:
    return padded(models.switch(4), "left", extra=6)


@case(
    "m-switch-right-padding",
    "Switch Transformers, capacity 4, padded on the right: places are taken in order",
    *SOUND,
)
def _() -> Pair:
    return padded(models.switch(4), "right", extra=6)


# ---------------------------------------------------------------------- statistics


@case(
    "m-batchnorm-train-rows",
    "BatchNorm in train mode, two rows alone or among six",
    STATISTICS,
    floor=1e-2,
    origin="batch_norm",
)
def _() -> Pair:
    x = floats(6, 12)
    model = seeded(mixers.Tabular).train()
    return Pair(Side(model, {"x": x[:2]}, whole()), Side(model, {"x": x}, first_rows(2)))


@case(
    "m-batchnorm-train-tokens",
    "BatchNorm in train mode over tokens, a row alone or among four",
    STATISTICS,
    floor=1e-2,
    origin="batch_norm",
)
def _() -> Pair:
    return batched(seeded(Tagger, mixers.TimeBatchNorm()).train(), mates=3)


@case(
    "m-batchnorm-train-images",
    "BatchNorm2d in train mode, an image alone or among three",
    STATISTICS,
    floor=1e-2,
    origin="batch_norm",
)
def _() -> Pair:
    images = floats(3, 3, 12, 12)
    model = seeded(mixers.Images).train()
    return Pair(Side(model, {"x": images[:1]}, whole()), Side(model, {"x": images}, first_rows(1)))


@case(
    "m-batch-mean",
    "The mean of the batch taken away from each row",
    STATISTICS,
    semantic("padding_leak", by_design=one_of(None, True)),
    floor=1e-2,
    origin=("mean", "sub"),
)
def _() -> Pair:
    return batched(seeded(Tagger, mixers.Recentred(), modules.Feedforward()), mates=3)


@case(
    "m-batch-softmax",
    "Embeddings normalised by a softmax over the rows",
    semantic("batch_statistics", None),
    floor=1e-3,
    origin="softmax",
)
def _() -> Pair:
    class OverRows(nn.Module):
        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            return hidden + hidden.softmax(0)

    return batched(seeded(Tagger, OverRows()), mates=3)


@case(
    "m-length-of-batch",
    "Positions divided by the width of the batch",
    semantic("position_ids", "padding_leak", None, by_design=one_of(None, False)),
    floor=1e-3,
    origin=("div", "add", "mixers.0"),
)
def _() -> Pair:
    class Relative(nn.Module):
        def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
            place = torch.arange(hidden.shape[1], dtype=hidden.dtype) / hidden.shape[1]
            return hidden + place[:, None]

    return padded(seeded(Tagger, Relative()))
