"""Audits find planted leaks with their sizes, and raise no alarm where there is none."""

import json
from collections.abc import Callable
from typing import Any

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


def test_a_reference_is_held_against_the_result_that_has_the_rows():
    def with_sum(product: Callable[..., Tensor]) -> Callable[..., Any]:
        return lambda x, weight: (x.sum(), product(x, weight))

    found = fp.audit(with_sum(coarse), X, WEIGHT, reference=with_sum(F.linear))
    assert found.precision is not None and found.precision.worse
    assert fp.audit(with_sum(coarse), X, WEIGHT, reference=F.linear).precision == found.precision
    assert fp.audit(with_sum(steady), X, WEIGHT, reference=with_sum(F.linear)).holds
    with pytest.raises(fp.InputError, match="shape"):
        fp.audit(steady, X, WEIGHT, reference=lambda x, weight: F.linear(x, weight)[:1])


def test_a_row_that_follows_its_place_is_found():
    found = fp.audit(lambda x: x + torch.arange(len(x))[:, None], X)
    (one,) = found.breaks
    assert one.kind == "order"


LEAK = 1 + 1e-6
memory = torch.empty(600, 64)


def in_the_same_memory(x: Tensor, at: int) -> Tensor:
    """What a captured graph does: each call returns the same memory."""
    return torch.mul(x, LEAK if len(x) > at else 1, out=memory[: len(x)])


@pytest.mark.parametrize(
    ("function", "size"),
    [
        (lambda x: (x * 2, x * LEAK if len(x) > 96 else x), 97),
        (lambda x: in_the_same_memory(x, 33), 34),
        (lambda x: torch.where(x > 0, x, torch.nan if len(x) < 7 else 0), 7),
        (lambda x: x.double() if len(x) > 50 else x, 51),
        (lambda x: torch.complex(x, x * LEAK if len(x) > 70 else x), 71),
    ],
)
def test_a_leak_in_any_result_and_of_any_kind_is_found(function, size):
    (one,) = fp.audit(function, X).breaks
    assert (one.kind, one.size) == ("rows", size)
    assert one.differing > 0 or one.gap == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.mul_(2),
        lambda x: in_the_same_memory(x, 600),
        lambda x: (x.mean(), x * 2, x @ x.t() > 1e9),
        lambda x: torch.where(x > 1, torch.nan, x),
        lambda x: x.argmax(-1),
    ],
)
def test_no_alarm_on_what_a_function_may_do_to_its_rows(function):
    found = fp.audit(function, X.clone())
    assert found.holds, str(found)
    assert found.largest == 600


def test_what_does_not_repeat_itself_is_no_matter_of_sizes():
    generator = torch.Generator().manual_seed(0)
    calls = [0]

    def counting(x: Tensor) -> Tensor:
        calls[0] += 1
        return x + (calls[0] * 1e-6 if len(x) == 1 else 0)

    (one,) = fp.audit(lambda x: x + torch.rand(1, generator=generator), X).breaks
    assert (one.kind, one.size) == ("again", 600)
    (one,) = fp.audit(counting, X).breaks
    assert (one.kind, one.size) == ("again", 1)
    model = ARCHITECTURES["gpt2"].build(attention="eager", attn_pdrop=0.5).train()
    (one,) = fp.audit(model, longest=8).breaks
    assert one.kind == "again" and "run again" in one.words and one.op is not None


def test_results_that_follow_no_rows_are_refused():
    with pytest.raises(fp.InputError, match="dimension 0"):
        fp.audit(lambda x: x.sum(), X)


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
    """A model whose results are another number where it is told so, by default in calls with more columns than some."""

    def __init__(self, model: nn.Module, leaks: int | Callable[[Tensor, int], Any]) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.leaks = leaks if callable(leaks) else lambda ids, _: ids.shape[1] > leaks

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def forward(self, input_ids, attention_mask=None, position_ids=None, cache=None, use_cache=None):
        made = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
            **{cache_parameters(self.model)[0]: cache},
        )  # fmt: skip
        before = 0 if cache is None else cache.get_seq_length()
        made.logits = made.logits * (1 + 1e-6 * self.leaks(input_ids, before))
        return made


def test_a_model_within_invariant_holds_and_one_that_leaks_does_not():
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    with fp.invariant(model):
        found = fp.audit(model, longest=12)
        assert found.holds, str(found)
        assert found.tried > 100
    leaking = Leaking(model, 10).eval()
    with fp.invariant(model):
        found = fp.audit(leaking, longest=12)
    kinds = {one.kind: one for one in found.breaks}
    assert kinds["right padding"].size == 1
    assert "1 token with 10 columns of padding on the right" in kinds["right padding"].words
    assert kinds["steps"].size == 11
    assert all(one.op is not None for one in found.breaks)
    assert "batch" not in kinds


LEAKS = {
    "in a batch of 5": lambda ids, before: len(ids) == 5 and not before,
    "in a batch of 2": lambda ids, before: (torch.arange(len(ids)) > 0).float()[:, None, None],
    "with the last ones one by one from a cache, in a batch of 4": lambda ids, before: (
        before == 3 and len(ids) > 3
    ),
}


@pytest.mark.parametrize("words", LEAKS)
def test_leaks_of_models_are_found_wherever_they_begin(words):
    model = ARCHITECTURES["llama"].build(attention="sdpa", num_hidden_layers=1)
    with fp.invariant(model):
        found = fp.audit(Leaking(model, LEAKS[words]).eval(), longest=8)
    assert any(f" {words} ha" in one.words for one in found.breaks), str(found)
    assert all(one.op is not None and one.op.startswith("(model)") for one in found.breaks)


def test_sizes_at_which_no_layout_was_left_to_compare_are_not_said_to_be_tried():
    model = ARCHITECTURES["llama"].build(attention="sdpa", num_hidden_layers=1)
    leaking = Leaking(model, lambda ids, before: 10 * len(ids) + ids.shape[1]).eval()
    with fp.invariant(model):
        found = fp.audit(leaking, longest=20)
        assert fp.audit(model, longest=3).largest == 3
    assert {one.kind for one in found.breaks} == {"right padding", "left padding", "batch", "steps", "chunks"}
    assert found.largest == max(one.size for one in found.breaks) == 2


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

    def same_memory(batch):
        rows = memory[: len(batch), :2]
        return list(torch.mul(torch.tensor(batch), LEAK if len(batch) > 3 else 1, out=rows))

    assert fp.audit(same_memory, prompts=prompts).breaks[0].size == 4
    second = fp.audit(lambda batch: [(1.0, float(len(batch) > 8)) for _ in batch], prompts=prompts)
    assert second.breaks[0].size == 9
    assert fp.audit(lambda batch: [f"{one}" for one in batch], prompts=prompts).holds


@pytest.mark.parametrize("result", [None, [], {}, object()])
def test_an_engine_whose_results_have_no_values_does_not_hold(result):
    with pytest.raises(fp.InputError, match="no tensor"):
        fp.audit(lambda batch: [result for _ in batch], prompts=["one", "two"])


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
    for argument, cut in (((X,), None), (3.0, None), (X, {0: 2}), (X, {1: 0})):
        with pytest.raises(fp.InputError, match="of which dimension"):
            fp.audit(lambda x: x, argument, cut=cut)
    assert fp.audit(lambda x: x, X, cut={0: -1}).holds


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
