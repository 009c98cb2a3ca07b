"""GPT-2 with linear layers instead of Conv1D, q, k and v apart, and a norm by hand."""

from __future__ import annotations

import math

import torch
import transformers
from tests.ports.by_hand.parts import copied
from torch import nn
from torch.nn import functional as F


class Untied(nn.Module):
    class Norm(nn.Module):
        def __init__(self, n, fault):
            super().__init__()
            self.g, self.b, self.fault = copied(n.weight), copied(n.bias), fault

        def forward(self, x):
            mean = x.mean(-1, keepdim=True)
            var = (x - mean).pow(2).sum(-1, keepdim=True) / (
                x.shape[-1] - (1 if self.fault == "unbiased" else 0)
            )
            return (x - mean) / (var + 1e-5).sqrt() * self.g + self.b

    class Layer(nn.Module):
        def __init__(self, block, c, fault, index):
            super().__init__()
            self.fault, self.heads = fault, c.n_head

            def lin(w, b):
                out = nn.Linear(*w.shape)
                out.weight, out.bias = copied(w.T.contiguous()), copied(b)
                return out

            a = block.attn
            for name, w, b in zip(
                ("query", "key", "value"), a.c_attn.weight.chunk(3, 1), a.c_attn.bias.chunk(3), strict=True
            ):
                setattr(self, name, lin(w, b))
            self.merge = lin(a.c_proj.weight, a.c_proj.bias)
            if fault == "square" and index == 1:
                self.merge.weight = copied(a.c_proj.weight)
            self.wide, self.narrow = (
                lin(block.mlp.c_fc.weight, block.mlp.c_fc.bias),
                lin(block.mlp.c_proj.weight, block.mlp.c_proj.bias),
            )
            if fault == "narrow-bias" and index == 1:
                self.narrow.bias = None
            self.one, self.two = Untied.Norm(block.ln_1, fault), Untied.Norm(block.ln_2, fault)

        def forward(self, x):
            y = self.one(x)
            b, t, d = y.shape
            q, k, v = (
                p(y).view(b, t, self.heads, -1).permute(0, 2, 1, 3)
                for p in (self.query, self.key, self.value)
            )
            w = torch.einsum("bhqd,bhkd->bhqk", q / q.shape[-1] ** 0.5, k)
            w = w.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -1e9).softmax(
                1 if self.fault == "softmax" else -1
            )
            out = w @ v
            out = out.reshape(b, t, d) if self.fault == "heads" else out.transpose(1, 2).reshape(b, t, d)
            x = x + self.merge(out)
            z = self.wide(self.two(x))
            z = (
                F.gelu(z)
                if self.fault == "gelu"
                else 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
            )
            return x + self.narrow(z)

    def __init__(self, hf, fault=None):
        super().__init__()
        m, self.fault = hf.transformer, fault
        self.words, self.places = copied(m.wte.weight), copied(m.wpe.weight)
        self.stack = nn.Sequential(*(Untied.Layer(x, hf.config, fault, i) for i, x in enumerate(m.h)))
        self.final = Untied.Norm(m.ln_f, fault)

    def forward(self, ids):
        at = torch.arange(ids.shape[1]) + (1 if self.fault == "position" else 0)
        return self.final(self.stack(self.words[ids] + self.places[at])) @ self.words.T


PORT = Untied


def reference() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_embd=30,
            n_head=3,
            n_inner=52,
            n_layer=2,
            vocab_size=70,
            n_positions=32,
            initializer_range=0.2,
            attn_implementation="eager",
            use_cache=False,
        )
    )


FAULTS = {
    "unbiased": (
        "stack.0.one/mean",
        "stack.0.one/sub",
        "stack.0.one/pow",
        "stack.0.one/sum",
        "stack.0.one/div",
    ),
    "square": ("stack.1.merge/linear",),
    "narrow-bias": ("stack.1.narrow/linear",),
    "softmax": ("stack.0/softmax",),
    "heads": ("stack.0/reshape", "stack.0.merge/linear"),
    "gelu": ("stack.0/gelu",),
    "position": ("(model)/getitem", "(model)/add"),
}
HARMLESS = ()
