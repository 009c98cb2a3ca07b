"""Decisions taken on rounded values: quantisers, thresholds and routing that rounding flips, or that something moves."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from tests.deciding import Decided, flipped_by_rounding, flips, gap_with_one_routing, moved, moved_by_padding
from torch import Tensor, nn

from . import modules
from .case import UNCHECKED, Pair, Side, case
from .cases_coupling import _loud_tagger, _only_through_outliers
from .exact import gap, picked
from .expect import IDENTICAL, OUTLIERS, ROUNDING, SCALE, SOUND, UNDETERMINED, semantic
from .modules import Tagger, seeded
from .pairs import padded, twice
from .tokens import PAD, at

# ---------------------------------------------------------------------- outlier columns, in plain torch


class OutlierLinear(nn.Linear):
    """Rounds activations to int8 by each token's largest value; columns with an outlier stay as they are."""

    def __init__(self, width: int = modules.WIDTH, threshold: float = 6.0) -> None:
        super().__init__(width, width)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        large = flat.abs() >= self.threshold if self.threshold else torch.zeros_like(flat, dtype=torch.bool)
        columns = large.any(0).nonzero().squeeze(-1)
        quiet = flat.masked_fill(large, 0.0)
        scale = quiet.abs().amax(-1, keepdim=True) / 127
        steps = torch.round(quiet / scale)
        steps[:, columns] = 0
        out = F.linear(steps * scale, self.weight) + F.linear(flat[:, columns], self.weight[:, columns])
        return (out + self.bias).unflatten(0, x.shape[:-1])


def _emulated(threshold: float) -> Any:
    """A tagger whose padding has an outlier in a column."""
    model = seeded(Tagger, modules.Plain(OutlierLinear(threshold=threshold)), modules.Feedforward())
    with torch.no_grad():
        model.embed.weight.clamp_(-1, 1)
        model.embed.weight[PAD, 9] = 40.0
    return model


def _only_through_the_threshold(pair: Pair) -> None:
    """With the threshold the runs differ in float64, too; without it not in a bit."""
    assert gap(picked(pair.a, exact=True), picked(pair.b, exact=True)) > 1e-5
    for side in (pair.a, pair.b):
        side.model = copy.deepcopy(side.model)
        side.model.mixers[0].inner.threshold = 0.0
    assert gap(picked(pair.a), picked(pair.b)) < 1e-5


@case(
    "40-int8-emulated-padding",
    "int8 with outlier columns in plain torch, padding with an outlier",
    OUTLIERS,
    truth=UNCHECKED,
    check=_only_through_the_threshold,
    origin=("mixers.0.inner",),
)
def _() -> Pair:
    return padded(_emulated(6.0), "right")


@case(
    "40-int8-emulated-no-threshold",
    "The same without a threshold: a scale for each token",
    *SOUND,
    truth=UNCHECKED,
    check=lambda pair: _small(pair, 1e-5),
)
def _() -> Pair:
    return padded(_emulated(0.0), "right")


def _small(pair: Pair, most: float) -> None:
    assert gap(picked(pair.a), picked(pair.b)) <= most


# ---------------------------------------------------------------------- the library's layers


@case(
    "40-int8-library-left",
    "bitsandbytes int8, threshold 6, padding with an outlier on the left",
    OUTLIERS,
    truth=UNCHECKED,
    check=_only_through_outliers,
    origin=("mixers.0.inner",),
)
def _() -> Pair:
    return padded(_loud_tagger(), "left")


@case(
    "40-int8-library-no-threshold",
    "The same with a threshold of 0: every row has its own scale",
    IDENTICAL,
    truth=UNCHECKED,
    check=lambda pair: _small(pair, 0),
)
def _() -> Pair:
    return padded(_loud_tagger(threshold=0.0), "left")


def _nf4(model: Any) -> Any:
    import bitsandbytes as bnb

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and "head" not in name:
                narrow = bnb.nn.Linear4bit(child.in_features, child.out_features, quant_type="nf4")
                narrow.load_state_dict(child.state_dict())
                setattr(module, name, narrow)
    return model.to("cpu").eval()


def _weights_only(model: Any) -> Any:
    """Weights in int8 with a scale for each row, activations as they are."""

    class Narrow(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
            self.register_buffer("scale", scale)
            self.register_buffer("narrow", torch.round(linear.weight.detach() / scale).to(torch.int8))
            self.bias = linear.bias

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.narrow.to(x.dtype) * self.scale, self.bias)

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Narrow(child))
    return model.eval()


def _attending() -> Any:
    return seeded(Tagger, modules.CausalAttention(width=64), modules.Feedforward(width=64), width=64)


