"""`fp.compare` and the result that it returns."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from tests.plain import Model, batch, ids, pair, twin
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.capture.shortcuts import note_of_shortcuts
from forkpoint.investigation import versions


def test_a_comparison_is_the_same_both_ways_round():
    class Averaged(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + hidden.mean(1, keepdim=True)

    a, b = pair(Averaged(), batch(ids()), batch(ids(), right=2))
    one, two = fp.compare(a, b), fp.compare(b, a)
    assert one.verdict.kind is two.verdict.kind
    assert one.verdict.mechanism == two.verdict.mechanism
    assert one.first is not None
    assert two.first is not None
    assert one.first.op == two.first.op
    assert one.impact is not None
    assert two.impact is not None
    assert one.impact.max_abs == two.impact.max_abs


def test_a_comparison_repeated_is_the_same():
    a, b = pair(Model(), batch(ids()), batch(ids(), left=1))
    one, two = (json.dumps(fp.compare(a, b).to_dict()) for _ in range(2))
    assert one == two


def test_every_op_is_listed_once_in_the_order_of_execution():
    result = fp.compare(*pair(Model(), batch(ids()), batch(ids(), right=1)), probes=False)
    assert [row.op for row in result.ops if row.function != "output" and not row.function.startswith("input")] == [
        "embed/embedding", "layers.0/linear", "(model)/tanh", "layers.1/linear", "(model)/tanh", "(model)/add",
        "head/linear",
    ]  # fmt: skip
    embedding = next(row for row in result.ops if row.op == "embed/embedding")
    assert (embedding.status, embedding.compared, embedding.differing, embedding.passes) == ("equal", 8, 0, 1)
    assert (embedding.shape_a, embedding.shape_b, embedding.dtype_a) == ((2, 4, 13), (2, 5, 13), "float32")
    assert (result.unmatched_a, result.unmatched_b) == ((), ())
    assert result.not_compared == ()


def test_a_model_that_is_wrapped_meets_itself():
    class Wrapper(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.base_model = nn.Module()
            self.base_model.model = model

        def forward(self, **inputs: Any) -> Any:
            return self.base_model.model(**inputs)

        def get_base_model(self) -> nn.Module:
            return self.base_model.model

    model, faulty = Model(), twin(Model())
    with torch.no_grad():
        faulty.layers[1].bias += 1e-3
    wrapped = Wrapper(faulty)
    result = fp.compare(*pair(model, batch(ids()), batch(ids()), wrapped), probes=False)
    assert result.first is not None
    assert (result.first.op, result.first.source.startswith("plain.py")) == ("layers.1/linear", True)
    assert result.unmatched_a == ()
    assert [row.op for row in result.unmatched_b] == [  # the wrapper's own
        "(model)/input:input_ids", "(model)/input:attention_mask", "(model)/output",
    ]  # fmt: skip
    assert [row.module for row in result.drift] == ["layers.0", "layers.1", "logits"]
    other = fp.compare(*pair(wrapped, batch(ids()), batch(ids()), model), probes=False)
    assert other.first is not None
    assert other.first.op == "base_model.model.layers.1/linear"
    assert [row.module for row in other.drift] == [
        "base_model.model.layers.0", "base_model.model.layers.1", "logits",
    ]  # fmt: skip
    assert result.not_compared == other.not_compared == ()


def test_a_model_that_holds_another_where_wrappers_do_is_no_wrapper():
    class Inner(Model):
        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            return super().forward(input_ids) | {"steps": torch.arange(input_ids.shape[1])[None].float()}

    class Embedder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = nn.Module()
            self.base_model.model = Inner()

        def forward(self, **inputs: Any) -> Any:
            found = self.base_model.model(**inputs)
            return found | {"steps": found["steps"] + 1}

    result = fp.compare(*pair(Embedder(), batch(ids()), batch(ids())), probes=False)
    assert (result.identical, result.first) == (True, None)
    assert not [row.op for row in result.ops if row.status == "differs"]


def test_what_could_not_be_compared_is_listed_with_its_reason():
    class Odd(Model):
        def forward(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            return super().forward(input_ids) | {"shape": torch.ones(input_ids.shape[1] + 20)}

    result = fp.compare(*pair(Odd(), batch(ids()), batch(ids(), right=1)), probes=False)
    reasons = {item.op: item.reason for item in result.not_compared}
    assert reasons["result shape"] == "shape [24] in A, [25] in B, and no token dimension known"
    assert reasons["(model)/ones"] == "24 elements a coordinate in A, 25 in B"


def test_batch_mates_and_rows_paired_by_order_are_noted():
    tokens = ids(3)
    result = fp.compare(*pair(Model(), batch(tokens[:1]), batch(tokens)), probes=False)
    assert "batch mates that only run B has: 1, 2" in result.notes
    other = tokens[:2].clone()
    other[1] = (other[1] + 1) % 20
    result = fp.compare(*pair(Model(), batch(tokens[:2]), batch(other)), probes=False, notes=["a remark"])
    assert [note for note in result.notes if note != note_of_shortcuts()] == [
        "a remark",
        "rows paired by their order, since they hold different things: 1 with 1",
    ]


def test_a_summary_of_each_run():
    a, b = pair(Model(), batch(ids()), batch(ids(), left=2), twin(Model()).bfloat16())
    b.name = "padded"
    result = fp.compare(a, b, probes=False)
    assert (result.a.name, result.b.name) == ("A", "padded")
    assert (result.b.samples, result.b.tokens, result.b.padding) == (2, 8, 4)
    assert result.b.calls == ({"input_ids": (2, 6), "attention_mask": (2, 6)},)
    assert (result.a.dtype, result.b.dtype, result.a.device, result.a.attention) == (
        "float32",
        "bfloat16",
        "cpu",
        None,
    )
    assert result.a.ops == 7


def test_replaced_modules_are_those_of_run_b_first():
    class Other(nn.Linear):
        pass

    model = Model()
    other = twin(model)
    other.head = Other(13, 23)
    assert [
        m.module for m in fp.compare(*pair(model, batch(ids()), batch(ids()), other)).replaced_modules
    ] == ["head"]


def test_versions_of_what_the_numbers_depend_on():
    found = versions()
    assert found["torch"] == torch.__version__
    assert {"python", "torch", "transformers", "forkpoint"} <= set(found)


@pytest.mark.parametrize("which", [0, 1])
def test_what_is_no_run_is_refused(which):
    runs: list[Any] = list(pair(Model(), batch(ids()), batch(ids())))
    runs[which] = Model()
    with pytest.raises(fp.InputError) as raised:
        fp.compare(*runs)
    assert str(raised.value) == f"{'ab'[which]} is a Model; expected an fp.Run(model, inputs)"


def test_a_model_that_returns_nothing_is_refused():
    class Silent(Model):
        def forward(self, input_ids: Tensor, **inputs: Any) -> str:
            super().forward(input_ids)
            return "text"

    with pytest.raises(fp.CaptureError) as raised:
        fp.compare(*pair(Silent(), batch(ids()), batch(ids())))
    assert str(raised.value).startswith("the model returned str; expected at least one tensor")


def test_an_error_of_the_model_is_the_model_s_own():
    class Broken(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            raise ZeroDivisionError("deliberate")

    code = nn.Module.__call__.__code__
    with pytest.raises(ZeroDivisionError, match="deliberate"):
        fp.compare(*pair(Broken(), batch(ids()), batch(ids())))
    assert nn.Module.__call__.__qualname__ == "Module._wrapped_call_impl"
    assert nn.Module.__call__.__code__ is code


def test_the_random_state_is_where_two_runs_would_have_left_it():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fp.compare(*pair(Model(), batch(ids()), batch(ids(), right=1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_is_told_of_every_stage_and_never_of_more_than_there_is():
    told: list[str] = []
    counts: list[tuple[int, int | None]] = []

    class Curious:
        done: Any = staticmethod(lambda: 0)
        total: int | None = None

        def begin(self, stage: str) -> None:
            counts.append((self.done(), self.total))
            told.append(stage)
            self.done, self.total = (lambda: 0), None

        def count(self, done: Any, total: int | None) -> None:
            self.done, self.total = done, total

    class Averaged(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden + hidden.mean(1, keepdim=True)

    runs = pair(Averaged(), batch(ids()), batch(ids(), right=2))
    fp.compare(*runs, progress=Curious())
    assert told[:6] == [
        "run A without tracing", "run B without tracing", "tracing run A", "tracing run B", "comparing digests",
        "comparing results",
    ]  # fmt: skip
    assert told[-1] == "measuring each layer"
    assert "probe: where the difference enters" in told
    known = [(done, total) for done, total in counts if total is not None]
    assert known
    assert all(0 < done <= total for done, total in known)
