"""StarCoder2 with a mask made by hand and keys repeated by an index."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import copied, rotary
from torch import nn
from torch.nn import functional as F


class Windowed(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.c, self.fault = c, fault
        self.embed = nn.Embedding(1, 1)
        self.embed.weight = copied(hf.model.embed_tokens.weight)
        self.net = nn.ModuleDict()
        for i, x in enumerate(hf.model.layers):
            names = {
                "wq": x.self_attn.q_proj,
                "wk": x.self_attn.k_proj,
                "wv": x.self_attn.v_proj,
                "wo": x.self_attn.o_proj,
                "up": x.mlp.c_fc,
                "down": x.mlp.c_proj,
            }
            layer = nn.ModuleDict()
            for n, src in names.items():
                layer[n] = nn.Linear(1, 1)
                layer[n].weight, layer[n].bias = copied(src.weight), copied(src.bias)
            if fault == "o-bias" and i == 1:
                layer["wo"].bias = None
            if fault == "norms" and i == 1:
                pairs = (("a", x.post_attention_layernorm), ("b", x.input_layernorm))
            else:
                pairs = (("a", x.input_layernorm), ("b", x.post_attention_layernorm))
            for n, src in pairs:
                layer[n] = nn.LayerNorm(c.hidden_size, eps=c.norm_epsilon)
                layer[n].weight, layer[n].bias = copied(src.weight), copied(src.bias)
            self.net[f"layer{i}"] = layer
        self.out = nn.LayerNorm(c.hidden_size, eps=c.norm_epsilon)
        self.out.weight, self.out.bias = copied(hf.model.norm.weight), copied(hf.model.norm.bias)
        d = c.hidden_size // c.num_attention_heads
        self.register_buffer(
            "freq",
            1.0
            / (c.rope_parameters["rope_theta"] * (10 if fault == "base" else 1))
            ** (torch.arange(0, d, 2).float() / d),
            persistent=False,
        )

    def forward(self, ids):
        c, t = self.c, ids.shape[1]
        h, g = c.num_attention_heads, c.num_key_value_heads
        d = c.hidden_size // h
        ang = torch.arange(t).float()[:, None] * self.freq
        cos, sin = torch.cat([ang, ang], -1).cos(), torch.cat([ang, ang], -1).sin()
        away = torch.arange(t)[:, None] - torch.arange(t)[None, :]
        seen = (away >= 0) & (away < c.sliding_window + (1 if self.fault == "window" else 0))
        bias = torch.zeros(t, t).masked_fill(~seen, -1e9)
        x = self.embed(ids)
        which = torch.arange(h) % g if self.fault == "repeat" else torch.arange(h) // (h // g)
        for layer in self.net.values():
            y = layer["a"](x)
            q, k, v = (layer[n](y).view(*ids.shape, -1, d).transpose(1, 2) for n in ("wq", "wk", "wv"))

            def turn(z):
                return z * cos + torch.cat([-z[..., d // 2 :], z[..., : d // 2]], -1) * sin

            q, k = turn(q), turn(k)
            k, v = k[:, which], v[:, which]
            w = torch.softmax(q @ k.transpose(-1, -2) * d**-0.5 + bias, -1)
            x = x + layer["wo"]((w @ v).transpose(1, 2).flatten(2))
            x = x + layer["down"](F.gelu(layer["up"](layer["b"](x)), approximate="tanh"))
        return self.out(x) @ self.embed.weight.T


PORT = Windowed


def reference() -> nn.Module:
    return transformers.Starcoder2ForCausalLM(
        transformers.Starcoder2Config(
            hidden_size=48,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=64,
            vocab_size=60,
            sliding_window=5,
            max_position_embeddings=64,
            rope_parameters=rotary(),
            tie_word_embeddings=True,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
            num_hidden_layers=2,
            attn_implementation="eager",
        )
    )


FAULTS = {
    "o-bias": ("net.layer1.wo/linear",),
    "norms": ("net.layer1.a/layer_norm",),
    "base": ("(model)/getitem", "(model)/mul"),
    "window": (
        "(model)/lt",
        "(model)/bitwise_and",
        "(model)/and",
        "(model)/masked_fill",
        "(model)/add",
        "(model)/softmax",
    ),
    "repeat": ("(model)/remainder", "(model)/getitem", "(model)/matmul"),
}
HARMLESS = ()