@case(
    "40-nf4-padding",
    "bitsandbytes nf4, padded: weights alone are quantised",
    *SOUND,
    truth=UNCHECKED,
    check=lambda pair: _small(pair, 1e-5),
)
def _() -> Pair:
    return padded(_nf4(_attending()), "right")


@case("40-int8-weights-only", "Weights in int8, activations as they are, padded", *SOUND)
def _() -> Pair:
    return padded(_weights_only(_attending()), "left")


# ---------------------------------------------------------------------- fp8 and int4


class Steps(nn.Linear):
    """Activations rounded to few steps: int4 by groups of eight features, or a float of 8 bits."""

    def __init__(self, kind: str, shared: bool = False, width: int = modules.WIDTH) -> None:
        super().__init__(width, width)
        self.kind, self.shared = kind, shared

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(-1, (-1, 8)) if self.kind == "int4" else x
        largest = groups.abs().amax() if self.shared else groups.abs().amax(-1, keepdim=True)
        if self.kind == "int4":
            scale = largest / 7
            steps = (groups / scale).round().clamp(-8, 7).to(torch.int8)
        else:
            scale = largest / 448
            steps = (groups / scale).to(torch.float8_e4m3fn)
        return F.linear((steps.to(x.dtype) * scale).view_as(x), self.weight, self.bias)


def _stepping(kind: str, shared: bool) -> Any:
    model = seeded(
        Tagger, modules.CausalAttention(), modules.Plain(Steps(kind, shared)), modules.Feedforward()
    )
    with torch.no_grad():
        model.embed.weight[PAD] *= 9
    return model


for _kind in ("int4", "fp8"):
    case(
        f"40-{_kind}-scale-per-token",
        f"Activations in {_kind} with scales of a token's own, padded",
        *SOUND,
        truth=UNCHECKED,
        check=lambda pair: _small(pair, 0.2),
        note="rounding may flip a step, so that the gap need not be small",
    )(lambda kind=_kind: padded(_stepping(kind, shared=False), "right"))
    case(
        f"40-{_kind}-scale-shared",
        f"Activations in {_kind} with one scale for all tokens, padding louder than the rest",
        SCALE,
        floor=1e-4,
        origin=("amax", "div", "mixers.1"),
    )(lambda kind=_kind: padded(_stepping(kind, shared=True), "right"))


# ---------------------------------------------------------------------- ties


class Tied(nn.Module):
    """Rounds what is half a step in exact arithmetic, so that the last bit decides of a whole one."""

    def __init__(self, backwards: bool = False, width: int = modules.WIDTH) -> None:
        super().__init__()
        self.backwards, self.by = backwards, 0.0
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        parts = [hidden * (0.1 * n) for n in range(1, 9)]
        total = torch.zeros_like(hidden)
        for part in reversed(parts) if self.backwards else parts:
            total = total + part
        again = torch.zeros_like(hidden)
        for part in parts[1::2] + parts[::2]:
            again = again + part
        steps = torch.where(total > again, 1.0, -1.0).to(hidden.dtype)
        return hidden + self.out(steps * (1 + self.by))


def _ties(by: float = 0.0) -> Pair:
    a, b = (seeded(Tagger, Tied(backwards), modules.Feedforward()) for backwards in (False, True))
    b.mixers[0].by = by
    return twice(a, b)


def _tied(pair: Pair) -> None:
    """The last bit decides of much, and what it decides on is nothing to speak of in float64."""
    assert gap(picked(pair.a), picked(pair.b)) > 1e-3
    hidden = pair.a.model.embed.weight.detach().double()
    parts = [hidden * (0.1 * n) for n in range(1, 9)]
    assert float((math.fsum([]) + sum(parts) - sum(reversed(parts))).abs().max()) < 1e-14


@case(
    "40-tie-in-another-order",
    "A tie that is decided by the order of a sum",
    ROUNDING,
    truth=UNCHECKED,
    check=_tied,
)
def _() -> Pair:
    return _ties()


@case(
    "40-tie-and-another-scale",
    "The same, and what follows is scaled otherwise in one run",
    semantic(None, by_design=None),
    truth=UNCHECKED,
    check=_tied,
    origin=("mixers.0",),
)
def _() -> Pair:
    return _ties(by=1e-3)


class Chaos(nn.Module):
    """Doubles what differs at each of many steps, until nothing is left of where it began."""

    def __init__(self, backwards: bool = False) -> None:
        super().__init__()
        self.backwards = backwards

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        parts = [hidden * (0.1 * n) for n in range(1, 9)]
        total = torch.zeros_like(hidden)
        for part in reversed(parts) if self.backwards else parts:
            total = total + part
        state = total.sigmoid()
        for _ in range(80):
            state = 4 * state * (1 - state)
        return hidden + state


def _hides_all(pair: Pair) -> None:
    for exact in (False, True):
        assert gap(picked(pair.a, exact=exact), picked(pair.b, exact=exact)) > 1e-2


