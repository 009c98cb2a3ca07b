"""`fp.invariant`: what it promises about threads, exceptions, nesting, copies, and what it refuses by name."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from tests.architectures import ARCHITECTURES, prompt
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.invariance import dispatch
from forkpoint.runs.returned import cache_parameters


class Silu(nn.Module):
    """An activation whose last values a CPU computes by another formula in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


def breaks() -> bool:
    """Whether, right here, the last values of a row differ from the same values in a longer one."""
    x = torch.linspace(-6, 6, 7 * 512)
    return not torch.equal(torch.cat([F.silu(part) for part in x.split(7)]), F.silu(x))


pytestmark = pytest.mark.skipif(not breaks(), reason="this processor computes all values alike")


def test_the_block_ends_with_an_exception():
    model = Silu().eval()
    seen: list[bool] = []

    def fail() -> None:
        with fp.invariant(model):
            seen.append(breaks())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False] and breaks()
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_blocks_may_be_nested():
    one, other = Silu().eval(), Silu().eval()
    with fp.invariant(one):
        with fp.invariant(other):
            assert not breaks()
        assert not breaks()
    assert breaks()


def test_other_threads_are_not_concerned():
    seen: list[bool] = []
    with fp.invariant(Silu().eval()):
        thread = threading.Thread(target=lambda: seen.append(breaks()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_an_error_of_a_kernel_leaves_the_block_as_it_was():
    model = nn.Linear(7, 5).eval()
    with fp.invariant(model):
        with pytest.raises(RuntimeError):
            model(torch.randn(3, 4))
        assert dispatch.is_active()
        assert not breaks()


def test_attention_in_other_threads_is_the_models_own():
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    inputs = ARCHITECTURES["llama"].inputs([prompt(9), prompt(5)], side="left")
    made: list[Tensor] = []

    def run() -> None:
        with torch.no_grad():
            made.append(model(**inputs).logits)

    run()
    with fp.invariant(model):
        assert model.config._attn_implementation == "forkpoint"
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(*made)


def test_a_copy_made_within_is_invariant_too():
    model = ARCHITECTURES["gpt2"].build(attention="sdpa")
    row = {"input_ids": torch.tensor([prompt(40)])}
    with torch.no_grad(), fp.invariant(model):
        copied = copy.deepcopy(model)
        assert torch.equal(copied(**row).logits, model(**row).logits)


def _with_compiled_forward() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    model[0].forward = torch.compile(model[0].forward, backend="eager")
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(4, 4), "in training mode"),
        (lambda: torch.compile(nn.Linear(4, 4).eval()), "compiled"),
        (_with_compiled_forward, "compiled"),
        (lambda: nn.Linear(4, 4, device="meta").eval(), "on meta"),
        (
            lambda: nn.Embedding(4, 4, _weight=torch.zeros(4, 4, dtype=torch.int8), _freeze=True).eval(),
            "int8",
        ),
    ],
)
def test_what_cannot_be_invariant_is_refused(make, words):
    with pytest.raises(fp.InvarianceError, match=words), fp.invariant(make()):
        raise AssertionError


def test_training_and_autocast_are_refused_when_they_come_later():
    model = nn.Linear(4, 4).eval()
    with fp.invariant(model):
        with pytest.raises(fp.InvarianceError, match="autocast"), torch.autocast("cpu"):
            model(torch.randn(2, 4))
        model.train()
        with pytest.raises(fp.InvarianceError, match="training"):
            model(torch.randn(2, 4))


def test_generation_in_a_batch_gives_what_it_gives_alone():
    model = ARCHITECTURES["llama"].build(attention="sdpa")
    model.generation_config.pad_token_id = 0
    rows = [prompt(length, seed) for seed, length in enumerate((3, 17, 9, 30))]

    def generated(several: list[list[int]]) -> list[list[int]]:
        inputs = ARCHITECTURES["llama"].inputs(several, side="left")
        inputs.pop("position_ids")
        made = model.generate(**inputs, do_sample=False, max_new_tokens=12, eos_token_id=None)
        return made[:, inputs["input_ids"].shape[1] :].tolist()

    with fp.invariant(model):
        assert generated(rows) == [generated([row])[0] for row in rows]


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_caches_hold_the_same_bits(kind):
    from transformers import DynamicCache, StaticCache

    model = ARCHITECTURES["llama"].build(attention="sdpa")
    ids = torch.tensor([prompt(60)])
    with torch.no_grad(), fp.invariant(model):
        whole = model(input_ids=ids, use_cache=False).logits
        cache = (
            StaticCache(config=model.config, max_cache_len=100)
            if kind == "static"
            else DynamicCache(config=model.config)
        )
        parts = [
            model(input_ids=ids[:, start:end], **{cache_parameters(model)[0]: cache}).logits
            for start, end in ((0, 20), (20, 57), (57, 58), (58, 59), (59, 60))
        ]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_a_precision_that_was_set_for_one_backend_does_not_matter(monkeypatch):
    def asked() -> str:
        raise RuntimeError("you have used mix of the legacy and new APIs")  # what torch says then

    monkeypatch.setattr(torch, "get_float32_matmul_precision", asked)
    layer = torch.nn.Linear(8, 8).eval()
    with torch.no_grad(), fp.invariant(layer):
        assert layer(torch.randn(3, 8)).shape == (3, 8)
