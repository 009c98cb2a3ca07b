"""Which parameter of a port is which of its reference: fused, split, transposed, reordered, alike."""

from __future__ import annotations

import importlib

import pytest
import torch
from tests.architectures import ARCHITECTURES
from torch import nn

import forkpoint as fp


def pairs(mapping: fp.Mapping) -> set[tuple[str, str]]:
    return {(m.mine, m.reference) for m in mapping.matches}


def model(**parts: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(parts)


def test_rows_of_a_fused_projection_are_found_in_any_order():
    torch.manual_seed(0)
    reference = model(q=nn.Linear(6, 8, bias=False), k=nn.Linear(6, 4, bias=False))
    port = model(qk=nn.Linear(6, 12, bias=False))
    order = torch.randperm(12)
    port["qk"].weight.data = torch.cat([reference["q"].weight, reference["k"].weight])[order].detach()
    found = fp.mapping(port, reference)
    assert pairs(found) == {("qk.weight", "q.weight"), ("qk.weight", "k.weight")}
    for match in found.matches:
        mine, theirs = port["qk"].weight, reference[match.reference[0]].weight
        assert torch.equal(mine[match.rows_mine], theirs[match.rows_reference])
    back = fp.mapping(reference, port)
    assert pairs(back) == {(b, a) for a, b in pairs(found)}


def test_a_transposed_weight_is_found_and_said_to_be_one():
    reference, port = model(a=nn.Linear(5, 7, bias=False)), model(b=nn.Linear(7, 5, bias=False))
    port["b"].weight.data = reference["a"].weight.T.detach().clone()
    (match,) = fp.mapping(port, reference).matches
    assert (match.mine, match.reference, match.how) == ("b.weight", "a.weight", "transposed")


def test_another_dtype_that_holds_the_same_values_is_no_obstacle():
    reference = model(a=nn.Linear(5, 7)).bfloat16()
    port = model(b=nn.Linear(5, 7))
    port["b"].weight.data, port["b"].bias.data = (p.detach().float() for p in reference["a"].parameters())
    assert pairs(fp.mapping(port, reference)) == {("b.weight", "a.weight"), ("b.bias", "a.bias")}


def test_an_embedding_and_a_head_of_the_same_values_meet_their_likes():
    reference = model(words=nn.Embedding(9, 4), out=nn.Linear(4, 9, bias=False))
    reference["out"].weight = reference["words"].weight
    port = model(head=nn.Linear(4, 9, bias=False), table=nn.Embedding(9, 4))
    port["head"].weight.data = port["table"].weight.data = reference["words"].weight.detach().clone()
    assert pairs(fp.mapping(port, reference)) == {
        ("head.weight", "out.weight"),
        ("table.weight", "words.weight"),
    }


def test_other_values_are_nothing_in_common():
    torch.manual_seed(0)
    found = fp.mapping(model(a=nn.Linear(5, 7), b=nn.Linear(7, 5)), model(x=nn.Linear(5, 7)))
    assert {m.how for m in found.matches} <= {"order"}
    assert "b.weight" in found.unmatched_mine


def test_it_is_changed_by_hand():
    torch.manual_seed(0)
    port, reference = model(a=nn.Linear(5, 7), c=nn.Linear(5, 7)), model(x=nn.Linear(5, 7), y=nn.Linear(5, 7))
    found = fp.mapping(port, reference)
    found.set("a.weight", "y.weight")
    assert ("a.weight", "y.weight") in pairs(found)
    found.drop("c")
    assert not any(m.mine.startswith("c.") for m in found.matches)
    for mine, theirs, said in (
        ("z", "x", "the port has not"),
        ("a", "z", "the reference has not"),
        ("a", "x.bias", "two modules"),
    ):
        with pytest.raises(fp.InputError, match=said):
            found.set(mine, theirs)
    with pytest.raises(fp.InputError, match="without modules"):
        fp.mapping(lambda x: x, reference)  # type: ignore[arg-type]


NAMES = {
    "llama": {
        "tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head", "wqkv": "self_attn.{qkv}_proj",
        "wo": "self_attn.o_proj", "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj",
        "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    },
    "neox": {
        "words": "gpt_neox.embed_in", "last": "gpt_neox.final_layer_norm", "head": "lm_head", "q": "attention.query_key_value",
        "k": "attention.query_key_value", "v": "attention.query_key_value", "out": "attention.dense",
        "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h", "ln1": "input_layernorm", "ln2": "post_attention_layernorm",
    },
    "gemma": {
        "table": "model.embed_tokens", "final": "model.norm", "qkv": "self_attn.{qkv}_proj", "o": "self_attn.o_proj",
        "gate_up": "mlp.{gate up}_proj", "down": "mlp.down_proj", "before": "input_layernorm",
        "after": "post_attention_layernorm", "ahead": "pre_feedforward_layernorm", "behind": "post_feedforward_layernorm",
    },
}  # fmt: skip
"""For the last part of a module's path in a port, its path in the reference, within its layer if it is in one."""


@pytest.mark.parametrize("plain_norms", [False, True])
@pytest.mark.parametrize("family", NAMES)
def test_ports_of_three_families_are_mapped_without_a_wrong_pair(family: str, plain_norms: bool):
    reference = ARCHITECTURES[{"neox": "gpt_neox", "gemma": "gemma2"}.get(family, family)].build()
    if plain_norms:  # then their values tell nothing
        for name, parameter in reference.named_parameters():
            if "norm" in name:
                parameter.data.fill_(float(name.endswith("weight")))
    port = importlib.import_module(f"tests.ports.written.{family}").ported(reference)
    found = fp.mapping(port, reference)
    for match in found.matches:
        mine, theirs = match.mine.split(".")[:-1], match.reference.rpartition(".")[0]
        expected = NAMES[family][mine[-1]]
        layer = next((part for part in mine if part.isdigit()), None)
        place, _, rest = theirs.partition(f".{layer}.") if layer is not None else ("", "", theirs)
        first, _, last = expected.partition("{")
        options = last.partition("}")[0]
        wanted = [expected] if not options else [
            f"{first}{one}{last.partition('}')[2]}" for one in (options.split() if " " in options else options)
        ]  # fmt: skip
        assert rest in wanted, (place, match)
    assert not found.unmatched_mine
    assert set(found.unmatched_reference) <= {"lm_head.weight"}