@case(
    "40-chaos",
    "Rounding that grows to all there is, in float64 too",
    UNDETERMINED,
    truth=UNCHECKED,
    check=_hides_all,
    note="noise as large as the gap proves nothing",
)
def _() -> Pair:
    return twice(seeded(Tagger, Chaos()), seeded(Tagger, Chaos(backwards=True)))


# ---------------------------------------------------------------------- experts


def _of(pair: Decided) -> Pair:
    real = pair.b["attention_mask"]
    return Pair(Side(pair.model, pair.a, at(pair.a["attention_mask"])), Side(pair.model, pair.b, at(real)))


def _flipped(_: Pair) -> None:
    pair = next(flipped_by_rounding())
    assert flips(pair)
    assert gap_with_one_routing(pair) < 1e-12


@case(
    "40-experts-flipped",
    "Experts in bfloat16, padded: rounding flips the routing of a token",
    ROUNDING,
    truth=UNCHECKED,
    check=_flipped,
)
def _() -> Pair:
    return _of(next(flipped_by_rounding()))


for _index, _name in enumerate(("capacity", "threshold", "choosing", "tied-capacity")):

    def _moved(_: Pair, index: int = _index) -> None:
        assert moved(next(islice(moved_by_padding(), index, None)))

    case(
        f"40-experts-moved-{_name}",
        "Experts in bfloat16, padded: padding moves the routing of a token",
        semantic(),
        truth=UNCHECKED,
        check=_moved,
        origin=("experts.0",),
    )(lambda index=_index: _of(next(islice(moved_by_padding(), index, None))))


# ---------------------------------------------------------------------- decided in one precision alone


class Rescaled(nn.Module):
    """Scales all tokens down if anything of the call is beyond float16, as T5's layers clamp them."""

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        large = hidden * 4000
        if bool(large.isinf().any()):
            large = large.clamp(-6000, 6000)
        return hidden + large / 8000


def _overflowing(loud: float) -> Any:
    model = seeded(Tagger, Rescaled(), modules.Feedforward())
    with torch.no_grad():
        model.embed.weight.clamp_(-3, 3)
        model.embed.weight[7:] *= 8
        model.embed.weight[7:].clamp_(-8, 8)
        model.embed.weight[PAD, 3] = loud
    return model.half()


def _in_float16_alone(pair: Pair) -> None:
    assert gap(picked(pair.a), picked(pair.b)) > 1e-2
    assert gap(picked(pair.a, exact=True), picked(pair.b, exact=True)) < 1e-12


@case(
    "40-overflow-in-padding",
    "All tokens are clamped as soon as one overflows float16, which padding does",
    semantic(),
    truth=UNCHECKED,
    check=_in_float16_alone,
    origin=("mixers.0",),
)
def _() -> Pair:
    return padded(_overflowing(30.0), "right")


@case(
    "40-overflow-nowhere",
    "The same, and nothing overflows",
    *SOUND,
    truth=UNCHECKED,
    check=lambda pair: _small(pair, 1e-2),
)
def _() -> Pair:
    return padded(_overflowing(1.0), "right", mates=0)


# ---------------------------------------------------------------------- decisions that nobody sees


class Packed(nn.Module):
    """PyTorch's own dynamic quantisation: one scale for all that comes in, inside the operator."""

    def __init__(self, width: int = modules.WIDTH) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + self.inner(hidden)


def _dynamic() -> Any:
    model = seeded(Tagger, Packed(), modules.Feedforward())
    with torch.no_grad():
        model.embed.weight[PAD] *= 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and the quantisation that people have
        return torch.ao.quantization.quantize_dynamic(model, {"mixers.0.inner"}, dtype=torch.qint8)


def _only_through_padding(pair: Pair) -> None:
    assert gap(picked(pair.a), picked(pair.b)) > 1e-4
    for side in (pair.a, pair.b):
        side.model = copy.deepcopy(side.model)
        with torch.no_grad():
            side.model.embed.weight[PAD] = 0
    assert gap(picked(pair.a), picked(pair.b)) < 1e-5


@case(
    "40-dynamic-quantisation-padding",
    "quantize_dynamic, padding louder than the rest",
    SCALE,
    truth=UNCHECKED,
    check=_only_through_padding,
    origin=("mixers.0.inner",),
)
def _() -> Pair:
    return padded(_dynamic(), "right")


@case(
    "40-dynamic-quantisation-quiet",
    "quantize_dynamic, padding that is nothing",
    *SOUND,
    truth=UNCHECKED,
    check=lambda pair: _small(pair, 1e-5),
)
def _() -> Pair:
    model = _dynamic()
    with torch.no_grad():
        model.embed.weight[PAD] = 0
    return padded(model, "right")
