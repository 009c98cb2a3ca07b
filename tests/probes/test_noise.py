"""Noise moves what is rounded by no more than that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor

from forkpoint.probes.noise import Noise
from forkpoint.promotion import Promotion


class Plain(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden * 2


def test_noise_moves_a_result_by_rounding_alone_and_by_its_seed():
    both = session(*pair(Plain(), batch(ids()), batch(ids())))

    def noisy(seed: int) -> Tensor:
        promotion = Promotion()
        noise = Noise(seed, promotion.value)
        return both.a.in_float64(promotion, under=lambda: noise)[0]["logits"][0]

    exact = both.a.in_float64(Promotion())[0]["logits"][0]
    moved = [noisy(seed) for seed in (0, 0, 1)]
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])
    for value in moved:
        assert 0 < float((value - exact).abs().max()) < 1e-14


class Written(Model):
    """Writes a product to a tensor of its own: one that is there before the run, or one that the run makes."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.register_buffer("table", torch.linspace(-1, 1, 13 * 13).view(13, 13))
        self.register_buffer("held", torch.zeros(2, 4, 13))

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        out = self.held if self.before else torch.empty_like(hidden)
        torch.matmul(hidden, self.table, out=out)
        return out


@pytest.mark.parametrize("before", [True, False])
def test_noise_moves_what_is_written_to_a_tensor_by_no_more(before):
    class Silent(Noise):
        def _moved(self, value: Tensor) -> Tensor:
            moves.append(value.dtype)
            return value.clone() if len(moves) != 3 else super()._moved(value)  # embedding, linear, matmul

    moves: list[torch.dtype] = []
    model = Written(before=before)
    both = session(*pair(model, batch(ids()), batch(ids())))
    promotion = Promotion()
    noise = Silent(0, promotion.value)
    moved = both.a.in_float64(promotion, under=lambda: noise)[0]["logits"][0]
    exact = both.a.in_float64(Promotion())[0]["logits"][0]
    assert 0 < float((moved - exact).abs().max()) < 1e-13
    assert not model.held.any()


class Elementary(Model):
    """Rounds nothing but in functions whose results may be exact as well."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = mix

    def forward(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        return self.function(input_ids.double())


@pytest.mark.parametrize("name", ["exp", "sin", "sqrt", "div", "pow", "add_"])
def test_noise_moves_what_elementary_functions_round(name):
    given = {"div": (3.0,), "pow": (0.3,), "add_": (0.1,)}.get(name, ())
    model = Elementary(lambda x: getattr(x + 2, name)(*given))
    assert 0 < _change(model) < 2.0**-50


@pytest.mark.parametrize("mix", [lambda x: (1 - x) * 0.5, lambda x: x / 4 + 8, lambda x: x.mul_(3)])
def test_what_is_exact_stays_exact(mix):
    assert _change(Elementary(mix)) == 0


def _change(model: Model) -> float:
    """The largest change by noise, relative to the values."""
    both = session(*pair(model, batch(ids()), batch(ids())))
    promotion = Promotion()
    noise = Noise(0, promotion.value)
    moved = both.a.in_float64(promotion, under=lambda: noise)[0]["output"][0]
    exact = both.a.in_float64(Promotion())[0]["output"][0]
    return float(((moved - exact) / exact).abs().nan_to_num(0.0).max())
