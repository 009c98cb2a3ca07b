"""What states a layout under other names and in other forms; inputs of other names; models behind callables."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import models
from .case import BITS, DIFFERS, SAME, UNCHECKED, Pair, Side, case
from .exact import gap, picked
from .expect import BUFFERS, IDENTICAL, LEAK_EITHER, PARAMETERS, SOUND, inputs, semantic
from .modules import seeded
from .pairs import twice
from .tokens import floats, row, whole, words

# ---------------------------------------------------------------------- audio, channels first


class Audio(nn.Module):
    """A convolution over [rows, channels, samples] that may leave padding alone, as it should."""

    def __init__(self, channels: int = 1, *, masks: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 4, 3, padding=1)
        self.masks = masks

    def forward(
        self, input_values: Tensor, padding_mask: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        if lengths is not None:
            padding_mask = torch.arange(input_values.shape[-1])[None] < lengths[:, None]
        if self.masks and padding_mask is not None:
            input_values = input_values * (padding_mask != 0)[:, None]
        return self.conv(input_values)


def _first(samples: int) -> Callable[[list[Any]], Tensor]:
    return lambda outputs: outputs[0][:1, :, :samples]


def _audio(masks: bool, how: str, *, channels: int = 1) -> Pair:
    """One row of 9 samples, and the same padded to 14 next to a row of 14."""
    x, mate = floats(1, channels, 9), floats(1, channels, 14, seed=1)
    together = torch.cat([F.pad(x, (0, 5), value=2.0), mate])
    real = torch.arange(14)[None] < torch.tensor([[9], [14]])
    stated = {
        "bool": {"padding_mask": real},
        "int": {"padding_mask": real.long()},
        "channels": {"padding_mask": real[:, None].expand(-1, channels, -1)[:, :1]},
        "lengths": {"lengths": torch.tensor([9, 14])},
    }
    alone = {"lengths": {"lengths": torch.tensor([9])}}  # of four channels, else they pass for columns
    model = seeded(Audio, channels, masks=masks)
    if how == "by hand":
        a, b = (lambda fp: fp.Layout.from_mask(real[:1, :9])), (lambda fp: fp.Layout.from_mask(real))
        call = _masked_by(real) if masks else None
        return Pair(
            Side(model, {"input_values": x}, _first(9), layout=a),
            Side(model, {"input_values": together}, _first(9), layout=b, call=call),
        )
    return Pair(
        Side(model, {"input_values": x, **alone.get(how, {})}, _first(9)),
        Side(model, {"input_values": together, **stated[how]}, _first(9)),
    )


def _masked_by(real: Tensor) -> Callable[[Any, Any], Any]:
    return lambda model, given: model(**given, padding_mask=real)


def _register_audio(how: str, channels: int) -> None:
    @case(
        f"42-audio-{how.replace(' ', '-')}",
        f"A row of audio alone or padded next to another; {how} says where it is",
        *SOUND,
        truth=SAME,
        note="True is a real sample, as in transformers' audio models",
    )
    def _() -> Pair:
        return _audio(True, how, channels=channels)

    @case(
        f"42-audio-{how.replace(' ', '-')}-ignored",
        "The same, and the convolution reads what is in the padding",
        LEAK_EITHER,
        truth=DIFFERS,
    )
    def _() -> Pair:
        return _audio(False, how, channels=channels)


for _how, _channels in (("bool", 2), ("int", 2), ("lengths", 4), ("by hand", 3)):
    _register_audio(_how, _channels)


@case("42-audio-of-one-channel", "One channel, masked before the convolution", *SOUND, truth=SAME)
def _() -> Pair:
    return _audio(True, "bool")


@case(
    "42-audio-of-one-channel-ignored",
    "One channel, and the convolution reads what is in the padding",
    LEAK_EITHER,
    truth=DIFFERS,
)
def _() -> Pair:
    return _audio(False, "bool")


# ---------------------------------------------------------------------- images of several sizes


class Patches(nn.Module):
    """The mean over the pixels of an image, with or without its padding."""

    def __init__(self, *, masks: bool) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 8, 1)
        self.masks = masks

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> Tensor:
        seen = (
            pixel_mask[:, None].to(pixel_values.dtype) if self.masks else torch.ones_like(pixel_values[:, :1])
        )
        return (self.mix(pixel_values) * seen).sum((2, 3)) / seen.sum((2, 3))


def _images(*, masks: bool) -> Pair:
    image = floats(1, 3, 4, 4)
    padded, mask = F.pad(image, (0, 2, 0, 2), value=1.5), F.pad(torch.ones(1, 4, 4).long(), (0, 2, 0, 2))
    model = seeded(Patches, masks=masks)
    a = {"pixel_values": image, "pixel_mask": torch.ones(1, 4, 4).long()}
    return Pair(Side(model, a, whole()), Side(model, {"pixel_values": padded, "pixel_mask": mask}, whole()))


@case("42-pixel-mask", "An image alone or padded; its mask says so, and is used", *SOUND, truth=SAME)
def _() -> Pair:
    return _images(masks=True)


@case("42-pixel-mask-ignored", "The same, averaged over its padding", semantic(), truth=DIFFERS)
def _() -> Pair:
    return _images(masks=False)


# ---------------------------------------------------------------------- nested tensors, and time first


class Jagged(nn.Module):
    """A layer over rows of their own lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.scale = 1.0

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        rows = [part[: int(n)] for part, n in zip(x, attention_mask.sum(1), strict=True)]
        nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
        return torch.nested.to_padded_tensor(self.linear(nested) * self.scale, 0.0, (*x.shape[:2], 8))


