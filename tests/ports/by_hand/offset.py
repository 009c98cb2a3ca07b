"""OPT, q scaled before the product, batch of heads flattened."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import copied
from torch import nn
from torch.nn import functional as F


class Offset(nn.Module):
    class Layer(nn.Module):
        def __init__(self, x, c, fault):
            super().__init__()
            self.fault, self.h = fault, c.num_attention_heads
            a = x.self_attn
            self.att = nn.ModuleDict({n: nn.Linear(1, 1) for n in ("q", "k", "v", "o")})
            for n, src in (("q", a.q_proj), ("k", a.k_proj), ("v", a.v_proj), ("o", a.out_proj)):
                self.att[n].weight, self.att[n].bias = copied(src.weight), copied(src.bias)
            if fault == "k-bias":
                self.att["k"].bias = None
            if fault == "q-bias":
                self.att["q"].bias = None
            self.up, self.down = nn.Linear(1, 1), nn.Linear(1, 1)
            for mine, src in ((self.up, x.fc1), (self.down, x.fc2)):
                mine.weight, mine.bias = copied(src.weight), copied(src.bias)
            self.na, self.nf = nn.LayerNorm(c.hidden_size), nn.LayerNorm(c.hidden_size)
            for mine, src in ((self.na, x.self_attn_layer_norm), (self.nf, x.final_layer_norm)):
                mine.weight, mine.bias = copied(src.weight), copied(src.bias)
            if fault == "norm-eps":
                self.nf.eps = 1e-3

        def forward(self, x):
            b, t, n = x.shape
            y = self.na(x)
            s = (n // self.h) ** -0.5
            q = self.att["q"](y) * (1.0 if self.fault == "scale" else s)
            q, k, v = (
                z.view(b, t, self.h, -1).transpose(1, 2).reshape(b * self.h, t, -1)
                for z in (q, self.att["k"](y), self.att["v"](y))
            )
            w = torch.bmm(q, k.transpose(1, 2)) + torch.full((t, t), torch.finfo(x.dtype).min).triu(1)
            y = torch.bmm(w.softmax(-1), v).view(b, self.h, t, -1).transpose(1, 2).reshape(b, t, n)
            x = x + self.att["o"](y)
            y = self.up(self.nf(x))
            y = F.gelu(y) if self.fault == "gelu" else F.relu(y)
            return x + self.down(y)

    def __init__(self, hf, fault=None):
        super().__init__()
        d, self.fault = hf.model.decoder, fault
        self.tok, self.pos = nn.Embedding(1, 1), nn.Embedding(1, 1)
        self.tok.weight, self.pos.weight = copied(d.embed_tokens.weight), copied(d.embed_positions.weight)
        self.layers = nn.ModuleList(Offset.Layer(x, hf.config, fault) for x in d.layers)
        self.norm = nn.LayerNorm(hf.config.hidden_size)
        self.norm.weight, self.norm.bias = copied(d.final_layer_norm.weight), copied(d.final_layer_norm.bias)

    def forward(self, tokens):
        x = (
            self.tok(tokens)
            + self.pos(torch.arange(tokens.shape[1]) + (0 if self.fault == "offset" else 2))[None]
        )
        for layer in self.layers:
            x = layer(x)
        return F.linear(x if self.fault == "no-norm" else self.norm(x), self.tok.weight)


PORT = Offset


def reference() -> nn.Module:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            hidden_size=32,
            num_attention_heads=4,
            ffn_dim=56,
            num_hidden_layers=2,
            vocab_size=70,
            max_position_embeddings=32,
            word_embed_proj_dim=32,
            attn_implementation="eager",
            use_cache=False,
        )
    )


FAULTS = {
    "q-bias": ("layers.0.att.q/linear",),
    "norm-eps": ("layers.0.nf/layer_norm",),
    "scale": ("layers.0/mul", "layers.0/view", "layers.0/transpose", "layers.0/reshape", "layers.0/bmm"),
    "gelu": ("layers.0/gelu",),
    "offset": ("pos/embedding",),
    "no-norm": ("(model)/linear",),
}
HARMLESS = ("k-bias",)
