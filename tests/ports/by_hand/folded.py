"""Gemma with the unit of its norms added to the weights and the rows of gate and up by turns."""

from __future__ import annotations

import math

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, rotary
from torch import nn
from torch.nn import functional as F


class Folded(nn.Module):
    class Norm(nn.Module):
        def __init__(self, n, fault):
            super().__init__()
            self.w = nn.Parameter((n.weight + (0 if fault == "unit" else 1)).detach().clone())

        def forward(self, x):
            return F.rms_norm(x, x.shape[-1:], self.w, 1e-6)

    def __init__(self, hf, fault=None):
        super().__init__()
        c, m = hf.config, hf.model
        self.c, self.fault = c, fault
        self.embedding = copied(m.embed_tokens.weight)
        self.attn_in, self.attn_out, self.mlp_in, self.mlp_out = (nn.ParameterList() for _ in range(4))
        self.norms = nn.ModuleList()
        for x in m.layers:
            a = x.self_attn
            self.attn_in.append(copied(torch.cat([a.v_proj.weight, a.k_proj.weight, a.q_proj.weight])))
            self.attn_out.append(copied(a.o_proj.weight.T))
            self.mlp_in.append(
                nn.Parameter(
                    torch.stack([x.mlp.gate_proj.weight, x.mlp.up_proj.weight], 1)
                    .flatten(0, 1)
                    .detach()
                    .clone()
                )
            )
            self.mlp_out.append(copied(x.mlp.down_proj.weight))
            self.norms.append(
                nn.ModuleList(
                    [Folded.Norm(x.input_layernorm, fault), Folded.Norm(x.post_attention_layernorm, fault)]
                )
            )
        self.norms.append(Folded.Norm(m.norm, None))

    def forward(self, ids):
        c, h, g, d = self.c, self.c.num_attention_heads, self.c.num_key_value_heads, self.c.head_dim
        x = F.embedding(ids, self.embedding) * (
            c.hidden_size if self.fault == "embed-scale" else math.sqrt(c.hidden_size)
        )
        t = x.shape[1]
        pos = torch.arange(t, dtype=torch.float32)
        freq = (1e4 if self.fault != "base" else 1e3) ** (torch.arange(0, -d, -2, dtype=torch.float32) / d)
        ang = torch.outer(pos, freq)
        cos, sin = ang.cos(), ang.sin()

        def turn(z):
            a, b_ = (
                z.unflatten(-1, (2, -1)).unbind(-2)
                if self.fault != "pairs"
                else z.unflatten(-1, (-1, 2)).unbind(-1)
            )
            return torch.stack([a * cos - b_ * sin, a * sin + b_ * cos], -2).flatten(-2)

        for i, (n1, n2) in enumerate(self.norms[:-1]):
            v, k, q = F.linear(n1(x), self.attn_in[i]).split([g * d, g * d, h * d], -1)
            q, k, v = (z.unflatten(-1, (-1, d)).transpose(1, 2) for z in (q, k, v))
            if self.fault == "k-v":
                k, v = v, k
            y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=True)
            x = x + y.transpose(1, 2).flatten(2) @ self.attn_out[i]
            gu = F.linear(n2(x), self.mlp_in[i])
            gate, up = gu.chunk(2, -1) if self.fault == "halves" else (gu[..., ::2], gu[..., 1::2])
            x = x + F.linear(
                F.gelu(gate, approximate="none" if self.fault == "exact-gelu" else "tanh") * up,
                self.mlp_out[i],
            )
        return self.norms[-1](x) @ self.embedding.mT


PORT = Folded


def reference() -> nn.Module:
    return transformers.GemmaForCausalLM(
        transformers.GemmaConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=10,
            intermediate_size=48,
            vocab_size=70,
            max_position_embeddings=32,
            rope_parameters=rotary(),
            hidden_activation="gelu_pytorch_tanh",
            **common(),
        )
    )


FAULTS = {
    "unit": ("norms.0.0/rms_norm",),
    "embed-scale": ("(model)/mul",),
    "base": ("(model)/pow", "(model)/rpow", "(model)/outer"),
    "pairs": ("(model)/unflatten", "(model)/unbind", "(model)/mul"),
    "k-v": ("(model)/mul", "(model)/unflatten", "(model)/unbind"),
    "halves": ("(model)/chunk", "(model)/gelu"),
    "exact-gelu": ("(model)/gelu",),
}
HARMLESS = ()
