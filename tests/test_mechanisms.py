"""Known causes, recognised by what their ops do in modules of no known name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.plain import Model, batch, ids, pair
from tests.slugs import rounding_slugs, slugs_in_the_source
from torch import Tensor

import forkpoint as fp
from forkpoint import mechanisms
from forkpoint.mechanisms import ROUNDING_ADVICE, couplings
from forkpoint.probes.coupling import LATER, PADDING, ROWS
from forkpoint.report.words import Words
from forkpoint.result import MECHANISMS


class Attending(Model):
    """Causal attention, written out; a subclass changes what it may see."""

    def allowed(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return mask[:, None].bool() & torch.ones(hidden.shape[1], hidden.shape[1]).tril().bool()

    def mix(self, hidden: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        mask = torch.ones(hidden.shape[:2]) if attention_mask is None else attention_mask
        scores = (hidden @ hidden.mT).masked_fill(~self.allowed(hidden, mask), -1e9)
        return hidden + scores.softmax(-1) @ hidden


class IgnoresMask(Attending):
    def allowed(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return torch.ones(hidden.shape[1], hidden.shape[1]).tril().bool()[None]


class LastColumn(Model):
    def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        hidden = self.layers[0](self.embed(input_ids)).tanh()
        return {"pooled": self.layers[1](hidden[:, -1])}


class MeanOfAll(Model):
    def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        return {"pooled": self.layers[1](self.embed(input_ids).mean(1))}


class Convolution(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden + F.conv1d(F.pad(hidden.mT, (2, 0)), torch.full((13, 1, 3), 0.3), groups=13).mT


class WholeScale(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        scale = hidden.abs().amax() / 7
        return (hidden / scale).round().clamp(-7, 7) * scale


class Statistics(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return F.batch_norm(hidden.mT, None, None, training=True).mT


class Columns(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        angles = torch.arange(hidden.shape[1])[:, None] * 0.3
        return hidden * angles.cos() + hidden.roll(1, -1) * angles.sin()


PADDING_ON_THE_LEFT = batch(ids()), batch(ids(), left=2)
PADDING_ON_THE_RIGHT = batch(ids()), batch(ids(), right=2)
MATES = batch(ids(5)[4:]), batch(ids(5))  # the largest value is in another row

CASES = [
    (IgnoresMask, PADDING_ON_THE_LEFT, "attention_mask", False),
    (LastColumn, PADDING_ON_THE_RIGHT, "pooling", False),
    (MeanOfAll, PADDING_ON_THE_RIGHT, "pooling", False),
    (Convolution, PADDING_ON_THE_LEFT, "padding_leak", False),  # it was given a mask
    (WholeScale, MATES, "dynamic_scale", True),
    (Statistics, MATES, "batch_statistics", True),
    (Columns, PADDING_ON_THE_LEFT, "position_ids", False),
]


@pytest.mark.parametrize(("model", "inputs", "slug", "by_design"), CASES, ids=[case[2] + str(i) for i, case in enumerate(CASES)])  # fmt: skip
def test_a_cause_is_told_by_what_its_ops_do(model, inputs, slug, by_design):
    found = fp.compare(*pair(model(), *inputs)).verdict
    assert (found.kind, found.mechanism) == (fp.VerdictKind.SEMANTIC, slug)
    assert found.by_design is by_design
    assert found.advice.endswith(".")


def test_a_leak_of_a_model_that_is_given_no_mask():
    a, b = PADDING_ON_THE_LEFT
    layouts = [fp.Layout.from_mask(x["attention_mask"]) for x in (a, b)]
    runs = [
        fp.Run(Convolution(), {"input_ids": x["input_ids"]}, layout=y)
        for x, y in zip((a, b), layouts, strict=True)
    ]
    found = fp.compare(*runs).verdict
    assert (found.mechanism, found.by_design) == ("padding_leak", None)


@pytest.mark.parametrize(
    "known",
    [(PADDING,), (LATER,), (ROWS, PADDING), (PADDING, LATER), (ROWS, LATER), (ROWS, PADDING, LATER)],
    ids=", ".join,
)
def test_a_leak_is_said_to_come_from_what_moved_a_token_alone_and_from_nothing_else(known: tuple[str, ...]):
    said = couplings._where(known)
    for kind, words in ((PADDING, "padding of its own row"), (LATER, "later tokens"), (ROWS, "other rows")):
        assert (words in said) is (kind in known)
    assert Words("zh").can_say(said)


def test_a_sound_model_has_no_cause():
    for inputs in (PADDING_ON_THE_LEFT, PADDING_ON_THE_RIGHT, MATES):
        found = fp.compare(*pair(Attending(), *inputs)).verdict
        assert found.kind in (fp.VerdictKind.IDENTICAL, fp.VerdictKind.ROUNDING), found


def test_packed_samples_that_see_each_other():
    tokens = ids(2)
    packed = {"input_ids": tokens.reshape(1, -1), "position_ids": torch.arange(4).repeat(2)[None]}
    found = fp.compare(*pair(Attending(), {"input_ids": tokens}, packed)).verdict
    assert (found.kind, found.mechanism, found.by_design) == (fp.VerdictKind.SEMANTIC, "packing", False)


def test_a_stale_cache():
    class Cached(Model):
        late = 0.0

        def mix(
            self, hidden: Tensor, past_key_values: Any = None, late: float = 0.0, **inputs: Any
        ) -> Tensor:
            past = None if past_key_values is None else past_key_values[0] + late
            self.kept = hidden if past is None else torch.cat([past, hidden], 1)
            width = self.kept.shape[1]
            causal = torch.arange(width) <= torch.arange(width - hidden.shape[1], width)[:, None]
            return hidden + (hidden @ self.kept.mT).masked_fill(~causal, -1e9).softmax(-1) @ self.kept

        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            return super().forward(input_ids, **inputs) | {"past_key_values": (self.kept,)}

    tokens = ids(1, 6)
    steps = [{"input_ids": tokens[:, :4]}, {"input_ids": tokens[:, 4:]}]
    sound = fp.compare(*pair(Cached(), {"input_ids": tokens}, steps)).verdict
    assert sound.kind in (fp.VerdictKind.IDENTICAL, fp.VerdictKind.ROUNDING)
    stale = fp.compare(*pair(Cached(), {"input_ids": tokens}, [steps[0], steps[1] | {"late": 0.5}])).verdict
    assert (stale.kind, stale.mechanism, stale.by_design) == (fp.VerdictKind.SEMANTIC, "cache_state", False)


def test_every_slug_that_the_source_makes_is_known_once():
    assert len(MECHANISMS) == len(set(MECHANISMS))
    made = slugs_in_the_source()
    assert len(made) >= 15
    assert made <= set(MECHANISMS)


def test_every_slug_of_rounding_has_advice():
    assert set(ROUNDING_ADVICE) == rounding_slugs()


def test_padding_that_is_added_to_a_loss_reaches_no_token() -> None:
    class Summed(Model):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> dict[str, Any]:
            logits = super().forward(input_ids)["logits"]
            return {"logits": logits, "loss": logits.logsumexp(-1).sum() / attention_mask.sum()}

    verdict = fp.compare(*pair(Summed(), *PADDING_ON_THE_RIGHT)).verdict
    assert (verdict.mechanism, verdict.by_design) == ("padding_leak", False)
    assert "reaches a number of the whole call" in verdict.summary


def test_one_origin_that_is_not_meant_is_as_good_as_all(monkeypatch):
    asked: list[str] = []

    def is_meant(case: Any) -> bool:
        asked.append(case.name)
        return case.meant

    monkeypatch.setattr(mechanisms, "_is_meant", is_meant)
    first = SimpleNamespace(is_one_normalisation=lambda other: other.name == "its own")
    others = [
        SimpleNamespace(name=name, meant=meant, attends=attends)
        for name, meant, attends in (
            ("its own", False, False),
            ("meant", True, False),
            ("leak", False, False),
            ("late", True, False),
            ("attention", True, True),
        )
    ]
    rest = mechanisms._unexplained(first, others)  # type: ignore[arg-type]
    assert asked == ["attention", "meant", "leak"]
    assert [other.name for other in rest] == ["leak", "late"]
