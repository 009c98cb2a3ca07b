"""The attention probe: other keys, or the same keys with other weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor

from forkpoint.probes.attention import sees_other_keys
from forkpoint.probes.origin import origin
from forkpoint.probes.precision import precision
from forkpoint.result import ProbeResult


class Attending(Model):
    """Causal attention over the mask's tokens; `change` turns what is allowed into something wrong."""

    scale = 1.0

    @staticmethod
    def change(allowed: Tensor) -> Tensor:
        return allowed

    def mix(self, hidden: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        assert attention_mask is not None
        width = hidden.shape[1]
        allowed = attention_mask[:, None].bool() & torch.ones(width, width).tril().bool()
        return hidden + self.attend(hidden, self.change(allowed | torch.eye(width).bool()))

    def attend(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        scores = (hidden @ hidden.mT * self.scale).masked_fill(~allowed, -1e9)
        return scores.softmax(-1) @ hidden


class Fused(Attending):
    def attend(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        x = hidden[:, None]
        return F.scaled_dot_product_attention(x, x, x, attn_mask=allowed[:, None], scale=self.scale)[:, 0]


class Linear(Attending):
    def attend(self, hidden: Tensor, allowed: Tensor) -> Tensor:
        return self.scale * (allowed.to(hidden.dtype) @ hidden)


def _hides(allowed: Tensor) -> Tensor:
    allowed = allowed.clone()
    allowed[:, -1, -2] = False
    return allowed


def _shows(allowed: Tensor) -> Tensor:
    allowed = allowed.clone()
    allowed[:, -1, 0] = True
    return allowed


def asked(model: Attending, left: int = 0, **wrong: Any) -> ProbeResult | None:
    other = twin(model)
    for name, value in wrong.items():
        setattr(other, name, value)
    both = session(*pair(model, batch(ids()), batch(ids(), left=left), other))
    found = origin(both, precision(both))
    assert found is not None
    return sees_other_keys(both, found)


@pytest.mark.parametrize("model", [Attending, Fused])
@pytest.mark.parametrize("left", [0, 2])
def test_a_key_is_hidden(model, left):
    shown = asked(model(), left, change=_hides)
    assert shown is not None
    assert (shown.name, shown.outcome) == ("attention", "other keys")
    assert "in run A alone" in shown.text


@pytest.mark.parametrize("model", [Attending, Fused])
def test_padding_is_shown(model):
    shown = asked(model(), left=2, change=_shows)
    assert shown is not None
    assert shown.outcome == "other keys"
    assert "a key that the other run lacks in run B alone" in shown.text


@pytest.mark.parametrize("model", [Attending, Fused])
@pytest.mark.parametrize("left", [0, 2])
def test_the_same_keys_with_other_weights(model, left):
    shown = asked(model(), left, scale=1.5)
    assert shown is not None
    assert shown.outcome == "same keys"


def test_attention_without_weights_to_read():
    assert asked(Linear(), scale=1.5) is None
