"""Audits find planted leaks with their sizes, and raise no alarm where there is none."""

import json

import pytest
import torch
import torch.nn.functional as F
from tests.architectures import ARCHITECTURES
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.auditing.record import Audit
from forkpoint.auditing.sizes import thresholds
from forkpoint.runs.returned import cache_parameters

X = torch.randn(600, 64, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))


def switching_norm(x: Tensor) -> Tensor:
    """A norm whose sums are made in another order from 256 rows on."""
    squares = x.pow(2)
    mean = (
        squares.mean(-1, keepdim=True)
        if len(x) < 256
        else squares.flip(-1).cumsum(-1)[..., -1:] / x.shape[-1]
    )
    return x * torch.rsqrt(mean + 1e-6)


def steady(x: Tensor, weight: Tensor) -> Tensor:
    """A product in blocks of 64 rows."""
    blocks = F.pad(x, (0, 0, 0, -len(x) % 64)).split(64)
    return torch.cat([F.linear(block, weight) for block in blocks])[: len(x)]


def coarse(x: Tensor, weight: Tensor) -> Tensor:
    """The same with weights of fewer bits."""
    return steady(x, weight.bfloat16().to(weight.dtype) if weight.dtype is torch.float32 else weight)


def test_a_norm_that_switches_is_found_at_its_size():
    found = fp.audit(switching_norm, X)
    (one,) = found.breaks
    assert (one.kind, one.other, one.size) == ("rows", 255, 256)
    assert not found.holds
    assert one.kernels is not None
    assert "aten::flip" in one.kernels[0] and "aten::flip" not in one.kernels[1]
    assert max(found.breaking) < 256
    with pytest.raises(fp.DifferenceError, match="255"):
        found.check()


@pytest.mark.parametrize("function", [steady, lambda x, weight: F.softmax(x, -1), lambda x, weight: x * 2])
def test_no_alarm_on_what_holds(function):
    found = fp.audit(function, X, WEIGHT)
    assert found.holds, str(found)
    assert found.tried > 60


def test_a_steady_but_less_exact_product_is_a_finding():
    found = fp.audit(coarse, X, WEIGHT, reference=F.linear)
    assert not found.breaks
    assert found.precision is not None and found.precision.worse
    assert not found.holds
    assert fp.audit(steady, X, WEIGHT, reference=F.linear).holds


def test_a_row_that_follows_its_place_is_found():
    found = fp.audit(lambda x: x + torch.arange(len(x))[:, None], X)
    (one,) = found.breaks
    assert one.kind == "order"


def test_prefixes_of_a_causal_attention():
    q, k, v = (torch.randn(1, 2, 90, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).masked_fill(
            ~torch.ones(90, 90).tril().bool()[: q.shape[2], : q.shape[2]], -torch.inf
        )
        parts = [
            scores[..., [row], : row + 1].softmax(-1) @ v[..., : row + 1, :] for row in range(q.shape[2])
        ]
        return torch.cat(parts, 2)

    def leaking(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return whole(q, k, v) + (1e-7 if q.shape[2] > 64 else 0)

    cut = {0: 2, 1: 2, 2: 2}
    (one,) = fp.audit(leaking, q, k, v, cut=cut, sizes=[60, 70, 90]).breaks
    assert (one.other, one.size) == (64, 65)


class Leaking(nn.Module):
    """A model whose tokens know how long their row is, from some length on."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__()
        self.model, self.at, self.config = model, at, model.config

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        made = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
            **{cache_parameters(self.model)[0]: cache},
        )  # fmt: skip
        if input_ids.shape[1] > self.at:
            made.logits = made.logits * (1 + 1e-6)
        return made


def test_a_model_within_invariant_holds_and_one_that_leaks_does_not():
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    with fp.invariant(model):
        found = fp.audit(model, longest=24)
        assert found.holds, str(found)
        assert found.tried > 100
    leaking = Leaking(model, 20).eval()
    with fp.invariant(model):
        found = fp.audit(leaking, longest=24)
    kinds = {one.kind: one for one in found.breaks}
    assert kinds["right padding"].size == 1
    assert "1 token with 64 columns of padding on the right" in kinds["right padding"].words
    assert kinds["steps"].size == 21
    assert all(one.op is not None for one in found.breaks)
    assert "batch" not in kinds


def test_stock_attention_is_found_with_its_op():
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    found = fp.audit(model, longest=20)
    assert not found.holds
    assert all(one.op is not None for one in found.breaks)


def test_an_engine_behind_a_callable():
    prompts = [[index, index + 1] for index in range(1, 41)]

    def engine(batch):
        return [
            torch.tensor(prompt, dtype=torch.float32) * (1 + 1e-6 * (len(batch) > 17)) for prompt in batch
        ]

    found = fp.audit(engine, prompts=prompts)
    (batch, order) = found.breaks
    assert (batch.kind, batch.size, order.kind) == ("batch", 18, "order")
    assert fp.audit(lambda batch: [torch.tensor(one) for one in batch], prompts=prompts).holds


def test_it_is_written(tmp_path):
    found = fp.audit(switching_norm, X)
    found.to_json(tmp_path / "audit.json")
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["holds"] is False and told["breaks"][0]["size"] == 256
    assert "call of 256 than of 255" in str(found)


def test_time_that_runs_out_is_said():
    found = fp.audit(lambda x: x * 2, X, seconds=-1)
    assert "want of time" in found.unfinished
    assert found.tried or not found.holds


def test_what_cannot_be_audited():
    with pytest.raises(fp.InputError, match="rows"):
        fp.audit(lambda x: x, torch.zeros(1, 4))
    with pytest.raises(fp.InputError, match="language model"):
        fp.audit(nn.Linear(2, 2))


def test_thresholds():
    sizes = thresholds(600, edges=(300,))
    assert {1, 40, 63, 64, 65, 255, 256, 257, 299, 300, 301, 511, 513, 600} <= set(sizes)
    assert max(sizes) == 600


def test_what_compared_nothing_does_not_hold():
    found = Audit("f", 0, (), unfinished="all, for want of time")
    assert not found.holds
    assert "Nothing was compared" in str(found)
    with pytest.raises(fp.DifferenceError):
        found.check()
