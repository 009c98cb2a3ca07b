"""Cohere: norms without a bias, rotation of neighbours, parallel branches, logits scaled."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, rotary
from torch import nn
from torch.nn import functional as F


class Turned(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        self.hf_config, self.fault = hf.config, fault
        self.e = copied(hf.model.embed_tokens.weight)
        for i, x in enumerate(hf.model.layers):
            a, m = x.self_attn, x.mlp
            block = nn.Module()
            block.ln = copied(x.input_layernorm.weight)
            block.wq, block.wkv = (
                copied(a.q_proj.weight),
                copied(torch.cat([a.k_proj.weight, a.v_proj.weight])),
            )
            block.wo, block.w13, block.w2 = (
                copied(a.o_proj.weight),
                copied(torch.cat([m.up_proj.weight, m.gate_proj.weight])),
                copied(m.down_proj.weight),
            )
            self.add_module(f"part_{i}", block)
        self.ln = copied(hf.model.norm.weight)

    def norm(self, x, w):
        if self.fault == "rms":
            return F.rms_norm(x, x.shape[-1:], w, 1e-5)
        return F.layer_norm(x, x.shape[-1:], w, None, 1e-5)

    def attention(self, y, block):
        c = self.hf_config
        d = c.hidden_size // c.num_attention_heads
        q = (y @ block.wq.T).unflatten(-1, (-1, d))
        k, v = (y @ block.wkv.T).chunk(2, -1)
        k, v = k.unflatten(-1, (-1, d)), v.unflatten(-1, (-1, d))
        f = 1.0 / (c.rope_parameters["rope_theta"] ** (torch.arange(0, d, 2).float() / d))
        ang = torch.arange(y.shape[1]).float()[:, None, None] * f

        def turn(z):
            a, b = (
                (z[..., : d // 2], z[..., d // 2 :])
                if self.fault == "halves"
                else (z[..., 0::2], z[..., 1::2])
            )
            r = (a * ang.cos() - b * ang.sin(), b * ang.cos() + a * ang.sin())
            return torch.cat(r, -1) if self.fault == "halves" else torch.stack(r, -1).flatten(-2)

        q, k, v = turn(q).transpose(1, 2), turn(k).transpose(1, 2), v.transpose(1, 2)
        n = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)
        s = (q * d**-0.5) @ k.mT
        s = s + torch.ones_like(s).triu(1) * -1e9
        return (torch.softmax(s, -1) @ v).transpose(1, 2).flatten(2) @ block.wo.T

    def forward(self, ids):
        x = self.e[ids]
        for i in range(self.hf_config.num_hidden_layers):
            block = getattr(self, f"part_{i}")
            y = self.norm(x, block.ln)
            up, gate = (y @ block.w13.T).chunk(2, -1)
            x = x + self.attention(y, block) + (F.silu(gate) * up) @ block.w2.T
        logits = self.norm(x, self.ln) @ self.e.T
        return logits if self.fault == "logit-scale" else logits * self.hf_config.logit_scale


PORT = Turned


def reference() -> nn.Module:
    return transformers.CohereForCausalLM(
        transformers.CohereConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=44,
            vocab_size=70,
            logit_scale=0.25,
            max_position_embeddings=32,
            rope_parameters=rotary(),
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **common(),
        )
    )


FAULTS = {
    "rms": ("(model)/rms_norm",),
    "halves": ("(model)/getitem", "(model)/mul"),
    "logit-scale": ("(model)/matmul",),
}
HARMLESS = ()
