"""The first divergence: the op, the token, two values in full precision, and what went in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.plain import VOCABULARY, Model, batch, ids, pair, twin
from torch import Tensor, nn

import forkpoint as fp


def first(a: fp.Run, b: fp.Run, **options: Any) -> fp.Divergence:
    found = fp.compare(a, b, probes=False, **options).first
    assert found is not None
    return found


def names(divergence: fp.Divergence) -> list[str]:
    """The ops between, without their places."""
    return [text.rsplit(" (", 1)[0] for text in divergence.between]


class Faulty(Model):
    """Changes one element of one value."""

    where: Any = None

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        with torch._C.DisableTorchFunction():  # what no tap sees
            factor = torch.full_like(hidden, 2)
            if self.where is not None:
                factor[self.where] += 1
        scaled = hidden * factor
        return scaled.abs()


def faulty(where: Any) -> tuple[Model, Model]:
    model = Faulty()
    other = twin(model)
    other.where = where
    return model, other


def test_a_divergence_names_the_op_the_token_and_the_values():
    tokens = ids()
    model, other = faulty((1, 3, 5))
    divergence = first(*pair(model, batch(tokens), batch(tokens, left=1), other))
    assert (divergence.op, divergence.module, divergence.function) == ("(model)/mul", "", "mul")
    assert divergence.code == "scaled = hidden * factor"
    assert divergence.source.startswith("test_locate.py:")
    assert divergence.variable == "scaled"
    assert (divergence.sample, divergence.position, divergence.token) == (1, 2, None)
    assert (divergence.index_a, divergence.index_b) == ((1, 2, 5), (1, 3, 5))
    assert divergence.value_b == pytest.approx(divergence.value_a * 1.5)
    assert divergence.max_abs == abs(divergence.value_b - divergence.value_a)
    assert (divergence.differing, divergence.compared) == (1, 2 * 4 * 13)
    assert divergence.ulps > 1000
    assert (divergence.dtype_a, divergence.shape_a, divergence.shape_b) == ("float32", (2, 4, 13), (2, 5, 13))
    assert [(i.name, i.status, i.max_abs) for i in divergence.inputs] == [
        ("input", "equal", 0),
        ("other", "differs", 1),
    ]
    assert divergence.between == ()
    assert divergence.note == "its input differs already, though no value that both runs have before it does"


def test_the_names_of_samples_and_the_texts_of_tokens():
    class Tokenizer:
        def decode(self, tokens: list[int]) -> str:
            return f"<{tokens[0]}>"

    tokens = ids()
    model, other = faulty((1, 3, 5))
    layout = fp.Layout.from_mask(torch.ones(2, 4), samples=["a", "b"])
    runs = pair(model, batch(tokens), batch(tokens), other, layout=layout)
    divergence = first(*runs, tokenizer=Tokenizer())
    assert (divergence.sample, divergence.position, divergence.token) == ("b", 3, f"<{int(tokens[1, 3])}>")


def test_a_parameter_that_differs_is_named():
    model = Model()
    other = twin(model)
    with torch.no_grad():
        other.layers[0].weight[2, 3] += 1
    divergence = first(*pair(model, batch(ids()), batch(ids()), other))
    assert divergence.op == "layers.0/linear"
    assert [(i.name, i.status, i.parameter) for i in divergence.inputs] == [
        ("input", "equal", None), ("weight", "differs", "layers.0.weight"), ("bias", "equal", "layers.0.bias"),
    ]  # fmt: skip
    assert divergence.inputs[1].max_abs == pytest.approx(1)


def test_values_of_two_dtypes_that_are_equal_are_no_divergence():
    class Cast(Model):
        dtype = torch.float32

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            whole = (hidden * 4).round().to(self.dtype)
            return whole.float() / 4

    model = Cast()
    other = twin(model)
    other.dtype = torch.float16
    result = fp.compare(*pair(model, batch(ids()), batch(ids()), other), probes=False)
    assert result.first is None
    assert next(o for o in result.ops if o.function == "to").status in ("differs", "view", "not compared")


def test_what_a_module_hides_is_reported_at_the_module():
    model = Model()
    other = twin(model)
    other.layers[0].register_forward_hook(lambda module, args, output: output + 1)
    divergence = first(*pair(model, batch(ids()), batch(ids()), other))
    assert (divergence.op, divergence.module, divergence.function) == ("layers.0", "layers.0", None)
    assert divergence.code.startswith("def forward(self, input")
    assert names(divergence) == ["b: layers.0/add"]


class Ways(Model):
    """The same function, written in two ways."""

    way = 0

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        hidden = hidden.mul(3).sub(hidden) if self.way else hidden.add(hidden)
        return hidden.abs()


def test_ops_that_one_run_alone_has_are_between():
    model = Ways()
    other = twin(model)
    other.way = 1
    divergence = first(*pair(model, batch(ids()), batch(ids()), other))
    assert (divergence.op, divergence.function) == ("(model)", None)
    assert sorted(names(divergence)) == ["a: (model)/add", "b: (model)/mul", "b: (model)/sub"]
    assert divergence.note == "the runs part ways in ops that only one of them has, before this value"


def test_ops_before_the_last_equal_value_are_not_between():
    class Distant(Faulty):
        way = 0

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            hidden = hidden.mul(2) if self.way else hidden.add(hidden)
            return super().mix(hidden.sin(), **inputs)

    model = Distant()
    other = twin(model)
    other.way, other.where = 1, (1, 3, 5)
    divergence = first(*pair(model, batch(ids()), batch(ids()), other))
    assert (divergence.op, divergence.between) == ("(model)/mul", ())


class Table(Model):
    """Makes a table of no token for every row, of values that are given."""

    def __init__(self) -> None:
        super().__init__()
        self.values = torch.ones(8, 13)

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden + F.embedding(torch.arange(8).view(2, 4), self.values).sum()


class Mask(Model):
    """A mask over queries and keys, of which the keys alone are known."""

    def __init__(self) -> None:
        super().__init__()
        self.values = torch.ones(2, 1, 5, 5)

    def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
        return hidden + torch.where(inputs["attention_mask"][:, None, None].bool(), self.values, 0.0).sum()


def test_a_table_for_every_row_names_the_row():
    model = Table()
    other = twin(model)
    other.values[6, 5] = 2
    divergence = first(*pair(model, batch(ids()), batch(ids()), other))
    assert divergence.function == "embedding"
    assert (divergence.sample, divergence.position, divergence.index_a) == (1, 2, (1, 2, 5))


def test_a_mask_is_its_queries():
    model = Mask()
    other = twin(model)
    other.values[1, 0, 2, 3] = 2
    divergence = first(*pair(model, batch(ids(), right=1), batch(ids(), right=1), other))
    assert divergence.function == "where"
    assert (divergence.sample, divergence.position, divergence.index_a) == (1, 2, (1, 0, 2, 3))


def test_a_write_that_no_tap_saw_is_reported_at_the_first_op_that_reads_it():
    class Behind(Model):
        spoil = False

        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            doubled = hidden * 2
            if self.spoil:
                with torch._C.DisableTorchFunction():
                    doubled[0, 0, 0] += 1
            return doubled.exp()

    model = Behind()
    other = twin(model)
    other.spoil = True
    divergence = first(*pair(model, batch(ids()), batch(ids()), other))
    assert divergence.op == "(model)/exp"
    assert divergence.note == "its input differs already, though no value that both runs have before it does"


def test_integers_and_masks_are_listed_apart():
    class Masked(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            early = torch.arange(hidden.shape[1])[:, None] < 2
            return torch.where(early, hidden, hidden * 2)

    result = fp.compare(*pair(Masked(), batch(ids()), batch(ids(), left=2)), probes=False)
    assert result.first_integer is not None
    assert result.first_integer.function == "arange"
    assert result.first is not None
    assert result.first.op == "(model)/where"
    assert {i.name: i.status for i in result.first.inputs}["input"] == "equal"


def test_a_call_is_named_by_its_index():
    class Steps(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return hidden * (2 if inputs.get("later") else 1)

    tokens = ids(1, 5)
    calls = [{"input_ids": tokens[:, :3]}, {"input_ids": tokens[:, 3:]}]
    spoiled = [calls[0], calls[1] | {"later": True}]
    divergence = first(*pair(Steps(), calls, spoiled))
    assert (divergence.call, divergence.sample, divergence.position) == (1, 0, 3)
    assert divergence.index_a == (0, 0, 0)


def test_the_inputs_of_attention_are_compared_head_by_head():
    class Attention(nn.Module):
        grouped = False

        def forward(self, x: Tensor) -> Tensor:
            query = x.view(2, 3, 4, 7).transpose(1, 2)
            keys = query[:, ::2]
            if not self.grouped:
                keys = keys.repeat_interleave(2, 1)
            scale = 0.5 if self.grouped else 0.7
            return F.scaled_dot_product_attention(query, keys, keys, scale=scale, enable_gqa=self.grouped)

    model, other = Attention(), Attention()
    other.grouped = True
    x = torch.randn(2, 3, 28)
    divergence = first(*pair(model, {"x": x}, {"x": x}, other))
    assert divergence.function == "scaled_dot_product_attention"
    assert {i.name: i.status for i in divergence.inputs} == {
        "query": "equal",
        "key": "equal",
        "value": "equal",
    }


def test_no_token_id_is_beyond_the_vocabulary_of_these_models():
    assert int(ids(3, 9).max()) < VOCABULARY
