"""Every value that an engineer once edited `modeling_llama` for is there without an edit.

The engineer, who asked why padding changes the logits of a Llama, returned these values through
three classes, first those of the decoder layer, then those of the attention. Each has a name here
that the model's own source gives it: the module, and the variable or what goes in and comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt
from torch import nn
from transformers.models.llama import modeling_llama

import forkpoint


@dataclass(frozen=True)
class Named:
    """Where a value of the engineer's is in the unedited model."""

    module: str
    """Below the decoder layer."""
    name: str
    """What `Result.value` is asked for."""
    index: int = 0
    """Which one, where the name is used again in the module."""


LAYER = {
    "hidden": Named("", "input:hidden_states"),
    "input_layernorm": Named("input_layernorm", "output"),
    "self_attn": Named("self_attn", "output"),
    "add_res": Named("", "hidden_states/add"),
    "post_attention_layernorm": Named("post_attention_layernorm", "output"),
    "mlp": Named("mlp", "output"),
    "final": Named("", "hidden_states/add", index=1),
}
"""What the decoder layer was made to return."""

ATTENTION = {
    "attn_input": Named("self_attn", "input:hidden_states"),
    "q_proj": Named("self_attn.q_proj", "weight"),
    "k_proj": Named("self_attn.k_proj", "weight"),
    "v_proj": Named("self_attn.v_proj", "weight"),
    "query_states": Named("self_attn.q_proj", "query_states/linear"),
    "key_states": Named("self_attn.k_proj", "key_states/linear"),
    "value_states": Named("self_attn.v_proj", "value_states/linear"),
    "attn_weights": Named("self_attn", "attn_weights/mul"),
    "attn_weights2": Named("self_attn", "attn_weights/add"),
    "attn_weights3": Named("self_attn", "attn_weights/softmax"),
    "attn_weight4": Named("self_attn", "attn_weights/dropout"),
    "attn_output": Named("self_attn", "attn_output/matmul"),
    "attn_output2": Named("self_attn.o_proj", "attn_output/linear"),
}
"""What the attention was made to return: around the mask, the softmax, the dropout and `o_proj`."""

NAMES = {**LAYER, **ATTENTION}


def padded(prompts: list[list[int]], width: int | None = None) -> dict[str, torch.Tensor]:
    return ARCHITECTURES["llama"].inputs(prompts, width, "right")


RUNS = {"a": padded([prompt(18)]), "b": padded([prompt(18)], 50)}


@cache
def model() -> Any:
    return ARCHITECTURES["llama"].build(attention="eager")


@cache
def result() -> forkpoint.Result:
    return forkpoint.compare(
        forkpoint.Run(model(), RUNS["a"]), forkpoint.Run(model(), RUNS["b"]), probes=False
    )


@cache
def by_hand(run: str, layer: int) -> dict[str, torch.Tensor]:
    """The same values the engineer's way: hooks, and an edited attention in place of the model's."""
    found: dict[str, torch.Tensor] = {}
    block = model().model.layers[layer]
    attention = block.self_attn

    def keep(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _m, _i, out: found.update({name: first(out)}))

    def keep_input(name: str, module: nn.Module) -> Any:
        return module.register_forward_pre_hook(
            lambda _m, args, kwargs: found.update(
                {name: kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]}
            ),
            with_kwargs=True,
        )

    handles = [
        keep("input_layernorm", block.input_layernorm),
        keep("self_attn", attention),
        keep_input("add_res", block.post_attention_layernorm),
        keep("post_attention_layernorm", block.post_attention_layernorm),
        keep("mlp", block.mlp),
        keep("final", block),
        keep_input("hidden", block),
        keep_input("attn_input", attention),
        keep("query_states", attention.q_proj),
        keep("key_states", attention.k_proj),
        keep("value_states", attention.v_proj),
        keep("attn_output2", attention.o_proj),
    ]
    original = modeling_llama.eager_attention_forward

    def edited(
        module: nn.Module, query: Any, key: Any, value: Any, mask: Any, scaling: float, **_: Any
    ) -> Any:
        key = modeling_llama.repeat_kv(key, module.num_key_value_groups)
        value = modeling_llama.repeat_kv(value, module.num_key_value_groups)
        weights = torch.matmul(query, key.transpose(2, 3)) * scaling
        masked = weights + mask
        after_softmax = nn.functional.softmax(masked, dim=-1, dtype=torch.float32).to(query.dtype)
        output = torch.matmul(after_softmax, value)
        if module is attention:
            found.update(
                attn_weights=weights, attn_weights2=masked, attn_weights3=after_softmax, attn_weight4=after_softmax,
                attn_output=output,
            )  # fmt: skip
        return output.transpose(1, 2).contiguous(), after_softmax

    modeling_llama.eager_attention_forward = edited
    try:
        with torch.no_grad():
            model()(**RUNS[run])
    finally:
        modeling_llama.eager_attention_forward = original
        for handle in handles:
            handle.remove()
    found.update({f"{name}_proj": getattr(attention, f"{name}_proj").weight.detach() for name in "qkv"})
    return found


