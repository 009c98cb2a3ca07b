"""Phi-3: fused weights kept fused, part of each head rotated, a window; blocks as plain functions of one module."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, rotary
from torch import nn
from torch.nn import functional as F


class Packed(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.c, self.fault = c, fault
        self.names = ("pre", "qkv", "o", "post", "gate_up", "down")
        for i, layer in enumerate(hf.model.layers):
            of = (
                layer.input_layernorm, layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.post_attention_layernorm,
                layer.mlp.gate_up_proj, layer.mlp.down_proj,
            )  # fmt: skip
            for name, module in zip(self.names, of, strict=True):
                self.register_parameter(f"{name}_{i}", copied(module.weight))
        self.embed, self.final, self.unembed = (
            copied(w) for w in (hf.model.embed_tokens.weight, hf.model.norm.weight, hf.lm_head.weight)
        )
        self.turned = int(c.hidden_size // c.num_attention_heads * c.rope_parameters["partial_rotary_factor"])
        size = c.hidden_size // c.num_attention_heads if fault == "frequencies" else self.turned
        theta = c.rope_parameters["rope_theta"] * (4 if fault == "theta" else 1)
        self.register_buffer(
            "frequency", theta ** -(torch.arange(0, self.turned, 2, dtype=torch.float32) / size)
        )

    def rms(self, x, gain):
        variance = x.var(-1, keepdim=True) if self.fault == "variance" else x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + self.c.rms_norm_eps) * gain

    def rotate(self, x):
        n = self.turned
        still, moving = (x[..., :n], x[..., n:]) if self.fault == "last-part" else (x[..., n:], x[..., :n])
        angle = torch.arange(x.shape[2])[:, None] * self.frequency
        cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
        other = torch.cat([-moving[..., n // 2 :], moving[..., : n // 2]], -1)
        if self.fault == "sin-cos":
            cos, sin = sin, cos
        return torch.cat([moving * cos + other * sin, still], -1)

    def forward(self, input_ids):
        c = self.c
        h, g = c.num_attention_heads, c.num_key_value_heads
        d = c.hidden_size // h
        x = self.embed[input_ids]
        rows, columns, _ = x.shape
        at = torch.arange(columns)
        apart = at[:, None] - at[None, :]
        window = c.sliding_window + (1 if self.fault == "window" else 0)
        seen = (apart >= 0) & (apart < window)
        for i in range(c.num_hidden_layers):
            pre, qkv, o, post, gate_up, down = (getattr(self, f"{n}_{i}") for n in self.names)
            heads = F.linear(self.rms(x, pre), qkv).view(rows, columns, h + 2 * g, d).transpose(1, 2)
            order = (h, h + g)
            q, k, v = heads[:, : order[0]], heads[:, order[0] : order[1]], heads[:, order[1] :]
            q, k = self.rotate(q), self.rotate(k)
            q = q.view(rows, g, h // g, columns, d)
            if self.fault in ("scaled-before", "scaled-wrongly"):
                q = q * (d + (self.fault == "scaled-wrongly")) ** -0.5
                scores = torch.einsum("bgrqd,bgkd->bgrqk", q, k)
            else:
                scores = torch.einsum("bgrqd,bgkd->bgrqk", q, k) / d**0.5
            scores = torch.where(seen, scores, float("-inf"))
            dim = -2 if self.fault == "dim" else -1
            shares = scores.softmax(dim).nan_to_num()
            out = torch.einsum("bgrqk,bgkd->bqgrd", shares, v)
            if self.fault == "merged":
                out = out.transpose(2, 3)
            x = x + F.linear(out.reshape(rows, columns, -1), o)
            gate, up = F.linear(self.rms(x, post), gate_up).chunk(2, -1)
            if self.fault == "halves":
                gate, up = up, gate
            x = x + F.linear(F.silu(gate) * up, down)
        return F.linear(self.rms(x, self.final), self.unembed)


PORT = Packed


def reference() -> nn.Module:
    return transformers.Phi3ForCausalLM(
        transformers.Phi3Config(
            hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=44, vocab_size=70, pad_token_id=0,
            max_position_embeddings=64, original_max_position_embeddings=64, sliding_window=4, eos_token_id=1,
            rope_parameters=rotary(partial_rotary_factor=0.5), tie_word_embeddings=False, **common(),
        )
    )  # fmt: skip


FAULTS = {
    "frequencies": ("(model)/mul",),
    "theta": ("(model)/mul",),
    "variance": ("(model)/var",),
    "last-part": ("(model)/mul", "(model)/neg"),
    "sin-cos": ("(model)/mul",),
    "scaled-wrongly": ("(model)/mul",),
    "window": ("(model)/where", "(model)/softmax"),
    "dim": ("(model)/softmax",),
    "merged": ("(model)/linear",),
    "halves": ("(model)/silu",),
}
HARMLESS = ("scaled-before",)
