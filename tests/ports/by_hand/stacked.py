"""Llama with the weights of all layers in one tensor each, [layer, in, heads, size], and einsum: as in JAX."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, rotary
from torch import nn
from torch.nn import functional as F


class Stacked(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        c, m = hf.config, hf.model
        self.c, self.fault = c, fault
        h, k, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        layers = list(m.layers)

        def stack(get):
            return torch.stack([get(x).detach() for x in layers])

        self.table = copied(m.embed_tokens.weight)
        self.q = nn.Parameter(stack(lambda x: x.self_attn.q_proj.weight.T.unflatten(1, (h, d))))
        self.k = nn.Parameter(stack(lambda x: x.self_attn.k_proj.weight.T.unflatten(1, (k, d))))
        self.v = nn.Parameter(stack(lambda x: x.self_attn.v_proj.weight.T.unflatten(1, (k, d))))
        self.o = nn.Parameter(stack(lambda x: x.self_attn.o_proj.weight.T.unflatten(0, (h, d))))
        self.gate = nn.Parameter(stack(lambda x: x.mlp.gate_proj.weight.T))
        self.up = nn.Parameter(stack(lambda x: x.mlp.up_proj.weight.T))
        self.down = nn.Parameter(stack(lambda x: x.mlp.down_proj.weight.T))
        self.before = nn.Parameter(stack(lambda x: x.input_layernorm.weight))
        self.between = nn.Parameter(stack(lambda x: x.post_attention_layernorm.weight))
        self.last = copied(m.norm.weight)
        self.out = copied(hf.lm_head.weight.T)

    def norm(self, x, w):
        eps = 1e-3 if self.fault == "eps" else self.c.rms_norm_eps
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * w

    def rotate(self, x, positions):
        d = x.shape[-1]
        base = 1000.0 if self.fault == "base" else 10000.0
        speed = base ** -(torch.arange(0, d, 2) / d)
        angle = torch.einsum("bt,d->btd", positions.float(), speed)[:, :, None, :]
        one, two = x.chunk(2, -1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        if self.fault == "sign":
            return torch.cat([one * cos + two * sin, two * cos - one * sin], -1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

    def forward(self, tokens):
        x = F.embedding(tokens, self.table)
        positions = torch.arange(tokens.shape[1])[None]
        seen = positions[0][:, None] >= positions[0][None, :]
        groups = self.c.num_attention_heads // self.c.num_key_value_heads
        for i in range(self.q.shape[0]):
            y = self.norm(x, self.before[i])
            q = self.rotate(torch.einsum("btm,mhd->bthd", y, self.q[i]), positions)
            k = self.rotate(torch.einsum("btm,mhd->bthd", y, self.k[i]), positions)
            v = torch.einsum("btm,mhd->bthd", y, self.v[i])
            if self.fault == "groups":
                q = q.unflatten(2, (groups, -1)).transpose(2, 3)
            else:
                q = q.unflatten(2, (-1, groups))
            scores = torch.einsum("btkgd,bskd->bkgts", q, k) * self.c.head_dim**-0.5
            scores = torch.where(seen, scores, -1e30)
            y = torch.einsum("bkgts,bskd->btkgd", scores.softmax(-1), v).flatten(2, 3)
            x = x + torch.einsum("bthd,hdm->btm", y, self.o[i])
            y = self.norm(x, self.between[i])
            hidden = (y @ self.gate[i]) * torch.sigmoid(y @ self.gate[i]) * (y @ self.up[i])
            if self.fault == "act":
                hidden = F.gelu(y @ self.gate[i]) * (y @ self.up[i])
            x = x + hidden @ self.down[i]
        return self.norm(x, self.last) @ self.out


PORT = Stacked


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
    "eps": ("(model)/add",),
    "base": ("(model)/pow", "(model)/rpow", "(model)/einsum"),
    "sign": ("(model)/add", "(model)/sub", "(model)/mul"),
    "groups": ("(model)/unflatten", "(model)/transpose", "(model)/einsum"),
    "act": ("(model)/gelu",),
}
HARMLESS = ()
