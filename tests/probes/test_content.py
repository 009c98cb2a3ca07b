"""The content probe: a shared token must not notice what the other run does not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from forkpoint.explain.results import compare_results
from forkpoint.probes import content as content_probe
from forkpoint.probes.content import ContentProbe, content
from forkpoint.probes.precision import precision


def asked(model: nn.Module, a: Any, b: Any) -> ContentProbe:
    both = session(*pair(model, a, b))
    return content(both, precision(both), compare_results(both))


def attention(hidden: Tensor, attention_mask: Tensor, fill: float) -> Tensor:
    scores = (hidden @ hidden.mT).masked_fill(attention_mask[:, None] == 0, fill)
    return hidden + scores.softmax(-1) @ hidden


class Attending(Model):
    fill = float("-inf")

    def mix(self, hidden: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        assert attention_mask is not None
        return attention(hidden, attention_mask, self.fill)


class LeakingPadding(Attending):
    fill = -2.0


class LeakingMates(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden + 3e-7 * hidden.mean(0, keepdim=True)


class LeakingFuture(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden + F.pad(hidden, (0, 0, -1, 1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_that_is_masked(side):
    found = asked(Attending(), batch(ids()), batch(ids(), **{side: 2}))
    assert (found.leaks, found.asked, found.result.outcome) == (False, True, "untouched")
    assert (
        found.result.text == "other content in the padding or the batch changes not one bit of a shared token"
    )


@pytest.mark.parametrize("swap", [False, True])
def test_padding_that_leaks(swap):
    a, b = batch(ids()), batch(ids(), right=2)
    found = asked(LeakingPadding(), *((b, a) if swap else (a, b)))
    assert (found.leaks, found.run, found.result.outcome) == (True, "a" if swap else "b", "changes")
    assert found.result.figure > 1e-6


@pytest.mark.parametrize(("model", "asked_of_ids"), [(LeakingPadding, False), (Attending, True)])
def test_where_rows_leak_nobody_asks_of_ids(model, asked_of_ids, monkeypatch):
    asked_for: list[object] = []
    with_ids = content_probe._with_ids

    def counted(*args: Any, **more: Any) -> Any:
        asked_for.append(args)
        return with_ids(*args, **more)

    monkeypatch.setattr(content_probe, "_with_ids", counted)
    assert asked(model(), batch(ids()), batch(ids(), right=2)).leaks is not asked_of_ids
    assert bool(asked_for) is asked_of_ids


def test_a_leak_as_small_as_rounding():
    tokens = ids(3)
    found = asked(LeakingMates(), batch(tokens[:1]), batch(tokens))
    assert found.leaks
    assert found.result.figure < 1e-5


def test_later_tokens_that_one_run_alone_has():
    tokens = ids(1, 6)
    found = asked(LeakingFuture(), {"input_ids": tokens[:, :4]}, {"input_ids": tokens})
    assert found.leaks
    assert not asked(Model(), {"input_ids": tokens[:, :4]}, {"input_ids": tokens}).leaks


def test_nothing_to_replace():
    found = asked(LeakingMates(), batch(ids()), batch(ids().flip(0)))
    assert (found.leaks, found.asked, found.result.outcome) == (False, False, "nothing")


def test_float_inputs_are_replaced_too():
    class Floats(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean(1, keepdim=True)

    from forkpoint import Layout, Run

    x = torch.randn(1, 3, 7)
    padded, mask = F.pad(x, (0, 0, 0, 2)), torch.tensor([[1, 1, 1, 0, 0]])
    both = session(Run(Floats(), {"x": x}), Run(Floats(), {"x": padded}, layout=Layout.from_mask(mask)))
    assert content(both, precision(both), compare_results(both)).leaks


def test_the_run_s_own_inputs_stay_as_they_are():
    b = batch(ids(), right=2)
    before = b["input_ids"].clone()
    asked(LeakingPadding(), batch(ids()), b)
    assert torch.equal(b["input_ids"], before)


def test_the_vector_of_another_row_may_change():
    """ViT's pooled vector comes from a learned token, so that nobody knows whose row it is."""
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(config).eval()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = asked(model, {"pixel_values": images[:1]}, {"pixel_values": images})
    assert found.asked
    assert found.result.outcome == "untouched"


class Reading(Attending):
    """Reads ids without a lookup."""

    def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
        self.read = self.reads(input_ids)
        return super().forward(input_ids, **inputs)

    def mix(self, hidden: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Tensor:
        return super().mix(hidden, attention_mask, **inputs) + self.read.view(-1, 1, 1)

    def reads(self, ids: Tensor) -> Tensor:
        return ids.sum(1) / 100


class ReadingPads(Reading):
    def reads(self, ids: Tensor) -> Tensor:
        return (ids != 0).sum(1) / 100


class Counting(Reading):
    def reads(self, ids: Tensor) -> Tensor:
        return (ids % 2 == 0).sum().expand(len(ids)) / 100


def test_ids_of_padding_that_an_op_reads():
    found = asked(Reading(), batch(ids()), batch(ids(), right=2))
    assert (found.leaks, found.ids, found.padding, found.run) == (True, True, True, "b")
    assert found.result.text.startswith(
        "other token ids where the other run has none changes the result of run B"
    )


def test_ids_of_padding_that_are_only_compared_are_the_layouts():
    found = asked(ReadingPads(), batch(ids()), batch(ids(), right=2))
    assert (found.leaks, found.ids, found.asked) == (False, False, True)


def test_ids_of_other_rows():
    found = asked(Counting(), batch(ids()[:1]), batch(ids()))
    assert (found.leaks, found.ids, found.padding) == (True, True, False)


@pytest.mark.parametrize("pad", [0, 7])
def test_ids_of_padding_where_all_tokens_have_one(pad):
    tokens = torch.full((1, 4), 5)
    found = asked(Reading(), batch(tokens), batch(tokens, right=2, pad=pad))
    assert (found.leaks, found.ids, found.padding) == (True, True, True)
    found = asked(Attending(), batch(tokens), batch(tokens, right=2, pad=pad))
    assert (found.leaks, found.ids, found.asked) == (False, False, True)


def test_ids_of_other_rows_where_all_tokens_have_one():
    tokens = torch.full((1, 4), 5)
    found = asked(Counting(), batch(tokens), batch(torch.cat([tokens, ids()])))
    assert (found.leaks, found.ids, found.padding) == (True, True, False)


def test_a_model_that_refuses_other_ids_is_asked_with_its_own():
    class Refusing(Attending):
        def forward(self, input_ids: Tensor, **inputs: Any) -> Any:
            if input_ids.shape[1] == 6 and input_ids[0, -1] != 0:
                raise ValueError("no padding at the end")
            return super().forward(input_ids, **inputs)

    found = asked(Refusing(), batch(ids()), batch(ids(), right=2))
    assert (found.leaks, found.result.outcome) == (False, "untouched")
