"""Which gradient differs first, whether that is rounding, and what is said where it can't be told."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES
from tests.backward.models import (
    IDS,
    INPUTS,
    Product,
    Rounded,
    Sound,
    Tiny,
    Wrong,
    compared,
    planted,
    statuses,
    tiny,
    with_product,
)  # fmt: skip
from torch import nn

import forkpoint as fp
from forkpoint.backward import exact, recording
from forkpoint.errors import ForkpointError

EACH = [{"input_ids": row[None], "labels": row[None]} for row in IDS]


# ---------------------------------------------------------------------- found, and with a sound twin


def test_a_sound_backward_is_identical():
    found = compared(planted(tiny(), "layers.1", Sound), planted(tiny(), "layers.1", Sound))
    assert found.backward.identical and found.first_backward is None and found.backward.origin is None
    assert found.backward.loss_a == found.backward.loss_b > 0
    assert set(statuses(found).values()) == {"equal"}
    assert {row.status for row in found.backward.ops} == {"equal"}
    assert found.backward.evidence == () and found.backward.notes == ()


def test_a_wrong_backward_is_named_with_the_value_before_it():
    found = compared(planted(tiny(), "layers.1", Sound), planted(tiny(), "layers.1", Wrong))
    assert found.identical, "the losses and logits are the same"
    first = found.first_backward
    assert first.op == "layers.0/transpose"
    assert [(given.name.split(" ")[0], given.status) for given in first.inputs] == [("layers.1/mul", "equal")]
    assert first.max_rel == pytest.approx(0.01, rel=1e-3)
    assert found.backward.origin.op == first.op and found.backward.rounding is False
    before = {"embed.weight", "layers.0.inner.weight", "layers.0.inner.bias"}
    assert {name for name, status in statuses(found).items() if status == "differs"} == before
    said = {one.name: one.rounding for one in found.backward.parameters}
    assert {name for name, rounding in said.items() if rounding is False} == before


def test_rounding_alone_vanishes_in_float64():
    found = compared(tiny(), planted(tiny(), "head", Rounded))
    assert found.verdict.kind is fp.VerdictKind.ROUNDING
    assert found.first_backward is not None
    assert found.backward.rounding is True and found.backward.origin is None
    assert all(one.rounding for one in found.backward.parameters)


def test_a_wrong_backward_behind_rounding_is_the_origin():
    a, b = planted(tiny(), "layers.1", Sound), planted(tiny(), "layers.1", Wrong)
    found = compared(a, planted(b, "head", Rounded))
    assert found.verdict.kind is fp.VerdictKind.ROUNDING
    assert found.first_backward.op != "layers.0/transpose"
    assert found.backward.origin.op == "layers.0/transpose" and found.backward.rounding is False
    assert found.backward.origin.max_rel == pytest.approx(0.01)


class WrongProduct(Product):
    """The gradient of the weight is half as large again."""

    @staticmethod
    def backward(ctx: Any, *gradients):
        of_x, of_weight = Product.backward(ctx, *gradients)
        return of_x, 1.5 * of_weight


def test_a_wrong_gradient_of_a_weight_alone():
    found = compared(with_product(Product), with_product(WrongProduct))
    assert found.first_backward is None and found.backward.origin is None
    apart = [one for one in found.backward.parameters if one.status == "differs"]
    assert [one.name for one in apart] == ["head.weight"]
    assert apart[0].rounding is False and found.backward.rounding is False
    assert apart[0].relative == pytest.approx(0.5) and apart[0].cosine == pytest.approx(1.0)
    assert compared(with_product(Product), with_product(Product)).backward.identical


def test_the_same_weights_in_another_dtype_are_rounding():
    found = compared(tiny(), tiny().bfloat16())
    assert found.first_backward is not None and found.backward.rounding is True
    assert {(one.dtype_a, one.dtype_b) for one in found.backward.parameters} == {("float32", "bfloat16")}


# ---------------------------------------------------------------------- several calls


def test_gradients_add_up_over_calls():
    found = compared(tiny(), fp.Run(tiny(), EACH))
    assert found.backward.loss_a == pytest.approx(found.backward.loss_b)
    assert found.backward.origin is None and found.backward.rounding is not False
    assert all(one.relative < 1e-5 for one in found.backward.parameters)
    left_out = [row for row in found.backward.ops if row.status == "not compared"]
    assert [row.function for row in left_out] == ["cross_entropy"]
    assert "adds up" in left_out[0].reason


def test_a_micro_batch_that_counts_twice():
    def twice(model, inputs):
        factor = 2 if torch.equal(inputs["input_ids"], IDS[2:3]) else 1
        return {"loss": model(**inputs)["loss"] * factor}

    found = compared(tiny(), fp.Run(tiny(), EACH, call=twice))
    origin = found.backward.origin  # the first gradient that differs may be another row's, rounded
    assert origin.sample == 2 and origin.call == 0
    assert origin.value_b == pytest.approx(2 * origin.value_a)
    assert found.backward.rounding is False


def test_gradients_lead_back_through_a_cache():
    model = ARCHITECTURES["llama"].build()

    def squares(model, inputs):
        out = model(**inputs)
        cache = {"past_key_values": out.past_key_values} if out.past_key_values is not None else {}
        return {"loss": out.logits.square().sum(), "logits": out.logits, **cache}

    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    whole = fp.Run(model, {"input_ids": ids, "use_cache": False}, call=squares)
    steps = fp.Run(model, [{"input_ids": ids[:, :4]}, {"input_ids": ids[:, 4:]}], call=squares)
    found = fp.compare(whole, steps, backward=True)
    assert found.backward.origin is None and found.backward.rounding is not False
    assert all(one.relative < 1e-3 for one in found.backward.parameters)


# ---------------------------------------------------------------------- other ways to make gradients


@pytest.mark.parametrize("way", ["saved", "reentrant"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpointing_gives_the_same_gradients(way):
    found = compared(tiny(), tiny(way))
    assert found.first_backward is None and set(statuses(found).values()) == {"equal"}
    only = {row.module for row in found.backward.ops if row.status == "only in a"}
    assert only == (
        set() if way == "saved" else {f"layers.{i}{rest}" for i in range(3) for rest in ("", ".inner")}
    )
    wrong = compared(planted(tiny(way), "layers.1", Sound), planted(tiny(way), "layers.1", Wrong))
    assert wrong.backward.rounding is False and wrong.first_backward.module == "layers.0"


class Forces(nn.Module):
    """Asks for a gradient on the way forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.inner(x).tanh().square().sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return {"loss": force.square().sum(), "forces": force}


