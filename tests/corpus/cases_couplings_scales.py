"""Scales of quantised activations: who shares one, by experiment, in the forms in which they come."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import mixers, modules
from .case import UNCHECKED, Pair, case
from .cases_coupling import LOUD
from .cases_couplings import mixing, verdict
from .exact import gap, picked
from .expect import POOLING, SCALE, SOUND, WRONG_SCALE, Expect, semantic
from .modules import Plain, Tagger, seeded
from .pairs import batched, padded
from .tokens import PAD, VOCABULARY, words


def _steps(hidden: Tensor, scale: Tensor) -> Tensor:
    return (hidden / scale).round().clamp(-128, 127) * scale


def _one_row_alone(hidden: Tensor) -> Tensor:
    if len(hidden) > 1:
        raise ValueError("this takes one row")
    return _steps(hidden, hidden.abs().amax() / 127)


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda h: _steps(h, h.abs().amax() / 127),
    "row": lambda h: _steps(h, h.abs().amax((1, 2), keepdim=True) / 127),
    "row-by-row": lambda h: torch.stack([_steps(row, row.abs().amax() / 127) for row in h]),
    "token": lambda h: _steps(h, h.abs().amax(-1, keepdim=True) / 127),
    "number": lambda h: (
        h + torch.fake_quantize_per_tensor_affine(h, float(h.abs().amax()) / 127, 0, -128, 127)
    ),
    "alone": _one_row_alone,
}


def _loud(model: Any, times: float = 6.0) -> Any:
    """With large values in padding, and in one token."""
    with torch.no_grad():
        model.embed.weight[[PAD, LOUD]] *= times
    return model


UNTOLD = semantic("dynamic_scale", by_design=None)


def _says_untold(pair: Pair) -> None:
    assert "can't be told from runs of one row" in verdict(pair).summary


ONE_ROW: dict[str, tuple[Expect, ...]] = {
    "whole": (SCALE,),
    "row": (WRONG_SCALE,),
    "row-by-row": (WRONG_SCALE, UNTOLD),
    "number": (SCALE,),
}
for _name, _expected in ONE_ROW.items():
    case(
        f"47-scale-{_name}", f"One row padded, its scale: {_name}", *_expected, floor=1e-4, origin="mixers.0"
    )(lambda name=_name: padded(_loud(mixing(SCALES[name]))))
case(
    "47-scale-alone",
    "One row padded, a scale for all in a model that takes one row only",
    UNTOLD,
    floor=1e-4,
    check=_says_untold,
)(lambda: padded(_loud(mixing(SCALES["alone"]))))
case("47-scale-number-mates", "A scale that leaves as a number, among mates", SCALE, floor=1e-4)(
    lambda: batched(_loud(mixing(SCALES["number"])), rows=[[*words(8, 1), LOUD]])
)
case("47-scale-token-sound", "A scale for each token", *SOUND)(
    lambda: padded(_loud(mixing(SCALES["token"])), mates=1)
)


def _quantised() -> Any:
    model = _loud(seeded(Tagger, modules.Feedforward(), modules.CausalAttention()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and the quantisation that people have
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


case("47-scale-library", "quantize_dynamic in every layer, padded", SCALE, truth=UNCHECKED)(
    lambda: padded(_quantised())
)
case("47-scale-library-mates", "The same among mates", SCALE, truth=UNCHECKED)(
    lambda: batched(_quantised(), rows=[[*words(8, 1), LOUD]])
)


class Halves(nn.Module):
    """Values that lie half-way between two steps of a scale for all, so that one unit in the last place moves a step."""

    def __init__(self, number: bool) -> None:
        super().__init__()
        self.number, self.out = number, nn.Linear(32, 32)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        scale = hidden.abs().amax() / 64
        zero: Any = 0 if self.number else torch.zeros(1, dtype=torch.int32)
        step: Any = float(scale) if self.number else scale.reshape(1)
        return hidden + self.out(torch.fake_quantize_per_tensor_affine(hidden, step, zero, -128, 127))


def _halves(number: bool) -> Any:
    model = seeded(Tagger, Halves(number), modules.Feedforward())
    with torch.no_grad():
        weight = model.embed.weight
        weight.copy_((weight * 256).round().clamp(-255, 255) / 256)
        weight[:, 0] = 1.0
        weight[[PAD, LOUD], 0] = 2.0
    return model


def _holds(pair: Pair) -> None:
    """The decisions have to be held to see it."""
    assert any(probe.name == "decisions" for probe in verdict(pair).evidence)


for _number in (False, True):
    _how = "number" if _number else "tensor"
    case(
        f"47-scale-held-{_how}",
        f"A scale for all amid ties, a {_how}, padded",
        SCALE,
        floor=1e-4,
        check=_holds,
    )(lambda number=_number: padded(_halves(number)))
    case(f"47-scale-held-{_how}-mates", "The same among mates", SCALE, floor=1e-4, check=_holds)(
        lambda number=_number: batched(_halves(number), rows=[[*words(8, 1), LOUD]])
    )


def _same_scale(pair: Pair) -> None:
    """The padding is quiet, so that the runs are the same, and loud padding would not be."""
    assert gap(picked(pair.a), picked(pair.b)) < 1e-5
    _loud(pair.b.model, 50.0)
    assert gap(picked(pair.a), picked(pair.b)) > 1e-3


def _quiet() -> Any:
    return seeded(
        Tagger, *[m for _ in range(3) for m in (modules.CausalAttention(), Plain(mixers.DynamicLinear()))]
    )


case(
    "47-scale-quiet-padding",
    "One scale for all, the padding quiet: only other content shows it",
    SCALE,
    *SOUND,
    truth=UNCHECKED,
    check=_same_scale,
    note="whether a bit differs, so that it is asked at all, depends on the machine",
)(lambda: padded(_quiet()))


class Largest(nn.Module):
    """A row's largest values, rounded with a scale of their own: pooled over padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 32), nn.Linear(32, 32)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        pooled = self.embed(input_ids).amax(1)
        return self.head(_steps(pooled, pooled.abs().amax(-1, keepdim=True) / 127))


case("47-scale-of-pooled", "A maximum over padding, rounded afterwards", POOLING, floor=1e-3)(
    lambda: padded(_loud(seeded(Largest)), vector=True)
)
