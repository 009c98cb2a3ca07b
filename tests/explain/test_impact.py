"""Does it matter: loss, predictions and the largest gap, at the tokens that both runs have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.plain import VOCABULARY, Model, batch, ids, pair, twin
from torch import Tensor

import forkpoint as fp


class Shifted(Model):
    """Moves the logits of one token; a causal language model by its own account."""

    loss_type = "ForCausalLM"

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


def test_a_loss_that_is_all_a_model_returns_has_a_gap():
    def run(model: Model) -> fp.Run:
        given = {"input_ids": ids(), "labels": ids()}
        return fp.Run(model, given, call=lambda model, inputs: model(inputs["input_ids"])["logits"].mean())

    model = Model()
    other = twin(model)
    with torch.no_grad():
        other.head.weight.mul_(2)
    found = fp.compare(run(model), run(other), probes=False).impact
    assert found is not None
    assert found.loss_source == "returned"
    assert found.loss_gap == abs(found.loss_b - found.loss_a) > 0
    assert fp.compare(run(model), run(model), probes=False).impact.loss_gap == 0


def test_only_shared_tokens_count():
    tokens = ids(1, 4)
    longer = torch.cat([tokens, ids(1, 2, seed=5)], 1)
    found = impact(Shifted(), {"input_ids": tokens}, {"input_ids": longer})
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


class Returns(Model):
    """Returns its logits and whatever else a function makes of them."""

    loss_type: str | None = None

    def __init__(self, more: Callable[[Tensor, dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self.more = more

    def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        logits = super().forward(input_ids)["logits"]
        return {"logits": logits, **self.more(logits, {"input_ids": input_ids, **inputs})}


def cross_entropy(logits: Tensor, inputs: dict[str, Any]) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())


def test_integers_enter_no_gap():
    class Counts(Model):
        by = 0

        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            return {"out": input_ids + 1, "n": 1000 + self.by, "text": "even" if self.by % 2 == 0 else "odd"}

    model = Counts()
    other = twin(model)
    same = impact(model, batch(ids()), batch(ids()), other)
    assert (same.discrete_compared, same.discrete_differing, same.max_abs, same.result) == (10, 0, 0, "")
    other.by = 77
    result = fp.compare(*pair(model, batch(ids()), batch(ids()), other))
    found = result.impact
    assert found is not None
    assert (found.discrete_compared, found.discrete_differing, found.max_abs) == (10, 2, 0)
    assert result.verdict.kind is fp.VerdictKind.SEMANTIC
    assert "in float64 2 of 10 integer results differ" in [e.text for e in result.verdict.evidence]


def test_a_loss_that_is_returned_is_shown_as_it_is():
    model = Returns(lambda logits, inputs: {"loss": 3 * cross_entropy(logits, inputs)})
    tokens = ids()
    inputs = {**batch(tokens), "labels": tokens}
    found = impact(model, inputs, inputs)
    expected = model(**inputs)["loss"].item()
    assert (found.loss_a, found.loss_b, found.loss_gap, found.loss_source) == (
        expected,
        expected,
        0,
        "returned",
    )
    assert (found.losses_a, found.losses_b) == ((expected,), (expected,))


def test_the_first_number_of_a_tuple_is_the_loss_if_labels_were_given():
    tokens = ids()
    inputs = {**batch(tokens), "labels": tokens}

    def call(model: Model, given: dict[str, Any]) -> Any:
        logits = model(**given)["logits"]
        return cross_entropy(logits, inputs), logits

    def of(given: dict[str, Any]) -> fp.Impact:
        found = fp.compare(*pair(Model(), given, given, call=call), probes=False).impact
        assert found is not None
        return found

    assert of(inputs).loss_a == pytest.approx(float(cross_entropy(logits(Model(), tokens), inputs)))
    assert of(batch(tokens)).loss_a is None


def test_a_returned_loss_counts_in_the_gap():
    model = Returns(lambda logits, _: {"loss": logits.sum()})
    other = Returns(lambda logits, _: {"loss": logits.sum() + 7})
    found = impact(model, batch(ids()), batch(ids()), other)
    assert (found.result, found.max_kl) == ("loss", 0)
    assert found.max_abs == pytest.approx(7, rel=1e-5)
    assert found.loss_gap == pytest.approx(7, rel=1e-5)


def test_losses_of_several_calls_are_averaged_or_added_up():
    tokens = ids(4, 5)
    halves = [batch(tokens[:2]), batch(tokens[2:])]
    layout = fp.Layout(
        [
            fp.Layout.from_mask(torch.ones(2, 5)).calls[0],
            _shift(fp.Layout.from_mask(torch.ones(2, 5)).calls[0], 2),
        ]
    )
    for loss in (lambda x, _: {"loss": x.exp().mean()}, lambda x, _: {"loss": x.exp().sum().item()}):
        model = Returns(loss)
        result = fp.compare(fp.Run(model, batch(tokens)), fp.Run(model, halves, layout=layout))
        found = result.impact
        assert found is not None
        assert result.verdict.kind in (fp.VerdictKind.IDENTICAL, fp.VerdictKind.ROUNDING)
        assert (len(found.losses_a), len(found.losses_b)) == (1, 2)
        assert found.loss_a == pytest.approx(found.loss_b, rel=1e-5)


def _shift(entry: Any, by: int) -> dict[str, fp.Coordinates]:
    return {"input_ids": fp.Coordinates(entry["main"].sample + by, entry["main"].position)}


def test_only_a_causal_model_has_its_loss_recomputed():
    tokens = ids()
    assert impact(Model(), batch(tokens), batch(tokens)).loss_a is None
    found = impact(Shifted(), batch(tokens), batch(tokens))
    assert found.loss_source == "recomputed from input_ids"
    labels = tokens.clone()
    labels[:, :3] = -100
    inputs = {**batch(tokens), "labels": labels}
    found = impact(Shifted(), inputs, inputs)
    assert found.loss_source == "recomputed from labels"
    expected = F.cross_entropy(logits(Shifted(), tokens)[:, -2], tokens[:, -1])
    assert found.loss_a == pytest.approx(float(expected))