def test_what_the_model_itself_asks_for_is_not_the_backward_pass():
    x = torch.linspace(-1, 1, 24).reshape(1, 3, 8)
    model, other = Forces(), Forces()
    with torch.no_grad():
        other.inner.weight[0, 0] += 0.25
    given = {"x": x}
    assert fp.compare(fp.Run(model, given), fp.Run(model, given), backward=True).backward.identical
    found = fp.compare(fp.Run(model, given), fp.Run(other, given), backward=True).backward
    assert found.rounding is False
    weight = copy.deepcopy(model)
    weight(x)["loss"].backward()
    other_weight = copy.deepcopy(other)
    other_weight(x)["loss"].backward()
    expected = (weight.inner.weight.grad.double() - other_weight.inner.weight.grad.double()).abs().max()
    assert next(one for one in found.parameters if one.name == "inner.weight").max_abs == float(expected)


class Counting(Sound):
    """Whose backward is another each time."""

    times = itertools.count(1)

    @staticmethod
    def backward(ctx: Any, *gradients):
        return gradients[0] * (1 + 0.01 * next(Counting.times))


def test_gradients_that_do_not_repeat_themselves():
    found = compared(planted(tiny(), "layers.1", Counting), tiny())
    probe = found.backward.evidence[0]
    assert probe.name == "repeat" and "run A do not repeat" in probe.text


class Unordered(Sound):
    """Whose backward rounds otherwise each time, as a sum by atomics does."""

    times = itertools.count(1)

    @staticmethod
    def backward(ctx: Any, *gradients):
        return (
            gradients[0]
            if gradients[0].dtype == torch.float64
            else gradients[0] * (1 + 2e-7 * (next(Unordered.times) % 3))
        )


def test_gradients_that_round_otherwise_each_time_are_said_not_to_repeat_themselves():
    result = compared(planted(tiny(), "layers.1", Unordered), tiny())
    assert result.backward.rounding
    assert [probe.name for probe in result.backward.evidence][:1] == ["repeat"]
    assert "do not repeat themselves" in " ".join(str(result).split())
    assert "differ only by rounding" not in str(result)
    sound = compared(planted(tiny(), "layers.1", Sound), tiny())
    assert "do not repeat" not in str(sound)


# ---------------------------------------------------------------------- what can't be told


def test_a_frozen_parameter_is_not_compared():
    b = tiny()
    b.embed.requires_grad_(False)
    found = compared(tiny(), b)
    rest = {one.name: one.reason for one in found.backward.parameters if one.status != "equal"}
    assert rest == {"embed.weight": "it requires no gradient in run B"}
    assert [row.op for row in found.backward.ops if row.status == "only in a"] == ["embed/embedding"]


def test_parameters_of_another_shape_or_of_one_run_alone():
    b = tiny()
    b.head = nn.Linear(8, 12, bias=False)
    found = compared(tiny(), b, probes=False)
    rest = {one.name: one.reason for one in found.backward.parameters if one.status == "not compared"}
    assert rest == {
        "head.weight": "shape [10, 8] in A, [12, 8] in B",
        "head.bias": "run B has no such parameter",
    }


def test_without_probes_float64_is_not_tried():
    found = compared(planted(tiny(), "layers.1", Sound), planted(tiny(), "layers.1", Wrong), probes=False)
    assert found.first_backward is not None
    assert found.backward.rounding is None and found.backward.origin is None and not found.backward.evidence


