"""Couplings that look like a known one and are something else: a claim needs the experiment, not the form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .case import Pair, case
from .cases_coupling import LOUD
from .cases_couplings import mixing
from .exact import gap, picked
from .expect import OUTLIERS, SCALE, SOUND, one_of, semantic
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