def first(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]


def path_of(named: Named, layer: int) -> str:
    return f"model.layers.{layer}.{named.module}".rstrip(".")


def test_the_table_is_complete() -> None:
    assert set(by_hand("a", 0)) == set(NAMES)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_the_value(name: str, layer: int, run: str) -> None:
    named = NAMES[name]
    value = result().value(path_of(named, layer), named.name, run=run, index=named.index)
    expected = by_hand(run, layer)[name]
    assert value.dtype == expected.dtype
    assert torch.equal(value, expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_its_own(name: str) -> None:
    """The values differ from one another, so that the test above can't take one for another."""
    values = by_hand("a", 1)
    twins = {"attn_weights3": "attn_weight4", "attn_weight4": "attn_weights3", "input_layernorm": "attn_input", "attn_input": "input_layernorm", "self_attn": "attn_output2", "attn_output2": "self_attn"}  # fmt: skip
    others = [other for other in values if other not in (name, twins.get(name))]
    assert not any(
        values[other].shape == values[name].shape and torch.equal(values[other], values[name])
        for other in others
    )


@pytest.mark.parametrize("name", [name for name in NAMES if "/" in NAMES[name].name])
def test_the_row(name: str) -> None:
    """The list of ops has it under the variable that the source assigns."""
    named = NAMES[name]
    variable, function = named.name.split("/")
    rows = [
        row
        for row in result().ops
        if row.module == path_of(named, 1) and row.function == function and row.variable == variable
    ]
    assert len(rows) > named.index
    row = rows[named.index]
    assert row.op == f"{row.module}/{row.function}"
    assert row.source.startswith("modeling_llama.py:")
    assert row.code.startswith(f"{variable} = ")
    assert row.shape == tuple(by_hand("a", 1)[name].shape)
    assert row.dtype == "float32"
    assert row.status in ("equal", "differs", "view")


@pytest.mark.parametrize(
    "variable", ["query_states", "key_states", "value_states", "attn_weights", "attn_output"]
)
def test_a_variable_alone_is_a_name(variable: str) -> None:
    values = [
        result().value("model.layers.0.self_attn", variable),
        result().value("model.layers.0.self_attn", variable, index=0),
    ]
    assert torch.equal(*values)


def test_a_function_alone_is_a_name() -> None:
    assert torch.equal(
        result().value("model.layers.0.self_attn.q_proj", "linear"), by_hand("a", 0)["query_states"]
    )
    assert torch.equal(
        result().value("model.layers.0.self_attn", "softmax"), by_hand("a", 0)["attn_weights3"]
    )


def test_input_alone_is_the_first_input() -> None:
    assert torch.equal(
        result().value("model.layers.0.self_attn.q_proj", "input"), by_hand("a", 0)["attn_input"]
    )


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(forkpoint.InputError, match="no_such_variable"):
        result().value("model.layers.0.self_attn", "no_such_variable")