def test_what_could_not_be_kept_proves_nothing(monkeypatch):
    monkeypatch.setattr(exact, "MAX_STORED", 1 << 12)
    found = compared(tiny(), planted(tiny(), "head", Rounded))
    assert found.backward.rounding is None
    assert "more than could be kept" in found.backward.evidence[-1].text


def test_a_model_that_refuses_float64(monkeypatch):
    class Refusing(Tiny):
        def forward(self, input_ids, labels):
            if self.embed(input_ids).dtype == torch.float64:
                raise RuntimeError("no float64 here")
            return super().forward(input_ids, labels)

    a = tiny()
    b = planted(tiny(), "head", Rounded)
    a.__class__ = b.__class__ = Refusing
    found = compared(a, b)
    assert found.backward.rounding is None and found.backward.evidence[-1].outcome == "failed"
    assert "no float64 here" in found.backward.evidence[-1].text


def test_what_can_not_be_watched_is_said(monkeypatch):
    monkeypatch.setattr(recording.GradientTrace, "take", lambda *_: 1 / 0)
    found = compared(with_product(Product), with_product(WrongProduct))
    assert found.backward.notes == (
        "the gradients of ops' outputs could not be watched: ZeroDivisionError: division by zero",
    )
    assert found.first_backward is None and found.backward.rounding is False
    assert [one.name for one in found.backward.parameters if one.rounding is False] == ["head.weight"]


def test_nothing_compared_is_not_identical():
    model, other = nn.Linear(4, 4, bias=False), nn.Linear(5, 4, bias=False)
    a = fp.Run(model, {"input": torch.ones(1, 3, 4)}, call=lambda m, given: {"loss": m(**given).sum()})
    b = fp.Run(other, {"input": torch.ones(1, 3, 5)}, call=lambda m, given: {"loss": m(**given).mean()})
    found = fp.compare(a, b, backward=True, probes=False)
    assert {one.status for one in found.backward.parameters} == {"not compared"}
    assert found.backward.identical == any(row.status == "equal" for row in found.backward.ops)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (fp.Run(nn.Linear(4, 4), {"input": torch.ones(1, 3, 4)}), "a run A that returns no loss"),
        (fp.Run(tiny().requires_grad_(False), INPUTS), "leads back to no parameter"),
    ],
)
def test_without_a_loss_it_says_what_to_do(run, said):
    with pytest.raises(ForkpointError, match=said):
        fp.compare(run, run, backward=True)


def test_one_number_is_the_loss():
    model = nn.Linear(4, 4)
    run = fp.Run(model, {"input": torch.ones(1, 3, 4)}, call=lambda model, given: model(**given).sum())
    found = fp.compare(run, run, backward=True)
    assert found.backward.identical and len(found.backward.parameters) == 2


# ---------------------------------------------------------------------- nothing is left behind


@pytest.mark.usefixtures("few_objects")
def test_nothing_is_left_behind():
    model = tiny("saved")
    model.layers[0].inner.bias.requires_grad_(False)
    held = model.head.weight.grad = torch.full_like(model.head.weight, 3.0)
    random = torch.get_rng_state()
    seen: list[weakref.ref[torch.Tensor]] = []
    hook = model.layers[1].register_forward_hook(lambda _, given, out: seen.append(weakref.ref(out)))
    found = compared(model, planted(tiny("saved"), "layers.1", Wrong))
    hook.remove()
    assert found.first_backward is not None
    assert model.head.weight.grad is held and bool((held == 3.0).all())
    for name, weight in model.named_parameters():
        assert name == "head.weight" or weight.grad is None
        assert weight.requires_grad == (name != "layers.0.inner.bias")
        assert not weight._backward_hooks and not weight._post_accumulate_grad_hooks
    assert torch.equal(torch.get_rng_state(), random) and torch.is_grad_enabled()
    found = found.without_runs()
    gc.collect()
    assert seen and not any(ref() is not None for ref in seen)


def test_watching_changes_no_gradient():
    """What `compare` says of itself, and what a plain training step gives."""
    model = tiny()
    found = compared(model, model)
    assert found.backward.notes == () and found.backward.evidence == ()
    plain = tiny()
    plain(**INPUTS)["loss"].backward()
    other = planted(plain, "layers.1", Sound)
    for weight in other.parameters():
        weight.grad = None
    other(**INPUTS)["loss"].backward()
    for x, y in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(x.grad, y.grad)


def test_a_result_travels(tmp_path):
    found = compared(planted(tiny(), "layers.1", Sound), planted(tiny(), "layers.1", Wrong))
    found.to_json(tmp_path / "result.json")
    again = fp.Result.from_json(tmp_path / "result.json")
    assert again.backward == found.backward and again.first_backward == found.first_backward
    assert found.to_dict()["first_backward"]["op"] == "layers.0/transpose"
    plain = fp.compare(fp.Run(tiny(), INPUTS), fp.Run(tiny(), INPUTS))
    assert plain.backward is None and plain.first_backward is None