def _jagged(scale: float) -> Pair:
    a, x = seeded(Jagged), floats(2, 5, 8)
    b = copy.deepcopy(a)
    b.scale = scale
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    wide = {"x": F.pad(x, (0, 0, 0, 3), value=2.0), "attention_mask": F.pad(mask, (0, 3))}
    return Pair(
        Side(a, {"x": x, "attention_mask": mask}, lambda outputs: outputs[0][:, :3]),
        Side(b, wide, lambda outputs: outputs[0][:, :3]),
    )


@case("42-jagged", "A jagged nested tensor inside a model, padded or not", *SOUND, truth=SAME)
def _() -> Pair:
    return _jagged(1.0)


@case("42-jagged-scaled", "The same, scaled by 1.5 in one run", semantic(), truth=UNCHECKED)
def _() -> Pair:
    return _jagged(1.5)


def _time_major(output: int) -> Pair:
    model, x = seeded(nn.GRU, 8, 8), floats(5, 2, 8)

    def layout(columns: int) -> Callable[[Any], Any]:
        real = torch.arange(columns)[:, None].expand(columns, 2) < 5
        sample = torch.where(real, torch.arange(2)[None], -1)
        position = torch.where(real, torch.arange(columns)[:, None], -1)
        return lambda fp: fp.Layout([fp.Coordinates(sample, position)])

    def call(module: Any, given: Any) -> Any:
        return module(**given)[output]

    def pick(outputs: list[Any]) -> Tensor:
        return outputs[0][:5]

    return Pair(
        Side(model, {"input": x}, pick, layout=layout(5), call=call),
        Side(model, {"input": F.pad(x, (0, 0, 0, 0, 0, 3), value=1.0)}, pick, layout=layout(8), call=call),
    )


@case(
    "42-time-major",
    "A recurrent layer that takes time first; its layout is given by hand",
    *SOUND,
    truth=SAME,
)
def _() -> Pair:
    return _time_major(0)


@case(
    "42-time-major-last-state",
    "The same, of which the state after the padding is returned",
    semantic(),
    truth=DIFFERS,
)
def _() -> Pair:
    return _time_major(1)


# ---------------------------------------------------------------------- inputs by their own name


