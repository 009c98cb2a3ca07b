"""Qwen2 with a residual stream of its own, fused qkv and gate_up, and norms that add: as serving engines have it."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, embedding, rotary
from torch import nn
from torch.nn import functional as F


class Pairs(nn.Module):
    class AddNorm(nn.Module):
        def __init__(self, w, eps):
            super().__init__()
            self.scale = copied(w)
            self.eps = eps

        def forward(self, x, residual=None):
            if residual is not None:
                x = x + residual
            return F.rms_norm(x, x.shape[-1:], self.scale, self.eps), x

    class Layer(nn.Module):
        def __init__(self, layer, c, fault):
            super().__init__()
            self.c, self.fault = c, fault
            a, m = layer.self_attn, layer.mlp
            self.pre = Pairs.AddNorm(layer.input_layernorm.weight, 1e-3 if fault == "eps" else c.rms_norm_eps)
            self.qkv = copied(torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]))
            biases = [a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]
            if fault == "v-bias":
                biases[2] = torch.zeros_like(biases[2])
            self.qkv_bias = copied(torch.cat(biases))
            self.dense = copied(a.o_proj.weight)
            self.post = Pairs.AddNorm(layer.post_attention_layernorm.weight, c.rms_norm_eps)
            self.gate_up = copied(torch.cat([m.gate_proj.weight, m.up_proj.weight]))
            self.down = copied(m.down_proj.weight)

        def forward(self, hidden, residual, cos, sin):
            c = self.c
            hidden, residual = self.pre(hidden, residual)
            qkv = F.linear(hidden, self.qkv, self.qkv_bias)
            h, g = c.num_attention_heads, c.num_key_value_heads
            d = c.hidden_size // h
            q, k, v = qkv.split([h * d, g * d, g * d], -1)
            q, k, v = (z.unflatten(-1, (-1, d)).transpose(1, 2) for z in (q, k, v))

            def turn(z):
                a, b = z[..., : d // 2], z[..., d // 2 :]
                return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

            q = turn(q)
            k = k if self.fault == "k-unrotated" else turn(k)
            if self.fault == "scale":
                out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True, scale=1.0)
            else:
                out = F.scaled_dot_product_attention(
                    q, k, v, is_causal=self.fault != "causal", enable_gqa=True
                )
            hidden = F.linear(out.transpose(1, 2).flatten(2), self.dense)
            hidden, residual = self.post(hidden, residual)
            gate, up = F.linear(hidden, self.gate_up).chunk(2, -1)
            if self.fault == "up-gate":
                gate, up = up, gate
            return F.linear(F.silu(gate) * up, self.down), residual

    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.fault, self.c = fault, c
        self.wte = embedding(hf.model.embed_tokens.weight)
        self.blocks = nn.ModuleList(Pairs.Layer(x, c, fault) for x in hf.model.layers)
        self.end = Pairs.AddNorm(hf.model.norm.weight, c.rms_norm_eps)
        d = c.hidden_size // c.num_attention_heads
        angle = torch.outer(
            torch.arange(64).float(),
            1 / c.rope_parameters["rope_theta"] ** (torch.arange(0, d, 2).float() / d),
        )
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, input_ids):
        t = input_ids.shape[1]
        hidden, residual = self.wte(input_ids), None
        for block in self.blocks:
            hidden, residual = block(hidden, residual, self.cos[:t], self.sin[:t])
        if self.fault == "last-residual":
            residual = None
        return F.linear(self.end(hidden, residual)[0], self.wte.weight)


PORT = Pairs


def reference() -> nn.Module:
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=44,
            vocab_size=70,
            max_position_embeddings=64,
            rope_parameters=rotary(1e6),
            tie_word_embeddings=True,
            **common(),
        )
    )


FAULTS = {
    "eps": ("blocks.0.pre/rms_norm",),
    "v-bias": ("blocks.0/linear",),
    "k-unrotated": ("blocks.0/scaled_dot_product_attention",),
    "scale": ("blocks.0/scaled_dot_product_attention",),
    "causal": ("blocks.0/scaled_dot_product_attention",),
    "up-gate": ("blocks.0/silu",),
    "last-residual": ("end/rms_norm",),
}
HARMLESS = ()
