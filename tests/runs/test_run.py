"""A run: what it takes, what it returns, and that it leaves the model and its inputs as they were."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from forkpoint import InputError, Layout, Run
from forkpoint.runs.run import copy_inputs, token_ids


class Cache:
    """What a model hands on: any object that is no tensor."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = list(tensors)


class Steps(nn.Module):
    """Counts the tokens that it has seen in a cache."""

    def forward(self, input_ids, past_key_values=None):
        past = past_key_values or Cache(torch.zeros(1))
        past.tensors[0] += input_ids.shape[1]
        return {"logits": past.tensors[0].clone(), "past_key_values": past}


def x(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


# --- Calls -----------------------------------------------------------------------------------------


def test_the_cache_of_one_call_is_handed_to_the_next():
    ids = torch.ones(1, 3, dtype=torch.int64)
    outputs = Run(
        Steps(), [{"input_ids": ids}, {"input_ids": ids[:, :1]}, {"input_ids": ids[:, :1]}]
    ).execute()
    assert [float(output["logits"]) for output in outputs[:2]] == [3, 4]


def test_a_call_that_names_a_cache_gets_that_one():
    ids = torch.ones(1, 3, dtype=torch.int64)
    given = Cache(torch.full((1,), 10.0))
    run = Run(Steps(), [{"input_ids": ids}, {"input_ids": ids, "past_key_values": given}])
    for _ in range(2):
        assert float(run.execute()[1]["logits"]) == 13
    assert float(given.tensors[0]) == 10


def test_an_attribute_is_a_cache_too():
    seen = []

    def call(model, inputs):
        seen.append(sorted(inputs))
        return SimpleNamespace(cache_params=Cache(), past_key_values=None, out=inputs["x"])

    Run(object(), [{"x": x(1, 2)}] * 2, call=call).execute()
    assert seen == [["x"], ["cache_params", "x"]]


def test_a_call_of_ones_own_gets_the_model_and_the_inputs():
    model = object()
    run = Run(model, {"x": x(1, 2, 3)}, call=lambda m, inputs: (m is model, inputs["x"] + 1))
    assert run.execute()[0][0] is True
    assert run.modules is None


def test_no_gradient_is_kept():
    output = Run(nn.Linear(3, 2), {"input": x(1, 2, 3)}).execute()[0]
    assert not output.requires_grad


# --- Inputs are copied -----------------------------------------------------------------------------


def test_what_a_model_does_to_its_inputs_does_not_reach_them():
    given = {"a": x(2, 3), "nested": {"b": [x(2), (x(3),)]}, "cache": Cache(x(4))}
    before = [t.clone() for t in (given["a"], given["nested"]["b"][0], given["cache"].tensors[0])]

    def spoil(_, inputs):
        inputs["a"].zero_()
        inputs["nested"]["b"][0].zero_()
        inputs["nested"]["new"] = 1
        inputs["cache"].tensors[0].zero_()
        inputs["cache"].tensors.append(1)
        return inputs["a"]

    Run(None, given, call=spoil).execute()
    after = (given["a"], given["nested"]["b"][0], given["cache"].tensors[0])
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert sorted(given["nested"]) == ["b"]
    assert len(given["cache"].tensors) == 1


@pytest.mark.parametrize(
    "tensor", [x(4, 3).T, x(4, 6)[:, ::2], x(1, 3).expand(4, 3), x(2, 3, 4, 4).to(memory_format=torch.channels_last)]
)  # fmt: skip
def test_a_copy_has_the_strides_of_what_it_copies(tensor):
    copied = copy_inputs({"t": tensor})["t"]
    assert copied.stride() == tensor.stride()
    assert torch.equal(copied, tensor)
    assert copied.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_one_tensor_given_twice_is_one_tensor_in_the_copy():
    shared = x(2, 3)
    copied = copy_inputs({"query": shared, "key": shared, "more": [shared]})
    assert copied["query"] is copied["key"] is copied["more"][0]


def test_a_leaf_that_wants_gradients_still_does():
    assert copy_inputs({"t": x(2).requires_grad_()})["t"].requires_grad


def test_what_can_not_be_copied_is_passed_on():
    lock = __import__("threading").Lock()
    model = nn.Linear(1, 1)
    copied = copy_inputs({"lock": lock, "module": model})
    assert copied["lock"] is lock
    assert copied["module"] is model


# --- Token ids ---------------------------------------------------------------------------------------


def test_token_ids_are_known_by_sample_and_position():
    ids = torch.tensor([[9, 4, 5], [6, 7, 8]])
    run = Run(nn.Embedding(10, 2), {"input_ids": ids, "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])})
    assert token_ids(run) == {(0, 0): 4, (0, 1): 5, (1, 0): 6, (1, 1): 7, (1, 2): 8}
    assert token_ids(Run(nn.Linear(4, 2), {"input": x(1, 3, 4)})) == {}


# --- Messages --------------------------------------------------------------------------------------


def on_meta() -> nn.Module:
    return nn.Linear(2, 2, device="meta")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            lambda: Run(nn.Identity(), [1]),
            ("inputs of type list; expected a mapping of keyword arguments for one forward call, or a non-empty list of "
            "such mappings"),
        ),
        (
            lambda: Run(nn.Identity(), []),
            ("inputs of type list; expected a mapping of keyword arguments for one forward call, or a non-empty list of "
            "such mappings"),
        ),
        (
            lambda: Run(nn.Identity(), [{"x": x(1)}, {"y": 1, "b": "text"}]),
            "call 1 has no tensor among ['b', 'y']; expected inputs with at least one tensor",
        ),
        (
            lambda: Run(nn.Sequential(on_meta()), {"x": x(1, 2)}),
            ("2 parameters without values, 0.weight first; expected a model whose weights are loaded "
            "(load the model with its weights, not on the meta device)"),
        ),
        (
            lambda: Run("a path", {"x": x(1, 2)}),
            "a model of type str; expected a torch.nn.Module (or say how to call it: call=)",
        ),
        (
            lambda: Run(nn.Identity(), [{"x": x(1, 2)}] * 2, layout=Layout.from_mask(torch.ones(1, 2))),
            "a layout of 1 calls for 2 calls; expected one entry for each call",
        ),
        (
            lambda: Run(nn.Identity(), {"x": x(1, 2)}, layout=Layout.from_mask(torch.ones(1, 4))),
            ("call 0: a layout of shape (1, 4) for x of shape (1, 2); expected coordinates for each row and column of "
            "the input"),
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_run_is_refused(arguments, text):
    with pytest.raises(InputError) as raised:
        arguments()
    assert str(raised.value) == text


@pytest.mark.xfail(reason="features of three dimensions are taken for frames, whatever their sizes")
def test_a_layout_of_more_columns_than_the_input_has_is_refused():
    with pytest.raises(InputError, match="a layout of shape"):
        Run(nn.Identity(), {"x": x(1, 2, 3)}, layout=Layout.from_mask(torch.ones(1, 4)))


class Box:
    """A cache of somebody's own."""

    def __init__(self, kept: torch.Tensor) -> None:
        self.kept = kept


def test_tensors_in_objects_are_copied_though_gradients_lead_back_from_them():
    weight = torch.ones(3, requires_grad=True)
    cache = Box(weight * 2)
    copied = copy_inputs({"cache": cache})["cache"]
    assert copied.kept is not cache.kept
    copied.kept.zero_()
    assert cache.kept.tolist() == [2, 2, 2]


def test_an_input_that_wants_gradients_and_is_no_leaf_is_copied_as_such():
    leaf = x(3).requires_grad_()
    value = copy_inputs({"t": leaf * 2})["t"]
    assert value.requires_grad
    assert not value.is_leaf
    assert torch.equal(value, leaf * 2)
    value.mul_(2)  # as a module may do with hidden states, and not with a leaf
    assert torch.equal(leaf * 2, leaf.detach() * 2)
    (gradient,) = torch.autograd.grad((value * value).sum(), value)
    assert torch.equal(gradient, 2 * value.detach())
