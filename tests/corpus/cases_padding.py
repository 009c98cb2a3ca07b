"""Padding that leaks: convolutions, recurrences, pooling and statistics that count it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.mamba import modeling_mamba

from . import mixers, models, modules
from .case import Case, Pair, Side, add, case
from .exact import sound_unpatched
from .expect import LEAK, LEAK_MEANT, LEAK_UNMASKED, POOLING, SOUND, STATISTICS, semantic
from .modules import Frames, SentenceEncoder, Tagger, seeded
from .pairs import padded, replaced
from .tokens import EOS, at, floats, pad, pad_floats, whole, words

# ---------------------------------------------------------------------- 13, 18, 19: leaks


@contextmanager
def _mamba_patch() -> Iterator[None]:
    with replaced(
        modeling_mamba, "apply_mask_to_padding_states", lambda hidden_states, attention_mask: hidden_states
    ):
        yield


@case(
    "13-mamba-left",
    "Mamba padded on the left, its masking of padding states taken out (patched)",
    LEAK_UNMASKED,
    LEAK,
    floor=1e-2,
    check=sound_unpatched,
    origin=("mixer", "embed"),
    source="transformers#32677",
)
def _() -> Pair:
    return padded(models.mamba(), "left", patches=(_mamba_patch,))


@case(
    "18-depthwise-bias",
    "Depthwise convolution with a bias over padded frames, a mask given and ignored",
    LEAK_UNMASKED,
    floor=1e-2,
    origin="second/conv1d",
    source="torchaudio#4205",
)
def _() -> Pair:
    x = floats(1, 10, 32)
    longer, mask = pad_floats(x, "right", 5)
    model = seeded(Frames, mixers.Depthwise())
    a = {"frames": x, "attention_mask": torch.ones(1, 10, dtype=torch.long)}
    b = {"frames": longer, "attention_mask": mask}
    return Pair(Side(model, a, at(torch.ones(1, 10))), Side(model, b, at(mask)))


@case(
    "18-depthwise-bias-no-mask",
    "The same without a mask; the layout is given by hand",
    LEAK,
    floor=1e-2,
    origin="second/conv1d",
)
def _() -> Pair:
    x = floats(1, 10, 32)
    longer, mask = pad_floats(x, "right", 5)
    model = seeded(Frames, mixers.Depthwise())
    layout = lambda fp: fp.Layout.from_mask(mask)  # noqa: E731
    return Pair(
        Side(model, {"frames": x}, at(torch.ones(1, 10))), Side(model, {"frames": longer}, at(mask), layout)
    )


@case(
    "18-depthwise-tokens",
    "Depthwise convolution over padded tokens among mates",
    LEAK_UNMASKED,
    floor=1e-2,
    origin="conv1d",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Depthwise()), mates=2)


@case(
    "m-padding-content-leaks",
    "A convolution over tokens padded with one token, or with another",
    LEAK_UNMASKED,
    floor=1e-2,
    origin="conv1d",
    note="the layouts are equal; only what padding holds differs",
)
def _() -> Pair:
    ids, mask = pad([words(9)], to=13)
    model = seeded(Tagger, mixers.Depthwise())
    other = ids.masked_fill(mask == 0, EOS)
    return Pair(
        Side(model, {"input_ids": ids, "attention_mask": mask}, at(mask)),
        Side(model, {"input_ids": other, "attention_mask": mask}, at(mask)),
    )


@case(
    "m-conv-causal-left",
    "Convolution that looks back only, padded on the left",
    LEAK_UNMASKED,
    floor=1e-2,
    origin="conv1d",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Depthwise("left")), "left")


@case(
    "19-fnet-right", "FNet padded on the right: a Fourier transform over time", LEAK, floor=1e-2, origin="fft"
)
def _() -> Pair:
    return padded(models.fnet(), mask=False)


@case(
    "19-fourier-masked",
    "A Fourier transform over time in a module that is given a mask",
    LEAK_UNMASKED,
    floor=1e-2,
    origin="fft",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Fourier(), modules.Feedforward()))


@case("m-lstm-left", "LSTM padded on the left", LEAK_UNMASKED, floor=1e-3, origin="lstm")
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Recurrence(nn.LSTM)), "left")


@case(
    "m-gru-both-right",
    "Bidirectional GRU padded on the right, not packed",
    LEAK_UNMASKED,
    floor=1e-3,
    origin="gru",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.Recurrence(nn.GRU, both=True)), "right")


@case(
    "m-running-mean-left",
    "A running mean over columns, padded on the left",
    LEAK_UNMASKED,
    semantic("batch_statistics", "pooling"),
    floor=1e-3,
    origin=("cumsum", "mixers.0"),
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.RunningMean()), "left")


@case(
    "m-lstm-final-state",
    "The final state of an LSTM as embedding, padded on the right",
    POOLING,
    LEAK_UNMASKED,
    floor=1e-3,
    origin="lstm",
)
def _() -> Pair:
    return padded(seeded(modules.FinalState), vector=True)


# ---------------------------------------------------------------------- 16: pooling


def _pooling(
    name: str, title: str, side: str = "right", origin: tuple[str, ...] = (), number: str = "m"
) -> None:
    add(
        Case(
            f"{number}-pool-{name.replace('_', '-')}",
            title,
            lambda: padded(SentenceEncoder(models.roberta("sdpa"), name), side, mates=1, vector=True),
            (POOLING,),
            "differs",
            floor=1e-3,
            origin=origin,
        )
    )


_pooling("mean", "Mean over all columns, padding too", origin=("(model)/mean",), number="16")
_pooling("sum", "Sum over all columns, padding too", origin=("(model)/sum",))
_pooling("max", "Maximum over all columns, padding too", origin=("(model)/max",))
_pooling("last", "The last column as embedding, padded on the right", origin=("(model)/getitem",))
_pooling("attentive", "A softmax over all columns weighs them, padding too", origin=("(model)/softmax",))
_pooling("masked_sum_over_columns", "Masked sum, divided by the number of columns", origin=("(model)/",))


@case(
    "16-bert-mean-bf16",
    "BERT bf16, mean over all columns, padding too",
    POOLING,
    floor=1e-3,
    origin="(model)/mean",
    source="sentence-transformers#2569",
)
def _() -> Pair:
    model = models.cast(SentenceEncoder(models.bert("eager"), "mean"), torch.bfloat16)
    return padded(model, mates=1, vector=True)


@case(
    "m-mean-of-padded-tokens",
    "Mean over all columns of padded frames, no mask anywhere",
    semantic("pooling", by_design=False),
    floor=1e-3,
    origin="mean",
)
def _() -> Pair:
    class Mean(Frames):
        def forward(self, frames: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(frames, attention_mask).mean(1)

    x = floats(1, 10, 32)
    longer, mask = pad_floats(x, "right", 5)
    model = seeded(Mean, modules.Feedforward())
    layout = lambda fp: fp.Layout.from_mask(mask)  # noqa: E731
    return Pair(Side(model, {"frames": x}, whole()), Side(model, {"frames": longer}, whole(), layout))


# ---------------------------------------------------------------------- 17: statistics that see padding


def _waves(model: Any, mask_given: bool) -> Pair:
    x = floats(1, 160)
    longer = torch.cat([x, torch.zeros(1, 60)], 1)
    mask = torch.cat([torch.ones(1, 160), torch.zeros(1, 60)], 1).long()
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(160)))
    a: dict[str, Any] = {"input_values": x}
    b: dict[str, Any] = {"input_values": longer}
    layout = None
    if mask_given:
        a["attention_mask"], b["attention_mask"] = torch.ones(1, 160, dtype=torch.long), mask
    else:
        layout = lambda fp: fp.Layout.from_mask(mask)  # noqa: E731

    def pick(outputs: list[Any]) -> Tensor:
        return outputs[0].last_hidden_state[0, :frames]

    return Pair(Side(model, a, pick), Side(model, b, pick, layout=layout))


GROUP = (STATISTICS, LEAK_MEANT)
STATISTICS_OF_PADDING = semantic("batch_statistics", by_design=False)
"""The code that calls the norm is given a mask and ignores it."""


@case(
    "17-wav2vec2-group-masked",
    "wav2vec2 with GroupNorm over time, padded on the right, mask given",
    *GROUP,
    floor=1e-2,
    origin="group_norm",
    source="transformers#21534",
)
def _() -> Pair:
    return _waves(models.wav2vec2("group"), True)


@case(
    "17-wav2vec2-group",
    "The same, no mask, as its makers ask",
    semantic("batch_statistics", by_design=None),
    floor=1e-2,
    origin="group_norm",
    note="attention sees the padding too, after the norm",
)
def _() -> Pair:
    return _waves(models.wav2vec2("group"), False)


@case(
    "m-wav2vec2-layer",
    "wav2vec2 with LayerNorm of each frame, padded on the right, mask given",
    *SOUND,
)
def _() -> Pair:
    return _waves(models.wav2vec2("layer"), True)


@case(
    "17-batchnorm-train-padded",
    "BatchNorm in train mode over padded frames",
    STATISTICS_OF_PADDING,
    floor=1e-2,
    origin="batch_norm",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.TimeBatchNorm()).train(), mates=0)


@case(
    "m-group-norm-time",
    "GroupNorm over all columns, padded on the right",
    STATISTICS_OF_PADDING,
    floor=1e-2,
    origin="group_norm",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.TimeGroupNorm()))


@case(
    "m-instance-norm",
    "InstanceNorm over all columns, padded on the right",
    STATISTICS_OF_PADDING,
    floor=1e-2,
    origin="instance_norm",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.TimeInstanceNorm()))


@case(
    "m-norm-over-tokens",
    "RMSNorm over the tokens instead of the features, padded on the right",
    semantic("batch_statistics", "padding_leak"),
    floor=1e-2,
    origin="mean",
    note="statistics over time: by the letter by design, though an error here",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.TokenNorm(), modules.Feedforward()))


@case(
    "m-layer-norm-whole",
    "LayerNorm over tokens and features together, padded on the right",
    semantic("batch_statistics", "padding_leak"),
    floor=1e-2,
    origin="layer_norm",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.WholeNorm(), modules.Feedforward()))


@case(
    "m-squeeze-excite",
    "A gate made from the mean over all columns, padded on the right",
    semantic("batch_statistics", "padding_leak", "pooling"),
    floor=1e-3,
    origin="mean",
)
def _() -> Pair:
    return padded(seeded(Tagger, mixers.SqueezeExcite()))
