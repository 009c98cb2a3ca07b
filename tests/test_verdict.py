"""The truth table of verdicts, row by row, on small models of plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor, nn

import forkpoint as fp
from forkpoint import Run, VerdictKind


def verdict(a: Run, b: Run) -> fp.Verdict:
    return fp.compare(a, b).verdict


def outcomes(found: fp.Verdict) -> dict[str, str]:
    return {probe.name: probe.outcome for probe in found.evidence}


# --- identical -----------------------------------------------------------------------------------------------


def test_the_same_results_are_identical_and_need_no_probe():
    found = verdict(*pair(Model(), batch(ids()), batch(ids())))
    assert found == fp.Verdict(VerdictKind.IDENTICAL, None, None, "every result is the same, bit for bit")


def test_results_that_are_identical_though_a_value_is_not():
    class Cancels(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + 0 * torch.arange(hidden.shape[1])[:, None].cos()

    tokens = ids(1).repeat(2, 1)
    found = fp.compare(*pair(Cancels(), batch(tokens), batch(tokens, left=2)))
    assert found.verdict.kind is VerdictKind.IDENTICAL
    assert found.first is not None
    assert (found.first.op, found.first.sample, found.first.position) == ("(model)/cos", 0, 0)


# --- nondeterminism ---------------------------------------------------------------------------------------------


class Random(Model):
    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return F.dropout(hidden, 0.5, training=True)


def test_dropout_left_on_is_nondeterminism_of_the_random_state():
    found = verdict(*pair(Random(), batch(ids()), batch(ids(), right=1)))
    assert (found.kind, found.mechanism, found.by_design) == (
        VerdictKind.NONDETERMINISM,
        "random_state",
        None,
    )
    assert (
        found.summary == "run A, made again, gives other bits; from the same random state it repeats itself"
    )
    assert found.advice == "Set the seed before each run, or put the model in eval mode."
    assert outcomes(found) == {"repeat": "differs"}


def test_dropout_in_run_b_alone():
    model, other = Model(), Random()
    other.load_state_dict(model.state_dict())
    found = verdict(*pair(model, batch(ids()), batch(ids()), other))
    assert found.kind is VerdictKind.NONDETERMINISM
    assert found.summary.startswith("run B, made again")


def test_a_run_that_counts_its_calls_outside_the_model_does_not_repeat_itself():
    calls = []

    class Counting(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            calls.append(1)
            return hidden + len(calls)

    found = verdict(*pair(Counting(), batch(ids()), batch(ids())))
    assert (found.kind, found.mechanism) == (VerdictKind.NONDETERMINISM, None)
    assert found.summary == (
        "run A, made again from the same random state, gives other bits; what changes between them was not found"
    )
    assert "a counter" in found.advice


def test_what_a_model_counts_in_itself_is_put_back_and_so_repeats():
    class Counting(Model):
        count = 0

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            self.count = self.count + 1
            return hidden + self.count

    assert verdict(*pair(Counting(), batch(ids()), batch(ids()))).kind is VerdictKind.IDENTICAL


# --- inputs -----------------------------------------------------------------------------------------------------


def test_other_token_ids():
    tokens = ids()
    other = tokens.clone()
    other[1, 2] = (other[1, 2] + 1) % 20
    found = verdict(*pair(Model(), batch(tokens), batch(other)))
    assert (found.kind, found.mechanism, found.by_design) == (VerdictKind.INPUTS, "token_ids", None)
    assert found.summary == "what goes in differs at shared coordinates: input_ids"
    assert outcomes(found) == {"repeat": "same", "inputs": "differs"}


def test_other_parameters_and_buffers():
    model = Model()
    model.register_buffer("scale", torch.ones(3))
    other = twin(model)
    with torch.no_grad():
        other.layers[1].weight[0, 0] += 1
    found = verdict(*pair(model, batch(ids()), batch(ids()), other))
    assert (found.kind, found.mechanism) == (VerdictKind.INPUTS, "parameters")
    assert found.summary == "1 parameter differs, layers.1.weight"

    class Scaled(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden * self.scale

    model = Scaled()
    model.register_buffer("scale", torch.ones(1))
    other = twin(model)
    other.scale += 1
    found = verdict(*pair(model, batch(ids()), batch(ids()), other))
    assert (found.kind, found.mechanism) == (VerdictKind.INPUTS, "buffers")
    assert found.summary == "1 buffer differs, scale"


def test_other_floats():
    x = torch.randn(1, 3, 7)
    other = x.clone()
    other[0, 1, 2] += 1
    model = nn.Linear(7, 5)
    found = verdict(*pair(model, {"input": x}, {"input": other}))
    assert (found.kind, found.mechanism) == (VerdictKind.INPUTS, None)
    assert found.summary == "what goes in differs at shared coordinates: input"


class ModelForCausalLM(Model):
    """Predicts the next token, as its name says."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> dict[str, Any]:
        logits = super().forward(input_ids, **inputs)["logits"]
        loss = (
            F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            if labels is not None
            else None
        )
        return {"logits": logits, **({} if loss is None else {"loss": loss})}


