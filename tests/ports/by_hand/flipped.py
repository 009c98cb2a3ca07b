"""BERT, layers in a dict by name, heads last in einsum."""

from __future__ import annotations

import math

import torch
import transformers
from tests.ports.by_hand.parts import copied
from torch import nn
from torch.nn import functional as F


class Flipped(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        self.fault, self.heads = fault, hf.config.num_attention_heads
        e = hf.embeddings
        self.emb = nn.ParameterDict(
            {
                "word": copied(e.word_embeddings.weight),
                "pos": copied(e.position_embeddings.weight),
                "kind": copied(e.token_type_embeddings.weight),
                "g": copied(e.LayerNorm.weight),
                "b": copied(e.LayerNorm.bias),
            }
        )
        self.layers = nn.ModuleDict()
        for i, x in enumerate(hf.encoder.layer):
            a, o = x.attention.self, x.attention.output
            self.layers[f"L{i}"] = nn.ParameterDict(
                {
                    "qw": copied(a.query.weight),
                    "qb": copied(a.query.bias),
                    "kw": copied(a.key.weight),
                    "kb": copied(a.key.bias),
                    "vw": copied(a.value.weight),
                    "vb": copied(a.value.bias),
                    "ow": copied(o.dense.weight),
                    "ob": copied(o.dense.bias),
                    "ag": copied(o.LayerNorm.weight),
                    "ab": copied(o.LayerNorm.bias),
                    "iw": copied(x.intermediate.dense.weight),
                    "ib": copied(x.intermediate.dense.bias),
                    "dw": copied(x.output.dense.weight),
                    "db": copied(x.output.dense.bias),
                    "fg": copied(x.output.LayerNorm.weight),
                    "fb": copied(x.output.LayerNorm.bias),
                }
            )
            if fault == "swapped-norms":
                self.layers[f"L{i}"]["ag"], self.layers[f"L{i}"]["fg"] = (
                    copied(x.output.LayerNorm.weight),
                    copied(o.LayerNorm.weight),
                )

    def norm(self, x, g, b):
        return F.layer_norm(x, x.shape[-1:], g, b, 1e-5 if self.fault == "eps" else 1e-12)

    def layer(self, x, p):
        q, k, v = (F.linear(x, p[n + "w"], p[n + "b"]).unflatten(-1, (self.heads, -1)) for n in "qkv")
        w = torch.einsum("bqhd,bkhd->bqkh", q, k).div(math.sqrt(q.shape[-1])).softmax(2)
        y = torch.einsum("bqkh,bkhd->bqhd", w, v).flatten(2)
        y = F.linear(y, p["ow"], p["ob"])
        if self.fault == "pre-norm":
            x = x + self.norm(y, p["ag"], p["ab"])
        else:
            x = self.norm(x + y, p["ag"], p["ab"])
        y = F.linear(x, p["iw"], p["ib"])
        y = F.linear(
            F.gelu(y, approximate="tanh" if self.fault == "gelu" else "none"),
            p["dw"],
            None if self.fault == "bias" else p["db"],
        )
        return self.norm(x + y, p["fg"], p["fb"])

    def forward(self, tokens):
        e = self.emb
        x = e["word"][tokens] + e["pos"][: tokens.shape[1]]
        if self.fault != "types":
            x = x + e["kind"][0]
        x = self.norm(x, e["g"], e["b"])
        for p in self.layers.values():
            x = self.layer(x, p)
        return x


PORT = Flipped


def reference() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_hidden_layers=2,
            intermediate_size=50,
            vocab_size=70,
            max_position_embeddings=32,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    )


FAULTS = {
    "swapped-norms": ("(model)/layer_norm",),
    "eps": ("(model)/layer_norm",),
    "pre-norm": ("(model)/layer_norm",),
    "gelu": ("(model)/gelu",),
    "bias": ("(model)/linear",),
    "types": ("(model)/layer_norm", "(model)/add"),
}
HARMLESS = ()
