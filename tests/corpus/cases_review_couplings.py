"""Couplings that look like a known one and are something else: a claim needs the experiment, not the form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import Pair, case
from .cases_coupling import LOUD
from .cases_couplings import mixing
from .exact import gap, picked
from .expect import OUTLIERS, SCALE, SOUND, STATISTICS, one_of, semantic
from .modules import Tagger, seeded
from .pairs import batched, padded
from .tokens import PAD, words

Rounding = Callable[[Tensor], Tensor]
NOT_KNOWN = semantic(None, "padding_leak", by_design=one_of(None, False))
"""No known coupling; that padding reaches a token of a module that is given a mask is true of each."""

# ---------------------------------------------------------------------- what is rounded, and what is not


def _scaled(hidden: Tensor, rounding: Rounding, *, down: Any, up: Any) -> Tensor:
    """Steps of a scale over some dimensions, brought back by one over others; `up` is None for not brought back."""
    scale = hidden.abs().amax(down, keepdim=True) / 127
    steps = rounding(hidden / scale)
    return steps / 127 if up is None else steps * (hidden.abs().amax(up, keepdim=True) / 127)


def _outliers(hidden: Tensor, rounding: Rounding, *, forgets: bool) -> Tensor:
    """Each token in int8 by its own scale, columns with an outlier apart: or forgotten."""
    flat = hidden.flatten(0, 1)
    columns = (flat.abs() > 5).any(0)
    quiet = flat.masked_fill(columns, 0)
    scale = quiet.abs().amax(-1, keepdim=True) / 127
    steps = rounding(quiet / scale) * scale
    return (steps if forgets else torch.where(columns, flat, steps)).view_as(hidden)


def _clamped(hidden: Tensor, rounding: Rounding) -> Tensor:
    """Columns with an outlier are clamped, and what comes of it rounded by each token's scale."""
    columns = (hidden.abs() > 5).flatten(0, 1).any(0)
    clamped = torch.where(columns, hidden.clamp(-0.5, 0.5), hidden)
    scale = clamped.abs().amax(-1, keepdim=True) / 127
    return rounding(clamped / scale) * scale


def _loud(function: Callable[..., Tensor]) -> Any:
    """A model in which one token, and padding, have an outlier in a column each."""
    model = mixing(partial(function, rounding=torch.round))
    with torch.no_grad():
        model.embed.weight.clamp_(-1, 1)
        model.embed.weight[LOUD, 5] = 40.0
        model.embed.weight[PAD, 9] = 40.0
    return model


def _by_rounding(pair: Pair) -> None:
    """With nothing rounded the runs are the same."""
    assert _without_rounding(pair) < 1e-5


def _not_by_rounding(pair: Pair) -> None:
    """With nothing rounded the runs are as far apart as before."""
    before = gap(picked(pair.a), picked(pair.b))
    assert _without_rounding(pair) > before / 2


def _without_rounding(pair: Pair) -> float:
    mixer = pair.b.model.mixers[0]
    mixer.function = partial(mixer.function, rounding=lambda value: value)
    return gap(picked(pair.a), picked(pair.b))


ROUNDED: dict[str, tuple[str, Callable[..., Tensor], Any]] = {
    "int8": ("int8 with outlier columns apart", partial(_outliers, forgets=False), OUTLIERS),
    "int8-forgets": ("int8 that forgets its outlier columns", partial(_outliers, forgets=True), NOT_KNOWN),
    "int8-clamps": ("Columns with an outlier are clamped", _clamped, NOT_KNOWN),
    "scale": ("One scale for the tensor", partial(_scaled, down=(0, 1, 2), up=(0, 1, 2)), SCALE),
    "scale-token-back": ("The tensor's scale, brought back by each token's", partial(_scaled, down=(0, 1, 2), up=-1), NOT_KNOWN),
    "scale-never-back": ("The tensor's scale, not brought back", partial(_scaled, down=(0, 1, 2), up=None), NOT_KNOWN),
    "scale-row-token-back": ("A row's scale, brought back by each token's", partial(_scaled, down=(1, 2), up=-1), NOT_KNOWN),
}  # fmt: skip
for _name, (_title, _function, _expected) in ROUNDED.items():
    _check = _not_by_rounding if _expected is NOT_KNOWN else _by_rounding
    case(f"51-{_name}-padded", f"{_title}, padded", _expected, floor=1e-5, check=_check)(
        lambda function=_function: padded(_loud(function))
    )
    if "row" not in _name:
        case(f"51-{_name}-mate", f"{_title}, beside a loud row", _expected, floor=1e-5, check=_check)(
            lambda function=_function: batched(_loud(function), rows=[[*words(8, 1), LOUD], words(9, 2)])
        )
case("51-scale-token-sound", "A scale for each token, brought back by it", *SOUND)(
    lambda: padded(_loud(partial(_scaled, down=-1, up=-1)))
)

# ---------------------------------------------------------------------- statistics, and what comes after them


