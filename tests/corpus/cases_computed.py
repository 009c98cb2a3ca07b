"""Weights that one model computes of its own parameters in each call, and that the other keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from .case import DIFFERS, UNCHECKED, Pair, case
from .exact import gap, picked
from .expect import LOW_PRECISION, semantic
from .modules import Plain, Tagger, seeded
from .pairs import twice

WIDTH = 32

# ---------------------------------------------------------------------- 56: kept in place of what is computed


class LowRank(nn.Module):
    """Adds a product of two thin matrices to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.zeros(WIDTH, 4)), nn.Parameter(torch.zeros(4, WIDTH))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def _norm() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))


def _low_rank() -> nn.Module:
    linear = nn.Linear(WIDTH, WIDTH)
    parametrize.register_parametrization(linear, "weight", LowRank())
    return linear


def _exact_weight(linear: nn.Module) -> Tensor:
    """The weight that is computed, in float64."""
    return copy.deepcopy(linear).double().weight.detach()  # pyright: ignore[reportCallIssue]


def _kept(make: Callable[[], nn.Module], times: float = 1.0) -> Pair:
    """One model computes its weight in each call; the other keeps it, as it is in exact arithmetic, rounded once."""
    computes = seeded(Tagger, Plain(make()))
    keeps = seeded(Tagger, Plain(nn.Linear(WIDTH, WIDTH)))
    with torch.no_grad():
        for name, parameter in keeps.named_parameters():
            if not name.endswith("inner.weight"):
                parameter.copy_(computes.get_parameter(name))
        exact = _exact_weight(computes.mixers[0].inner)
        keeps.mixers[0].inner.weight.copy_((exact * times).float())
    return twice(computes, keeps)


def _by_rounding(pair: Pair) -> None:
    """The weight is half a unit off at most, and what is left in float64 is what that makes: without it nothing is."""
    exact = _exact_weight(pair.a.model.mixers[0].inner)
    keeps = pair.b.model.mixers[0].inner
    assert bool(((keeps.weight.double() - exact).abs() <= 2.0**-24 * exact.abs() * 1.01).all())
    assert 1e-9 < gap(picked(pair.a, exact=True), picked(pair.b, exact=True)) < 1e-5
    pair.b.model = copy.deepcopy(pair.b.model).double()
    pair.b.model.mixers[0].inner.weight = nn.Parameter(exact)
    assert gap(picked(pair.a, exact=True), picked(pair.b, exact=True)) < 1e-13


for _name, _make, _what in (
    ("weight-norm", _norm, "Weight norm"),
    ("low-rank", _low_rank, "A low-rank update of a weight"),
):
    case(
        f"56-{_name}-removed", f"{_what} computed in each call, or once and kept", LOW_PRECISION, truth=UNCHECKED,
        check=_by_rounding,
    )(lambda make=_make: _kept(make))  # fmt: skip
    case(
        f"56-{_name}-removed-scaled", "The same with the kept weight 0.1 % larger", semantic(None), truth=DIFFERS,
        origin=("linear",),
    )(lambda make=_make: _kept(make, 1.001))  # fmt: skip
case(
    "56-weight-norm-removed-slightly-scaled", "The same with the kept weight larger by 30 units in the last place",
    semantic(None), truth=DIFFERS, floor=1e-7, origin=("linear",),
)(lambda: _kept(_norm, 1 + 2.0**-18))  # fmt: skip
