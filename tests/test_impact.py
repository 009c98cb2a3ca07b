"""Does it matter: loss, predictions and the largest gap, at the tokens that both runs have."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.plain import VOCABULARY, Model, batch, ids, pair, twin
from torch import Tensor

import forkpoint as fp


class Shifted(Model):
    """Moves the logits of one token."""

    by: Tensor | None = None

    def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        logits = super().forward(input_ids)["logits"]
        if self.by is not None:
            logits = logits.clone()
            logits[1, 2] += self.by
        return {"logits": logits, "count": torch.tensor(input_ids.shape[0])}


def shifted(by: Tensor) -> tuple[Shifted, Shifted]:
    model = Shifted()
    other = twin(model)
    other.by = by
    return model, other


def impact(model: Model, a: Any, b: Any, other: Model | None = None) -> fp.Impact:
    found = fp.compare(*pair(model, a, b, other), probes=False).impact
    assert found is not None
    return found


def logits(model: Model, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens)["logits"].double()


def test_runs_that_are_equal():
    tokens = ids()
    found = impact(Shifted(), batch(tokens), batch(tokens))
    loss = F.cross_entropy(logits(Shifted(), tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert found.loss_a == pytest.approx(float(loss))
    assert (found.loss_b, found.loss_gap) == (found.loss_a, 0)
    assert (found.max_abs, found.max_rel, found.max_kl, found.top1_flips, found.tokens) == (0, 0, 0, 0, 8)


def test_a_prediction_that_flips():
    tokens = ids()
    plain = logits(Shifted(), tokens)[1, 2]
    second = int(plain.topk(2).indices[1])
    by = torch.zeros(VOCABULARY)
    by[second] = 3
    model, other = shifted(by)
    found = impact(model, batch(tokens), batch(tokens), other)
    assert (found.top1_flips, found.result) == (1, "logits")
    (flip,) = found.flips
    assert (flip.sample, flip.position, flip.token_a, flip.token_b) == (1, 2, int(plain.argmax()), second)
    assert flip.margin_a == pytest.approx(float(plain.max() - plain[second]), rel=1e-6)
    assert flip.margin_b == pytest.approx(3 - flip.margin_a, rel=1e-6)
    assert found.max_abs == pytest.approx(3)
    a, b = plain.log_softmax(-1), (plain + by).log_softmax(-1)
    assert found.max_kl == pytest.approx(float((a.exp() * (a - b)).sum()), rel=1e-5)
    assert found.loss_gap == pytest.approx(abs(float(a[tokens[1, 3]] - b[tokens[1, 3]])) / 6, rel=1e-4)


def test_only_shared_tokens_count():
    tokens = ids(1, 4)
    longer = torch.cat([tokens, ids(1, 2, seed=5)], 1)
    found = impact(Model(), {"input_ids": tokens}, {"input_ids": longer})
    assert found.tokens == 4
    assert found.loss_gap == pytest.approx(0, abs=1e-6)


def test_the_worst_result_is_named_where_there_are_no_logits():
    class Two(Model):
        by = 0.0

        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            hidden = self.embed(input_ids)
            return {
                "hidden": hidden,
                "pooled": hidden.mean(1) * (1 + self.by),
                "loss": hidden.sum() + self.by,
            }

    model = Two()
    other = twin(model)
    other.by = 0.5
    found = impact(model, batch(ids()), batch(ids()), other)
    assert (found.max_kl, found.top1_flips) == (None, None)
    assert found.loss_gap == pytest.approx(0.5, rel=1e-4)
    assert found.result in ("loss", "pooled")
    assert found.max_abs > 0.1


def test_infinite_logits_of_both_runs_are_no_distance():
    class Masked(Model):
        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            logits = super().forward(input_ids)["logits"].clone()
            logits[..., 0] = -math.inf
            return {"logits": logits}

    found = impact(Masked(), batch(ids()), batch(ids()))
    assert (found.max_abs, found.max_kl) == (0, 0)


def test_integers_alone_have_no_impact():
    class Counts(Model):
        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            return {"out": input_ids + 1}

    result = fp.compare(*pair(Counts(), batch(ids()), batch(ids())), probes=False)
    assert result.impact is None
    assert result.identical
