"""Granite, functional, with a dict of weights and its multipliers put where they are cheapest."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import copied, rotary
from torch import nn
from torch.nn import functional as F


class Multiplied(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.c, self.fault = c, fault
        self.w = nn.ParameterDict()

        def put(name, t):
            self.w[name] = copied(t)

        put("words", hf.model.embed_tokens.weight)
        for i, x in enumerate(hf.model.layers):
            put(f"{i}_n1", x.input_layernorm.weight)
            put(f"{i}_n2", x.post_attention_layernorm.weight)
            put(f"{i}_kv", torch.cat([x.self_attn.v_proj.weight, x.self_attn.k_proj.weight]))
            put(f"{i}_q", x.self_attn.q_proj.weight)
            put(f"{i}_o", x.self_attn.o_proj.weight.T)
            put(f"{i}_gu", torch.cat([x.mlp.gate_proj.weight, x.mlp.up_proj.weight]).T)
            put(f"{i}_d", x.mlp.down_proj.weight)
        put("n", hf.model.norm.weight)

    def norm(self, x, w):
        return F.rms_norm(x, x.shape[-1:], w, self.c.rms_norm_eps)

    def forward(self, tokens):
        c, w = self.c, self.w
        h, g = c.num_attention_heads, c.num_key_value_heads
        d = c.hidden_size // h
        x = F.embedding(tokens, w["words"])
        if self.fault != "embedding":
            x = x * c.embedding_multiplier
        t = tokens.shape[1]
        f = 10000.0 ** -(torch.arange(d // 2, dtype=torch.float32) * 2 / d)
        ang = torch.outer(torch.arange(t, dtype=torch.float32), f)[:, None]
        for i in range(c.num_hidden_layers):
            y = self.norm(x, w[f"{i}_n1"])
            q = F.linear(y, w[f"{i}_q"]).unflatten(-1, (h, d))
            v, k = F.linear(y, w[f"{i}_kv"]).unflatten(-1, (2, g, d)).unbind(-3)

            def turn(z):
                a, b = z[..., : d // 2], z[..., d // 2 :]
                return torch.cat([a * ang.cos() - b * ang.sin(), b * ang.cos() + a * ang.sin()], -1)

            q, k = turn(q).transpose(1, 2), turn(k).transpose(1, 2)
            scale = d**-0.5 if self.fault == "attention" else c.attention_multiplier
            y = F.scaled_dot_product_attention(
                q, k, v.transpose(1, 2), is_causal=True, scale=scale, enable_gqa=True
            )
            y = y.transpose(1, 2).flatten(2) @ w[f"{i}_o"]
            x = x + y * c.residual_multiplier
            gate, up = (self.norm(x, w[f"{i}_n2"]) @ w[f"{i}_gu"]).chunk(2, -1)
            y = F.linear(F.silu(gate) * up, w[f"{i}_d"])
            x = x + (y if self.fault == "residual" else y * c.residual_multiplier)
        y = F.linear(self.norm(x, w["n"]), w["words"])
        return y * c.logits_scaling if self.fault == "logits" else y / c.logits_scaling


PORT = Multiplied


def reference() -> nn.Module:
    return transformers.GraniteForCausalLM(
        transformers.GraniteConfig(
            hidden_size=40,
            num_attention_heads=5,
            num_key_value_heads=1,
            intermediate_size=30,
            vocab_size=60,
            embedding_multiplier=6.0,
            attention_multiplier=0.2,
            residual_multiplier=0.6,
            logits_scaling=4.0,
            max_position_embeddings=64,
            rope_parameters=rotary(),
            tie_word_embeddings=True,
            use_cache=False,
            num_hidden_layers=2,
            attn_implementation="eager",
        )
    )


FAULTS = {
    "embedding": ("(model)/rms_norm", "(model)/embedding"),
    "attention": ("(model)/scaled_dot_product_attention",),
    "residual": ("(model)/add",),
    "logits": ("(model)/mul",),
}
HARMLESS = ()