def test_labels_that_enter_the_loss_at_other_places():
    tokens = ids(1)
    a = batch(tokens) | {"labels": tokens}
    b = batch(tokens, right=2) | {"labels": F.pad(tokens, (0, 2), value=0)}  # the padding is predicted, too
    found = verdict(*pair(ModelForCausalLM(), a, b))
    assert (found.kind, found.mechanism, found.by_design) == (VerdictKind.INPUTS, "labels", False)
    assert found.summary == "the labels that enter the loss differ in 2 (predicting position, label) pairs"


def test_labels_that_are_masked_are_the_same():
    tokens = ids(1)
    a = batch(tokens) | {"labels": tokens}
    b = batch(tokens, right=2) | {"labels": F.pad(tokens, (0, 2), value=-100)}
    assert verdict(*pair(ModelForCausalLM(), a, b)).kind in (VerdictKind.IDENTICAL, VerdictKind.ROUNDING)


# --- rounding ---------------------------------------------------------------------------------------------------


class Reassociated(Model):
    """Adds the same numbers in another order where rows are padded."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        parts = (hidden * 0.1, hidden * 0.7, hidden * 1.3)
        return parts[0] + (parts[1] + parts[2]) if hidden.shape[1] > 4 else (parts[0] + parts[1]) + parts[2]


def test_the_same_sum_in_another_order_is_rounding():
    found = fp.compare(*pair(Reassociated(), batch(ids()), batch(ids(), right=2)))
    assert found.verdict.kind is VerdictKind.ROUNDING
    assert found.verdict.by_design is None
    assert found.verdict.summary.startswith("only rounding: done in float64, the gap falls to ")
    assert outcomes(found.verdict)["precision"] == "vanishes"
    assert outcomes(found.verdict)["content"] in ("untouched", "rounding", "nothing")
    assert found.origin is None


def test_a_narrower_dtype_is_rounding():
    model = Model()
    found = verdict(*pair(model, batch(ids()), batch(ids()), twin(model).bfloat16()))
    assert (found.kind, found.mechanism) == (VerdictKind.ROUNDING, "low_precision")
    assert outcomes(found)["inputs"] == "rounded"


# --- semantic ---------------------------------------------------------------------------------------------------


class Averaged(Model):
    """Takes the mean of a row, its padding included."""

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden + hidden.mean(1, keepdim=True)


def test_a_mean_over_padding_is_semantic():
    found = fp.compare(*pair(Averaged(), batch(ids()), batch(ids(), right=2)))
    assert (found.verdict.kind, found.verdict.mechanism) == (VerdictKind.SEMANTIC, "batch_statistics")
    assert found.verdict.by_design is False  # the model is given a mask
    assert outcomes(found.verdict)["coupling"] == "coupled"
    assert found.verdict.summary.startswith("the runs differ in exact arithmetic: ")
    assert outcomes(found.verdict)["precision"] == "remains"
    assert found.origin is not None
    assert found.origin.function == "mean"
    assert found.origin.module == ""


def test_a_leak_that_is_smaller_than_rounding_in_the_layout_is_seen_by_other_content():
    class Leaks(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + 1e-3 * F.pad(hidden, (0, 0, 1, -1))

    found = fp.compare(*pair(Leaks(), batch(ids()), batch(ids(), left=2)))
    assert (found.verdict.kind, found.verdict.mechanism) == (VerdictKind.SEMANTIC, "padding_leak")


def test_positions_of_columns_are_semantic():
    class Positions(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            positions = torch.arange(hidden.shape[1])[None].expand(hidden.shape[0], -1)
            return hidden + self.embed(positions)

    found = fp.compare(*pair(Positions(), batch(ids()), batch(ids(), left=2)))
    assert (found.verdict.kind, found.verdict.mechanism, found.verdict.by_design) == (
        VerdictKind.SEMANTIC, "position_ids", False,
    )  # fmt: skip
    assert found.origin is not None
    assert found.origin.op == "embed/embedding"


def test_nan_in_one_run_alone_is_semantic():
    class Masked(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden / (inputs["attention_mask"].sum() - 10)

    model = Masked()
    found = verdict(*pair(model, batch(ids(2, 4)), batch(ids(2, 4)) | {"attention_mask": torch.ones(2, 4)}))
    assert found.kind is VerdictKind.IDENTICAL

    class Nan(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden * (float("nan") if hidden.shape[1] > 4 else 1.0)

    found = verdict(*pair(Nan(), batch(ids()), batch(ids(), right=1)))
    assert (found.kind, found.mechanism, found.by_design) == (VerdictKind.SEMANTIC, "nan", False)


def test_nan_that_float64_does_not_have_is_semantic_too():
    class Overflows(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            large = hidden.half() * (60000 if hidden.shape[1] == 4 else 6000000)
            return hidden + (large - large).float()

    found = verdict(*pair(Overflows(), batch(ids()), batch(ids(), right=1)))
    assert (found.kind, found.mechanism) == (VerdictKind.SEMANTIC, "nan")
    assert outcomes(found)["precision"] == "vanishes"


def test_a_leak_that_this_padding_hides_is_seen_by_other_content():
    class Hidden(Reassociated):
        """Each token sees the one before it; the padding's embedding happens to be zero."""

        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            hidden = self.embed(input_ids)
            hidden = self.mix(hidden + F.pad(hidden, (0, 0, 1, -1)))
            return {"logits": self.head(hidden)}

    model = Hidden()
    with torch.no_grad():
        model.embed.weight[0] = 0
    found = verdict(*pair(model, batch(ids()), batch(ids(), left=2)))
    assert found.kind is VerdictKind.SEMANTIC
    assert (outcomes(found)["precision"], outcomes(found)["content"]) == ("vanishes", "changes")
    assert found.mechanism == "padding_leak"


