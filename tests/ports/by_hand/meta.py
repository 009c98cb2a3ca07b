"""Llama as Meta wrote it: rotation in complex numbers, rows of q and k in pairs."""

from __future__ import annotations

import math

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, embedding, rotary
from torch import nn
from torch.nn import functional as F


class Meta(nn.Module):
    class Norm(nn.Module):
        def __init__(self, w, eps):
            super().__init__()
            self.weight = copied(w)
            self.eps = eps

        def forward(self, x):
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight

    class Layer(nn.Module):
        def __init__(self, layer, c, fault):
            super().__init__()
            self.c, self.fault = c, fault

            def lin(src, weight=None):
                w = src.weight if weight is None else weight
                out = nn.Linear(w.shape[1], w.shape[0], bias=False)
                out.weight = copied(w)
                return out

            def pairs(w, n):
                return w.unflatten(0, (n, 2, -1)).transpose(1, 2).flatten(0, 2)

            a, f = layer.self_attn, layer.mlp
            arranged = (lambda w, n: w) if fault == "unpermuted" else pairs
            self.wq = lin(a.q_proj, arranged(a.q_proj.weight, c.num_attention_heads))
            self.wk = lin(a.k_proj, arranged(a.k_proj.weight, c.num_key_value_heads))
            self.wv = lin(a.v_proj)
            self.wo = lin(a.o_proj)
            self.w1 = lin(f.gate_proj)
            self.w2 = lin(f.down_proj)
            self.w3 = lin(f.up_proj)
            if fault == "w1-w3":
                self.w1, self.w3 = self.w3, self.w1
            self.attention_norm = Meta.Norm(layer.input_layernorm.weight, c.rms_norm_eps)
            self.ffn_norm = Meta.Norm(layer.post_attention_layernorm.weight, c.rms_norm_eps)

        def attend(self, x, turns):
            b, t, _ = x.shape
            d = self.c.head_dim
            q, k, v = (w(x).view(b, t, -1, d) for w in (self.wq, self.wk, self.wv))

            def turn(z):
                return torch.view_as_real(
                    torch.view_as_complex(z.float().reshape(b, t, -1, d // 2, 2)) * turns[None, :, None]
                ).flatten(3)

            q, k = turn(q), turn(k)
            times = self.c.num_attention_heads // self.c.num_key_value_heads
            if self.fault == "repeat":
                k, v = k.repeat(1, 1, times, 1), v.repeat(1, 1, times, 1)
            else:
                k, v = (z[:, :, :, None].expand(b, t, -1, times, d).reshape(b, t, -1, d) for z in (k, v))
            q, k, v = (z.transpose(1, 2) for z in (q, k, v))
            scores = q @ k.transpose(2, 3) / math.sqrt(d if self.fault != "scale" else self.c.hidden_size)
            mask = torch.full((t, t), -torch.inf).triu(2 if self.fault == "mask" else 1)
            scores = F.softmax(scores + mask, -1)
            return self.wo((scores @ v).transpose(1, 2).reshape(b, t, -1))

        def forward(self, x, turns):
            h = x + self.attend(self.attention_norm(x), turns)
            y = self.ffn_norm(x if self.fault == "residual" else h)
            return h + self.w2(F.silu(self.w1(y)) * self.w3(y))

    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.tok_embeddings = embedding(hf.model.embed_tokens.weight)
        self.layers = nn.ModuleDict(
            {f"block{i}": Meta.Layer(x, c, fault) for i, x in enumerate(hf.model.layers)}
        )
        self.norm = Meta.Norm(hf.model.norm.weight, c.rms_norm_eps)
        self.output = nn.Linear(1, 1, bias=False)
        self.output.weight = copied(hf.lm_head.weight)
        speed = 1 / 10000 ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angle = torch.outer(
            torch.arange(c.max_position_embeddings).float() + (1 if fault == "position" else 0), speed
        )
        self.turns = torch.polar(torch.ones_like(angle), angle)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens)
        for layer in self.layers.values():
            x = layer(x, self.turns[: tokens.shape[1]])
        return self.output(self.norm(x))


PORT = Meta


def reference() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=24,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=36,
            vocab_size=70,
            rms_norm_eps=1e-5,
            max_position_embeddings=32,
            rope_parameters=rotary(),
            **common(),
        )
    )


FAULTS = {
    "unpermuted": ("layers.block0/view_as_complex", "layers.block0/mul", "layers.block0/view_as_real"),
    "w1-w3": ("layers.block0/silu",),
    "repeat": (
        "layers.block0/repeat",
        "layers.block0/matmul",
        "layers.block0/expand",
        "layers.block0/reshape",
        "layers.block0/transpose",
    ),
    "scale": ("layers.block0/div",),
    "mask": ("layers.block0/triu", "layers.block0/add"),
    "residual": ("layers.block0.ffn_norm/square", "layers.block0.ffn_norm/mul"),
}
HARMLESS = ("position",)
