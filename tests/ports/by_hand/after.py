"""OLMo 2: norms behind what they belong to, queries and keys normed over all heads; written with einsum and slices of one weight."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, rotary
from torch import nn
from torch.nn import functional as F


class After(nn.Module):
    class Rms(nn.Module):
        def __init__(self, w, eps):
            super().__init__()
            self.g = copied(w)
            self.eps = eps

        def forward(self, x):
            return self.g * (x * torch.rsqrt((x**2).mean(-1, keepdim=True) + self.eps))

    class Block(nn.Module):
        def __init__(self, layer, c, fault):
            super().__init__()
            self.fault, self.c = fault, c
            a, m = layer.self_attn, layer.mlp
            self.wq, self.wk, self.wv, self.wo = (
                copied(p.weight) for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)
            )
            q, k = a.q_norm.weight, a.k_norm.weight
            self.nq = After.Rms(q, 1e-2 if fault == "q-eps" else c.rms_norm_eps)
            self.nk = After.Rms(k, c.rms_norm_eps)
            ends = [layer.post_attention_layernorm.weight, layer.post_feedforward_layernorm.weight]
            if fault == "ends":
                ends.reverse()
            self.n1, self.n2 = (After.Rms(w, c.rms_norm_eps) for w in ends)
            self.w_in = copied(torch.cat([m.up_proj.weight, m.gate_proj.weight]))
            self.w_out = copied(m.down_proj.weight)

        def turn(self, x, cos, sin):
            half = x.shape[-1] // 2
            a, b = x[..., :half], x[..., half:]
            left = a * cos - b * sin
            right = b * sin + a * cos if self.fault == "right" else b * cos + a * sin
            return torch.cat([left, right], -1)

        def mix(self, x, cos, sin):
            c = self.c
            h, g = c.num_attention_heads, c.num_key_value_heads
            q, k, v = F.linear(x, self.wq), F.linear(x, self.wk), F.linear(x, self.wv)
            q = self.nq(q)
            if self.fault != "k-unnormed":
                k = self.nk(k)
            q, k, v = (z.view(*z.shape[:2], -1, c.hidden_size // h).transpose(1, 2) for z in (q, k, v))
            q, k = self.turn(q, cos, sin), self.turn(k, cos, sin)
            if self.fault == "tiled":
                k, v = k.repeat(1, h // g, 1, 1), v.repeat(1, h // g, 1, 1)
            else:
                k, v = k.repeat_interleave(h // g, 1), v.repeat_interleave(h // g, 1)
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * (c.hidden_size // h) ** -0.5
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            shares = torch.softmax(scores.masked_fill(future, -torch.inf), -1)
            return F.linear(torch.einsum("bhqk,bhkd->bqhd", shares, v).flatten(2), self.wo)

        def forward(self, x, cos, sin):
            if self.fault == "before":
                x = x + self.mix(self.n1(x), cos, sin)
            elif self.fault == "outside":
                x = self.n1(x + self.mix(x, cos, sin))
            else:
                x = x + self.n1(self.mix(x, cos, sin))
            both = F.linear(x, self.w_in)
            width = both.shape[-1] // 2
            return x + self.n2(F.linear(both[..., :width] * F.silu(both[..., width:]), self.w_out))

    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.fault, self.c = fault, c
        self.words = copied(hf.model.embed_tokens.weight)
        self.blocks = nn.ModuleList(After.Block(x, c, fault) for x in hf.model.layers)
        self.end = After.Rms(hf.model.norm.weight, c.rms_norm_eps)
        self.logits = copied(hf.lm_head.weight)

    def forward(self, input_ids):
        x = self.words[input_ids]
        d = self.c.hidden_size // self.c.num_attention_heads
        shift = 5 if self.fault == "shifted" else 0
        base = self.c.rope_parameters["rope_theta"] ** (-torch.arange(0, d, 2).float() / d)
        angle = (torch.arange(x.shape[1]) + shift)[:, None] * base
        for block in self.blocks:
            x = block(x, angle.cos(), angle.sin())
        return F.linear(self.end(x), self.logits)


PORT = After


def reference() -> nn.Module:
    return transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=44, vocab_size=70,
            max_position_embeddings=64, rope_parameters=rotary(), tie_word_embeddings=False, eos_token_id=1, **common(),
        )
    )  # fmt: skip


FAULTS = {
    "q-eps": ("blocks.0.nq/add",),
    "ends": ("blocks.0.n1/mul",),
    "right": ("blocks.0/add", "blocks.0/mul"),
    "k-unnormed": ("blocks.0/mul",),
    "tiled": ("blocks.0/einsum",),
    "before": ("blocks.0.n1/pow",),
    "outside": ("blocks.0/add",),
}
HARMLESS = ("shifted",)
