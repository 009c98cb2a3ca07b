"""Which module is given a mask that tells padding from tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor, nn

from forkpoint.probes.bench import benches
from forkpoint.probes.given import Masked, masked_module
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import precision


class Neighbours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(13, 13, 3, padding=1)

    def forward(self, hidden: Tensor, given: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.convolution(hidden.mT).mT


class Handing(Model):
    """Hands its module the mask under some name, something else called a mask, or nothing."""

    def __init__(self, hands: str) -> None:
        super().__init__()
        self.inner, self.hands = Neighbours(), hands

    def mix(self, hidden: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        assert attention_mask is not None
        given: dict[str, dict[str, Any]] = {
            "nothing": {},
            "causal": {"mask": torch.ones(hidden.shape[1], hidden.shape[1]).tril()},
            "all of it": {"mask": torch.ones_like(attention_mask)},
            "mask": {"mask": attention_mask},
            "for each key": {"mask": (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e9},
            "by another name": {"given": attention_mask == 0},
            "no mask": {"given": hidden.sum(-1)},
        }
        return hidden + self.inner(hidden, **given[self.hands])


def masked(hands: str) -> Masked | None:
    tokens = ids()
    both = session(*pair(Handing(hands), batch(tokens), batch(tokens, right=3)))
    found = origin(both, precision(both))
    assert found is not None
    b, a = benches(both, found)
    return masked_module((a, b), "inner.convolution")


@pytest.mark.parametrize("hands", ["mask", "for each key", "by another name"])
def test_a_module_that_is_given_one(hands):
    assert masked(hands) == Masked("inner", True)


@pytest.mark.parametrize("hands", ["nothing", "causal", "all of it", "no mask"])
def test_what_tells_nothing_of_padding_is_none_and_the_models_own_does_not_count(hands):
    assert masked(hands) is None