class Normed(nn.Module):
    """A batch norm in train mode over all tokens, and something after it."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.after = nn.BatchNorm1d(32), after

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.after(self.norm(hidden.mT).mT)


def _normed(after: Callable[[Tensor], Tensor]) -> Any:
    return seeded(Tagger, Normed(after)).train()


def _remains_in_eval_mode(pair: Pair) -> None:
    """With running statistics, which see one token, the runs still differ."""
    pair.a.model.eval()
    pair.b.model.eval()
    assert gap(picked(pair.a), picked(pair.b)) > 1e-3


def _gone_in_eval_mode(pair: Pair) -> None:
    pair.a.model.eval()
    pair.b.model.eval()
    assert gap(picked(pair.a), picked(pair.b)) < 1e-5


IN_PART = semantic("batch_statistics", by_design=None)
AFTER: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "tokens": (lambda h: h + h.softmax(-1), STATISTICS),
    "shift": (lambda h: h + h.roll(1, 0), IN_PART),
    "attention": (lambda h: (h.flatten(0, 1) @ h.flatten(0, 1).T).softmax(-1).matmul(h.flatten(0, 1)).view_as(h), IN_PART),
}  # fmt: skip
for _name, (_after, _expected) in AFTER.items():
    _check = _remains_in_eval_mode if _expected is IN_PART else _gone_in_eval_mode
    case(f"51-norm-then-{_name}", f"A batch norm, then: {_name}", _expected, floor=1e-3, check=_check)(
        lambda after=_after: batched(_normed(after), mates=3)
    )


def _standardised(hidden: Tensor, over: Callable[[Tensor], Tensor]) -> Tensor:
    mean = over(hidden).mean(0)
    return (hidden - mean) / (over(hidden).var(0, unbiased=False) + 1e-5).sqrt() / 2


def _whitened(hidden: Tensor) -> Tensor:
    """A mean taken away, and features mixed by the inverse of their covariance."""
    flat = hidden.flatten(0, 1)
    flat = flat - flat.mean(0)
    return (flat @ torch.linalg.inv(flat.T @ flat / len(flat) + 0.1 * torch.eye(32))).view_as(hidden)


BY_HAND: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "flat": (lambda h: _standardised(h, lambda x: x.flatten(0, 1)), STATISTICS),
    "reshaped": (lambda h: _standardised(h, lambda x: x.transpose(0, 1).reshape(-1, 32)), STATISTICS),
    "whitened": (_whitened, IN_PART),
}
for _name, (_by_hand, _expected) in BY_HAND.items():
    case(f"51-by-hand-{_name}", f"Statistics over all tokens by hand: {_name}", _expected, floor=1e-3)(
        lambda function=_by_hand: batched(mixing(function), mates=3)
    )


# ---------------------------------------------------------------------- a norm, and who is given the mask


class Masking(nn.Module):
    """Is given a mask, and normalises over all columns, padding among them."""

    def __init__(self, by_module: bool) -> None:
        super().__init__()
        self.norm, self.by_module = nn.GroupNorm(2, 32), by_module

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        turned = hidden.mT
        return (self.norm(turned) if self.by_module else F.group_norm(turned, 2)).mT


for _by_module in (True, False):
    _how = "module" if _by_module else "function"
    case(
        f"51-group-norm-{_how}",
        f"A group norm over time, a {_how}, in code that is given a mask",
        semantic("batch_statistics", by_design=False),
        floor=1e-3,
    )(lambda by_module=_by_module: padded(seeded(Tagger, Masking(by_module))))


# ---------------------------------------------------------------------- rotary positions that are divided by the length


class Turning(nn.Module):
    """Attention with rotary positions of a scale of their own."""

    def __init__(self, positions: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.query, self.key, self.positions = nn.Linear(32, 32), nn.Linear(32, 32), positions

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        columns = hidden.shape[1]
        angles = self.positions(columns)[:, None] / 100 ** (torch.arange(0, 32, 2) / 32)
        cosine, sine = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
        query, key = (
            x * cosine + torch.cat([-x[..., 16:], x[..., :16]], -1) * sine
            for x in (self.query(hidden), self.key(hidden))
        )
        seen = mask[:, None].bool() & torch.ones(columns, columns).tril().bool()
        return (query @ key.mT / 4).masked_fill(~seen, -1e9).softmax(-1) @ hidden


for _name, _positions in {
    "divided": lambda columns: torch.arange(columns) / columns * 5,
    "by-number": lambda columns: torch.linspace(0, 5, columns),
    "centred": lambda columns: torch.arange(columns) / 2 - columns / 3,
}.items():
    _expected = SOUND if _name == "centred" else (semantic(None, by_design=None),)  # a shift turns both alike
    case(f"51-rope-positions-{_name}", f"Rotary positions by the length: {_name}", *_expected)(
        lambda positions=_positions: padded(seeded(Tagger, Turning(positions)))
    )