class Tasks(nn.Module):
    """Token embeddings with one for the task of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tasks = nn.Embedding(101, 8), nn.Embedding(4, 8)

    def forward(self, input_ids: Tensor, task_id: Tensor) -> Tensor:
        return self.words(input_ids) + self.tasks(task_id)[:, None]


def _tasks(task: int) -> Pair:
    model, ids = seeded(Tasks), row(words(9))
    return Pair(
        Side(model, {"input_ids": ids, "task_id": torch.tensor([1])}, whole()),
        Side(model, {"input_ids": ids, "task_id": torch.tensor([task])}, whole()),
    )


@case("42-task-id", "An integer input that is no token differs", inputs(None), truth=DIFFERS)
def _() -> Pair:
    return _tasks(2)


@case("42-task-id-same", "The same task in both runs", IDENTICAL, truth=BITS)
def _() -> Pair:
    return _tasks(1)


# ---------------------------------------------------------------------- models behind callables


def _calling(model: nn.Module) -> Callable[[Any, Any], Any]:
    return lambda _, given: model(**given)


def _behind(a: nn.Module, b: nn.Module) -> Pair:
    given, nothing = {"input_ids": row(words(9))}, nn.Identity()
    return Pair(
        Side(nothing, given, whole(), call=_calling(a)), Side(nothing, dict(given), whole(), call=_calling(b))
    )


@case("42-two-closures", "Two functions that call two models with other weights", PARAMETERS, truth=DIFFERS)
def _() -> Pair:
    return _behind(models.llama("sdpa"), models.llama("sdpa", seed=1))


@case("42-two-closures-alike", "Two functions that call a model and its copy", IDENTICAL, truth=BITS)
def _() -> Pair:
    model = models.llama("sdpa")
    return _behind(model, copy.deepcopy(model))


# ---------------------------------------------------------------------- buffers that were narrowed


def _rotary(narrowed: tuple[bool, bool]) -> Pair:
    sides = [models.cast(models.llama("sdpa"), torch.bfloat16) for _ in range(2)]
    for model, narrow in zip(sides, narrowed, strict=True):
        rotary = model.model.rotary_emb
        rotary.inv_freq = rotary.inv_freq.bfloat16() if narrow else rotary.inv_freq
    return twice(*sides)


def _parameters_alike(pair: Pair) -> None:
    a, b = (dict(side.model.named_parameters()) for side in (pair.a, pair.b))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert gap(picked(pair.a), picked(pair.b)) > 1e-3


@case(
    "42-rotary-table-narrowed",
    "Two bfloat16 models, the rotary frequencies of one in bfloat16 too",
    BUFFERS,
    truth=UNCHECKED,
    check=_parameters_alike,
    note="a table is no weight: nothing but an error rounds it in one of two models of one dtype",
)
def _() -> Pair:
    return _rotary((False, True))


@case("42-rotary-table-narrowed-in-both", "The same in both runs", IDENTICAL, truth=BITS)
def _() -> Pair:
    return _rotary((True, True))


# ---------------------------------------------------------------------- positions that collapse


class Rotating(nn.Module):
    """Rotates embeddings by positions that pass through a dtype."""

    def __init__(self, positions: torch.dtype) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(101, 16), nn.Linear(16, 16)
        self.register_buffer("speeds", 1e4 ** (-torch.arange(8) / 8))
        self.positions = positions

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        angles = torch.arange(input_ids.shape[1]).to(self.positions)[:, None].float() * self.speeds
        angles = torch.cat([angles, angles], -1)
        turned = torch.cat([-x[..., 8:], x[..., :8]], -1)
        return self.out(x * angles.cos().to(x.dtype) + turned * angles.sin().to(x.dtype))


def _rotating(length: int, a: torch.dtype, b: torch.dtype, *, mates: int = 0) -> Pair:
    models_ = [models.cast(seeded(Rotating, dtype), torch.bfloat16) for dtype in (a, b)]
    ids = torch.randint(1, 101, (1 + mates, length), generator=torch.Generator().manual_seed(5))
    return Pair(
        Side(models_[0], {"input_ids": ids[:1]}, whole()),
        Side(models_[1], {"input_ids": ids}, lambda outputs: outputs[0][:1]),
    )


def _positions_alone(pair: Pair) -> None:
    """In float64 but for the positions, the runs differ: the weights are the same, and nothing else is rounded."""
    a, b = (copy.deepcopy(side.model).double() for side in (pair.a, pair.b))
    ids = pair.a.calls[0]["input_ids"]
    with torch.no_grad():
        assert gap(a(ids), b(ids)) > 1e-2
    positions = torch.arange(ids.shape[1])
    assert len(positions.bfloat16().unique()) < len(positions)


@case(
    "42-positions-in-bfloat16",
    "Positions pass through bfloat16 in one run, in which 300 of them are fewer",
    semantic(None, by_design=None),
    truth=UNCHECKED,
    check=_positions_alone,
    note="done in float64 they are all apart, so that the gap vanishes there",
)
def _() -> Pair:
    return _rotating(300, torch.int64, torch.bfloat16)


@case(
    "42-positions-in-bfloat16-few", "A hundred positions, which bfloat16 tells apart", IDENTICAL, truth=BITS
)
def _() -> Pair:
    return _rotating(100, torch.int64, torch.bfloat16)


@case(
    "42-positions-in-bfloat16-in-both",
    "300 positions that collapse in both runs, one with a batch mate",
    *SOUND,
    truth=SAME,
)
def _() -> Pair:
    return _rotating(300, torch.bfloat16, torch.bfloat16, mates=1)
