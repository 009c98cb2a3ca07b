"""BLOOM: distances in place of rotations, taken from each query; queries, keys and values in three weights."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, embedding
from torch import nn
from torch.nn import functional as F


class Sloped(nn.Module):
    class Layer(nn.Module):
        def __init__(self, layer, c, fault):
            super().__init__()
            self.fault, self.heads, self.eps = fault, c.n_head, c.layer_norm_epsilon
            fused = layer.self_attention.query_key_value
            weight, bias = (
                fused.weight.unflatten(0, (c.n_head, 3, -1)),
                fused.bias.unflatten(0, (c.n_head, 3, -1)),
            )
            if fault == "three-first":
                weight = fused.weight.unflatten(0, (3, c.n_head, -1)).transpose(0, 1)
            self.w = nn.ParameterList(copied(weight[:, i].flatten(0, 1)) for i in range(3))
            self.b = nn.ParameterList(copied(bias[:, i].flatten()) for i in range(3))
            self.dense, self.dense_b = (
                copied(layer.self_attention.dense.weight),
                copied(layer.self_attention.dense.bias),
            )
            self.up, self.up_b = (
                copied(layer.mlp.dense_h_to_4h.weight.T),
                copied(layer.mlp.dense_h_to_4h.bias),
            )
            self.down, self.down_b = (
                copied(layer.mlp.dense_4h_to_h.weight.T),
                copied(layer.mlp.dense_4h_to_h.bias),
            )
            self.g1, self.c1 = copied(layer.input_layernorm.weight), copied(layer.input_layernorm.bias)
            self.g2, self.c2 = (
                copied(layer.post_attention_layernorm.weight),
                copied(layer.post_attention_layernorm.bias),
            )

        def norm(self, x, gain, shift):
            return F.layer_norm(x, x.shape[-1:], gain, shift, self.eps)

        def forward(self, x, slopes):
            y = self.norm(x, self.g1, self.c1)
            q, k, v = (
                F.linear(y, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for w, b in zip(self.w, self.b, strict=True)
            )
            at = torch.arange(x.shape[1])
            away = at[None, :] if self.fault == "absolute" else at[None, :] - at[:, None]
            if self.fault == "away":
                away = -away
            scores = q @ k.transpose(-1, -2)
            scores = scores / q.shape[-1] if self.fault == "scale" else scores / q.shape[-1] ** 0.5
            scores = scores + slopes[:, None, None] * away
            scores = scores.masked_fill(at[None, :] > at[:, None], -1e38)
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            out = (
                F.linear(mixed, self.dense)
                if self.fault == "dense-bias"
                else F.linear(mixed, self.dense, self.dense_b)
            )
            x = (y if self.fault == "from-norm" else x) + out
            z = self.norm(x, self.g2, self.c2) @ self.up + self.up_b
            z = (
                F.gelu(z)
                if self.fault == "gelu"
                else 0.5 * z * (1 + torch.tanh(0.79788456 * z * (1 + 0.044715 * z * z)))
            )
            return x + (z @ self.down + self.down_b)

    def __init__(self, hf, fault=None):
        super().__init__()
        c, t = hf.config, hf.transformer
        self.fault, self.eps = fault, c.layer_norm_epsilon
        self.table = embedding(t.word_embeddings.weight)
        self.first = nn.LayerNorm(c.hidden_size, eps=self.eps)
        self.last = nn.LayerNorm(c.hidden_size, eps=self.eps)
        self.first.load_state_dict(t.word_embeddings_layernorm.state_dict())
        self.last.load_state_dict(t.ln_f.state_dict())
        self.layers = nn.ModuleList(Sloped.Layer(x, c, fault) for x in t.h)
        power = 4.0 if fault == "slopes" else 8.0
        self.slopes = [2.0 ** (-power * (i + 1) / c.n_head) for i in range(c.n_head)]

    def forward(self, input_ids):
        x = self.table(input_ids)
        if self.fault != "first":
            x = self.first(x)
        slopes = torch.tensor(self.slopes, dtype=torch.float32)
        for layer in self.layers:
            x = layer(x, slopes)
        return self.last(x) @ self.table.weight.T


PORT = Sloped


def reference() -> nn.Module:
    shared = {k: v for k, v in common().items() if k != "num_hidden_layers"}
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(hidden_size=32, n_head=4, n_layer=2, vocab_size=70, **shared)
    )


# Scores are one function in the reference, and four here: of the faults in them nobody can tell which of the four it is.
FAULTS = {
    "three-first": ("layers.0/linear",),
    "away": ("layers.0/mul", "layers.0/matmul"),
    "scale": ("layers.0/div", "layers.0/matmul"),
    "dense-bias": ("layers.0/linear",),
    "from-norm": ("layers.0/add",),
    "gelu": ("layers.0/gelu",),
    "slopes": ("layers.0/mul", "(model)/tensor"),
    "first": ("layers.0/layer_norm",),
}
HARMLESS = ("absolute",)
