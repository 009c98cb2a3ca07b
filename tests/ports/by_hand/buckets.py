"""T5's encoder, its relative bias made once, heads before tokens."""

from __future__ import annotations

import math

import torch
import transformers
from tests.ports.by_hand.parts import copied
from torch import nn
from torch.nn import functional as F


class Buckets(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        c, enc = hf.config, hf.encoder
        self.c, self.fault = c, fault
        self.emb = copied(enc.embed_tokens.weight)
        self.bias = copied(enc.block[0].layer[0].SelfAttention.relative_attention_bias.weight)
        self.rows = nn.ModuleList()
        for x in enc.block:
            a, f = x.layer[0].SelfAttention, x.layer[1].DenseReluDense
            self.rows.append(
                nn.ParameterDict(
                    {
                        "qkv": copied(torch.stack([a.q.weight, a.k.weight, a.v.weight])),
                        "o": copied(a.o.weight),
                        "wi": copied(f.wi.weight),
                        "wo": copied(f.wo.weight),
                        "n1": copied(x.layer[0].layer_norm.weight),
                        "n2": copied(x.layer[1].layer_norm.weight),
                    }
                )
            )
        self.n = copied(enc.final_layer_norm.weight)

    def norm(self, x, w):
        if self.fault == "centred":
            x = x - x.mean(-1, keepdim=True)
        return w * (x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt())

    def buckets(self, t):
        away = torch.arange(t)[None, :] - torch.arange(t)[:, None]
        if self.fault == "direction":
            away = -away
        n = self.c.relative_attention_num_buckets // 2
        side = (away > 0).long() * n
        away = away.abs()
        exact = n // 2
        far = (
            exact
            + (
                torch.log(away.float() / exact)
                / math.log(self.c.relative_attention_max_distance / exact)
                * (n - exact)
            ).long()
        )
        return side + torch.where(away < exact, away, far.clamp(max=n - 1))

    def forward(self, tokens):
        x = self.emb[tokens]
        t = tokens.shape[1]
        bias = self.bias[self.buckets(t)].permute(2, 0, 1)[None]
        for i, p in enumerate(self.rows):
            y = self.norm(x, p["n1"])
            q, k, v = (
                torch.einsum("bti,soi->sbto", y, p["qkv"])
                .unflatten(-1, (self.c.num_heads, -1))
                .transpose(2, 3)
            )
            s = torch.einsum("bhqd,bhkd->bhqk", q, k)
            if self.fault == "scaled":
                s = s / math.sqrt(q.shape[-1])
            if not (self.fault == "first-only" and i):
                s = s + bias
            y = (s.softmax(-1) @ v).transpose(1, 2).flatten(2)
            x = x + y @ p["o"].T
            y = self.norm(x, p["n2"])
            y = y @ p["wi"].T
            y = F.gelu(y) if self.fault == "gelu" else y.clamp(min=0)
            x = x + y @ p["wo"].T
        return self.norm(x, self.n)


PORT = Buckets


def reference() -> nn.Module:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=32,
            d_kv=8,
            d_ff=52,
            num_layers=2,
            num_heads=4,
            vocab_size=70,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=12,
            feed_forward_proj="relu",
            attn_implementation="eager",
        )
    )


FAULTS = {
    "centred": ("(model)/mean", "(model)/sub"),
    "direction": (
        "(model)/neg",
        "(model)/gt",
        "(model)/mul",
        "(model)/where",
        "(model)/getitem",
        "(model)/add",
    ),
    "scaled": ("(model)/div",),
    "first-only": ("(model)/softmax",),
    "gelu": ("(model)/gelu",),
}
HARMLESS = ()