def test_two_functions_are_semantic_without_a_mechanism():
    class Scaled(Model):
        factor = 1.0

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden * self.factor

    model = Scaled()
    other = twin(model)
    other.factor = 1.5
    found = fp.compare(*pair(model, batch(ids()), batch(ids()), other))
    assert (found.verdict.kind, found.verdict.mechanism, found.verdict.by_design) == (
        VerdictKind.SEMANTIC,
        None,
        None,
    )
    assert found.verdict.summary == (
        "the runs differ in exact arithmetic: the two runs compute different functions here"
    )
    assert found.origin is not None
    assert found.origin.op == "(model)/mul"
    assert (found.origin.sample, found.origin.position) == (0, 0)


def test_a_batch_mate_that_reaches_a_row():
    class Batched(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden / hidden.norm()

    tokens = ids(2)
    found = fp.compare(*pair(Batched(), batch(tokens[:1]), batch(tokens)))
    assert found.verdict.kind is VerdictKind.SEMANTIC
    assert (found.verdict.mechanism, found.verdict.by_design) == (None, None)  # a length, no mean or variance
    assert found.origin is not None


# --- undetermined ------------------------------------------------------------------------------------------------


def test_results_that_can_not_be_compared_are_undetermined():
    class Flat(Model):
        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            return {"out": torch.ones(input_ids.shape[1] + 20)}

    found = verdict(*pair(Flat(), batch(ids()), batch(ids(), right=1)))
    assert found.kind is VerdictKind.UNDETERMINED
    assert found.summary == (
        "no result could be compared: shape [24] in A, [25] in B, and no token dimension known"
    )


def test_results_of_other_names_are_undetermined():
    class Named(Model):
        name = "one"

        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            return {self.name: super().forward(input_ids)["logits"]}

    model = Named()
    other = twin(model)
    other.name = "two"
    found = verdict(*pair(model, batch(ids()), batch(ids()), other))
    assert found.kind is VerdictKind.UNDETERMINED
    assert found.summary == "no result could be compared: only run A returns it"


def test_without_probes_a_difference_is_undetermined():
    runs = pair(Averaged(), batch(ids()), batch(ids(), right=2))
    found = fp.compare(*runs, probes=False).verdict
    assert found == fp.Verdict(VerdictKind.UNDETERMINED, None, None, "the results differ", probed=False)


# --- Weight --------------------------------------------------------------------------------------------------------


def test_nondeterminism_outweighs_inputs_and_inputs_outweigh_meaning():
    tokens = ids()
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % 20
    assert verdict(*pair(Random(), batch(tokens), batch(other))).kind is VerdictKind.NONDETERMINISM
    assert verdict(*pair(Averaged(), batch(tokens), batch(other, right=2))).kind is VerdictKind.INPUTS


def test_meaning_outweighs_rounding():
    class Both(Averaged):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return super().mix(Reassociated.mix(self, hidden))

    assert verdict(*pair(Both(), batch(ids()), batch(ids(), right=2))).kind is VerdictKind.SEMANTIC


@pytest.mark.parametrize("kind", list(VerdictKind))
def test_every_kind_has_a_value_for_json(kind):
    assert kind.value == kind.name.lower()


def test_advice_speaks_of_an_origin_only_where_there_is_one():
    from tests.corpus import CASES

    a, b, how, patches = CASES["41-integers-semantic"].build()
    with patches:
        result = fp.compare(a, b, **how)
    assert result.origin is None
    assert result.verdict.mechanism is None
    assert "could not be located" in result.verdict.advice
    assert result.verdict.summary.endswith("the two runs compute different functions")
