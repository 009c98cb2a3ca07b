"""The inputs probe: token ids, labels, parameters and buffers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.joined import session
from tests.plain import Model, batch, ids, pair, twin
from torch import nn

import forkpoint as fp
from forkpoint.probes.inputs import Inputs, inputs, same_weights
from forkpoint.runs.run import Run


def asked(model: nn.Module, a: Any, b: Any, other: nn.Module | None = None) -> Inputs:
    return inputs(session(*pair(model, a, b, other)))


class ModelForCausalLM(Model):
    """Predicts the next token, as its name says."""


def test_the_same_tokens_in_another_layout_are_the_same():
    found = asked(Model(), batch(ids()), batch(ids(), left=2, pad=7))
    assert (found.differs, found.mechanism, found.result.outcome) == (False, None, "same")
    assert found.result.text == "token ids, labels, parameters and buffers are the same in both runs"


@pytest.mark.parametrize("name", ["attention_mask", "position_ids", "cache_position", "src_key_padding_mask"])
def test_what_expresses_the_layout_is_no_input(name):
    tokens = ids(1)
    a, b = (
        {"input_ids": tokens, name: torch.ones_like(tokens)},
        {"input_ids": tokens, name: torch.ones_like(tokens)},
    )
    b[name][0, 1] = 3
    assert not asked(Model(), a, b).differs


def test_token_types_that_one_run_alone_is_given():
    tokens = ids(1)
    found = asked(Model(), batch(tokens), batch(tokens) | {"token_type_ids": torch.ones_like(tokens)})
    assert (found.differs, found.mechanism, found.names) == (True, None, ("token_type_ids",))
    assert found.result.text == "what goes in differs at shared coordinates: token_type_ids"
    assert not asked(
        Model(), batch(tokens), batch(tokens) | {"token_type_ids": torch.zeros_like(tokens)}
    ).differs


@pytest.mark.parametrize(
    ("kind", "label", "count"),
    [
        (Model, 0, 2), (Model, -100, 0),  # each column has its own label: padding too
        (ModelForCausalLM, 0, 2), (ModelForCausalLM, -100, 0),
    ],
)  # fmt: skip
def test_labels_of_padding_count_where_they_enter_the_loss(kind, label, count):
    tokens = ids(1)
    a = batch(tokens) | {"labels": tokens}
    b = batch(tokens, right=2) | {"labels": torch.nn.functional.pad(tokens, (0, 2), value=label)}
    found = asked(kind(), a, b)
    assert found.differs == bool(count)
    if count:
        assert (found.mechanism, found.result.figure) == ("labels", count)


def test_the_first_token_after_left_padding_is_predicted_by_padding():
    tokens = ids(1)
    a = batch(tokens) | {"labels": tokens}
    b = batch(tokens, left=1) | {"labels": torch.nn.functional.pad(tokens, (1, 0), value=-100)}
    assert asked(ModelForCausalLM(), a, b).mechanism == "labels"
    b["labels"][0, 1] = -100
    assert not asked(ModelForCausalLM(), a, b).differs
    assert not asked(Model(), a, batch(tokens, left=1) | {"labels": torch.nn.functional.pad(tokens, (1, 0), value=-100)}).differs  # fmt: skip


def test_a_label_for_each_row():
    tokens = ids()
    a, b = (
        batch(tokens) | {"labels": torch.tensor([1, 2])},
        batch(tokens.flip(0)) | {"labels": torch.tensor([2, 1])},
    )
    assert not asked(Model(), a, b).differs
    b["labels"] = torch.tensor([1, 2])
    assert asked(Model(), a, b).result.text == (
        "the labels that enter the loss differ in 4 (predicting position, label) pairs"
    )


# --- Weights -----------------------------------------------------------------------------------------------


def weights(change) -> Inputs:
    model = Model()
    other = twin(model)
    with torch.no_grad():
        change(other)
    return asked(model, batch(ids()), batch(ids()), other)


def test_the_same_values_in_another_dtype_are_rounded():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        found = weights(lambda other, dtype=dtype: other.to(dtype))
        assert (found.differs, found.result.outcome) == (False, "rounded")
        assert len(found.rounded) == 7
    found = weights(lambda other: other.to(torch.bfloat16).float())
    assert found.result.outcome == "rounded"


def test_one_weight_that_is_not_rounded_is_another():
    def change(other: Model) -> None:
        other.bfloat16()
        other.head.weight[0, 0] *= 1.02

    found = weights(change)
    assert (found.differs, found.mechanism) == (True, "parameters")
    assert found.result.text == "1 parameter differs, head.weight"


def test_one_bit_of_a_weight():
    def change(other: Model) -> None:
        other.head.bias.view(torch.int32)[3] += 1

    assert weights(change).mechanism == "parameters"


def test_whole_numbers_without_a_scale_are_other_parameters():
    def change(other: Model) -> None:
        other.head.weight = nn.Parameter(other.head.weight.round().to(torch.int8), requires_grad=False)

    found = weights_only(change)
    assert (found.mechanism, found.result.text) == ("parameters", "1 parameter differs, head.weight")


@pytest.mark.parametrize("of_others", [False, True])
def test_quantised_weights_are_the_other_model_s_or_other_parameters(of_others):
    def change(other: Model) -> None:
        exact = other.head.weight.flip(0) if of_others else other.head.weight
        scale = exact.detach().abs().amax(1)
        steps = (exact.detach() / scale[:, None] * 127).round().to(torch.int8)
        other.head.weight = nn.Parameter(steps, requires_grad=False)
        other.head.weight.SCB = scale  # type: ignore[attr-defined]

    assert weights_only(change).mechanism == ("parameters" if of_others else "quantization")


def weights_only(change) -> Inputs:
    """As `weights`, for a model that can no longer run: both runs use the first."""
    model = Model()
    other = twin(model)
    change(other)
    both = session(*pair(model, batch(ids()), batch(ids())))
    both.b.run = Run(other, batch(ids()))
    return inputs(both)


def test_weights_are_the_same_in_both_runs_for_a_while():
    model = Model()
    other = twin(model).bfloat16()
    found = asked(model, batch(ids()), batch(ids()), other)
    narrow = other.head.weight
    with same_weights(found.rounded):
        assert torch.equal(other.head.weight, model.head.weight)
    assert other.head.weight is narrow
    with pytest.raises(RuntimeError, match="deliberate"), same_weights(found.rounded):
        raise RuntimeError("deliberate")
    assert other.head.weight is narrow


@pytest.mark.parametrize(
    ("narrowed", "mechanism"), [("one", "buffers"), ("both", None), ("with its model", None)]
)
def test_a_buffer_that_was_rounded_in_one_of_two_models_of_one_dtype(narrowed, mechanism):
    model = Model()
    model.register_buffer("table", torch.linspace(0, 1, 1000))
    other = twin(model)
    if narrowed == "with its model":
        other.bfloat16()
    for module in (other, model)[: 1 if narrowed != "both" else 2]:
        module.table = module.table.bfloat16()
    found = asked(model, batch(ids()), batch(ids()), other)
    assert found.mechanism == mechanism
    if mechanism:
        count = len(torch.linspace(0, 1, 1000).bfloat16().unique())
        assert found.result.text == (
            "1 buffer differs, table; table is rounded: float32 and bfloat16, with 1,000 distinct values in run A "
            f"and {count} in run B"
        )


def test_a_parameter_of_one_model_alone_is_not_called_the_same():
    model = Model()
    other = twin(model)
    other.extra = nn.Linear(2, 2)
    for a, b in ((model, other), (other, model)):
        found = asked(a, batch(ids()), batch(ids()), b)
        assert (found.differs, found.result.outcome, found.result.figure) == (False, "some", 2.0)
        assert found.result.text == (
            "token ids and labels are the same in both runs, as are the parameters and buffers that both models have; "
            "2 parameters of one model alone were not compared, extra.bias first"
        )


@pytest.mark.filterwarnings(
    "ignore:.*quantized tensor creation.*", "ignore:torch.ao.quantization is deprecated"
)
def test_weights_that_a_quantised_module_keeps_packed_are_quantised():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    other = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    x = {"input": torch.randn(1, 3, 4)}
    found = inputs(session(Run(model, x), Run(other, x)))
    assert (found.differs, found.mechanism) == (True, "quantization")
    assert found.result.text == "2 weights differ, 0.weight first"
    with torch.no_grad():
        model[2].weight.neg_()
    changed = inputs(session(Run(model, x), Run(other, x)))
    assert (changed.differs, changed.mechanism) == (True, "quantization")  # the first is what it was
    with torch.no_grad():
        model[0].weight.neg_()
    assert inputs(session(Run(model, x), Run(other, x))).mechanism == "parameters"


@pytest.mark.parametrize("rounded", [False, True])
def test_floats_of_another_dtype_are_compared_by_value(rounded):
    """A digest takes in the dtype: equal values are no difference of what goes in, rounded ones are."""
    model = nn.Linear(4, 4)
    x = torch.randn(2, 3, 4)
    narrow = x.to(torch.bfloat16)
    wide = x if rounded else narrow.float()
    found = inputs(session(Run(model, {"input": wide}), Run(model, {"input": narrow}, call=_as_float32)))
    assert found.differs is rounded
    assert found.names == (("input",) if rounded else ())


def _as_float32(model, inputs_):
    return model(inputs_["input"].float())


def test_an_adapter_s_scale_is_no_parameter():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(4, 4))
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(linear, config).eval()
    given = {"input": torch.randn(1, 3, 4)}

    def verdict(other: nn.Module) -> fp.Verdict:
        return fp.compare(fp.Run(model, given, call=call), fp.Run(other, given, call=call)).verdict

    def call(module: nn.Module, inputs: dict[str, Any]) -> Any:
        return module(inputs["input"])

    scaled = copy.deepcopy(model)
    scaled.base_model.model[0].scaling["default"] *= 2
    assert verdict(scaled).kind is fp.VerdictKind.SEMANTIC
    assert verdict(copy.deepcopy(model)).kind is fp.VerdictKind.IDENTICAL
    merged = copy.deepcopy(model).merge_and_unload()
    assert verdict(merged).kind in (fp.VerdictKind.ROUNDING, fp.VerdictKind.IDENTICAL)
    other = copy.deepcopy(scaled).merge_and_unload()
    assert (verdict(other).kind, verdict(other).mechanism) == (fp.VerdictKind.INPUTS, "parameters")
