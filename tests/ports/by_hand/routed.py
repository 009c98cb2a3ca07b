"""Mixtral with each expert a module of its own, all tokens through each, and the shares of those not chosen zero."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, embedding, rotary
from torch import nn
from torch.nn import functional as F


class Routed(nn.Module):
    class Expert(nn.Module):
        def __init__(self, gate_up, down, fault):
            super().__init__()
            gate, up = gate_up.chunk(2)
            if fault == "w1-w3":
                gate, up = up, gate
            self.w1, self.w3, self.w2 = copied(gate), copied(up), copied(down)

        def forward(self, x):
            return F.linear(F.silu(F.linear(x, self.w1)) * F.linear(x, self.w3), self.w2)

    class Mixture(nn.Module):
        def __init__(self, m, c, fault):
            super().__init__()
            self.fault, self.k = fault, c.num_experts_per_tok + (1 if fault == "one-more" else 0)
            self.router = copied(m.gate.weight)
            self.experts = nn.ModuleList(
                Routed.Expert(a, b, fault)
                for a, b in zip(m.experts.gate_up_proj, m.experts.down_proj, strict=True)
            )

        def forward(self, x):
            rows, columns, size = x.shape
            flat = x.reshape(-1, size)
            logits = F.linear(flat, self.router)
            probabilities = torch.sigmoid(logits) if self.fault == "sigmoid" else logits.softmax(-1)
            best, chosen = probabilities.topk(self.k, -1)
            if self.fault == "by-logits":
                largest, chosen = logits.topk(self.k, -1)
                best = largest.softmax(-1)
            elif self.fault != "unshared":
                best = best / best.sum(-1, keepdim=True)
            total = torch.zeros_like(flat)
            for number, expert in enumerate(self.experts):
                token, place = (chosen == number).nonzero(as_tuple=True)
                if len(token):
                    share = best[token, place][:, None]
                    if self.fault == "inside":
                        total = total.index_add(0, token, expert(flat[token] * share))
                    else:
                        total = total.index_add(0, token, expert(flat[token]) * share)
            return total.view(rows, columns, size)

    class Layer(nn.Module):
        def __init__(self, layer, c, fault):
            super().__init__()
            self.c, self.fault = c, fault
            a = layer.self_attn
            self.q, self.k, self.v, self.o = (
                copied(p.weight) for p in (a.q_proj, a.k_proj, a.v_proj, a.o_proj)
            )
            self.n1, self.n2 = (
                copied(layer.input_layernorm.weight),
                copied(layer.post_attention_layernorm.weight),
            )
            self.moe = Routed.Mixture(layer.mlp, c, fault)

        def norm(self, x, w):
            centred = x - x.mean(-1, keepdim=True) if self.fault == "centred" else x
            return F.rms_norm(centred, x.shape[-1:], w, self.c.rms_norm_eps)

        def forward(self, x, table):
            c = self.c
            y = self.norm(x, self.n1)
            q, k, v = (
                F.linear(y, w).unflatten(-1, (-1, c.hidden_size // c.num_attention_heads))
                for w in (self.q, self.k, self.v)
            )
            cos, sin = table

            def turned(z):
                half = z.shape[-1] // 2
                swapped = torch.cat([-z[..., half:], z[..., :half]], -1)
                return z * cos[:, None] + swapped * sin[:, None]

            q, k = turned(q), turned(k)
            if self.fault == "v-turned":
                v = turned(v)
            q, k, v = (z.transpose(1, 2) for z in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            h = x + F.linear(out.transpose(1, 2).flatten(2), self.o)
            return (x if self.fault == "skipped" else h) + self.moe(self.norm(h, self.n2))

    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.c, self.fault = c, fault
        self.words = embedding(hf.model.embed_tokens.weight)
        self.layers = nn.ModuleList(Routed.Layer(x, c, fault) for x in hf.model.layers)
        self.norm, self.out = copied(hf.model.norm.weight), copied(hf.lm_head.weight)

    def forward(self, input_ids):
        c = self.c
        d = c.hidden_size // c.num_attention_heads
        frequency = 1.0 / (c.rope_parameters["rope_theta"] ** (torch.arange(0, d, 2).float() / d))
        angle = torch.arange(input_ids.shape[1]).float()[:, None] * frequency
        both = torch.cat([angle, angle], -1)
        x = self.words(input_ids)
        if self.fault == "scaled":
            x = x * c.hidden_size**0.5
        for layer in self.layers:
            x = layer(x, (both.cos(), both.sin()))
        return F.linear(F.rms_norm(x, x.shape[-1:], self.norm, c.rms_norm_eps), self.out)


PORT = Routed


def reference() -> nn.Module:
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=44, vocab_size=70,
            num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64, rope_parameters=rotary(),
            tie_word_embeddings=False, experts_implementation="eager", **common(),
        )
    )  # fmt: skip


FAULTS = {
    "w1-w3": tuple(f"layers.0.moe.experts.{i}/silu" for i in range(4)),
    "one-more": ("layers.0.moe/topk",),
    "sigmoid": ("layers.0.moe/sigmoid",),
    "unshared": ("layers.0.moe/topk", "layers.0.moe/mul", "layers.0.moe/getitem"),
    "inside": ("layers.0.moe/mul",),
    "centred": ("layers.0/sub", "layers.0/mean"),
    "v-turned": ("layers.0/mul", "layers.0/add", "layers.0/neg"),
    "skipped": ("layers.0/add",),
    "scaled": ("(model)/mul",),
}
HARMLESS = ("by-logits",)
