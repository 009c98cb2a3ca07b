"""GPT-J with q, k and v of all heads in one matrix by head, neighbours rotated, tokens flattened before each product."""

from __future__ import annotations

import math

import torch
import transformers
from tests.ports.by_hand.parts import copied
from torch import nn
from torch.nn import functional as F


class Rows(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        c, m = hf.config, hf.transformer
        self.c, self.fault = c, fault
        self.h, self.d = c.n_head, c.n_embd // c.n_head
        self.wte = copied(m.wte.weight)
        self.parts = nn.ModuleList()
        for x in m.h:
            p = nn.Module()
            p.norm = nn.LayerNorm(c.n_embd, eps=1e-5)
            p.norm.weight, p.norm.bias = copied(x.ln_1.weight), copied(x.ln_1.bias)
            a = x.attn
            p.inner = copied(
                torch.stack(
                    [w.weight.unflatten(0, (self.h, self.d)) for w in (a.q_proj, a.k_proj, a.v_proj)], 2
                )
                .permute(0, 2, 1, 3)
                .flatten(0, 2)
                .T
            )
            p.outer = copied(a.out_proj.weight)
            p.fc, p.proj = nn.Linear(1, 1), nn.Linear(1, 1)
            p.fc.weight, p.fc.bias, p.proj.weight, p.proj.bias = (
                copied(w)
                for w in (x.mlp.fc_in.weight, x.mlp.fc_in.bias, x.mlp.fc_out.weight, x.mlp.fc_out.bias)
            )
            self.parts.append(p)
        self.norm = nn.LayerNorm(c.n_embd)
        self.norm.weight, self.norm.bias = copied(m.ln_f.weight), copied(m.ln_f.bias)
        self.head = nn.Linear(1, 1)
        self.head.weight, self.head.bias = (
            copied(hf.lm_head.weight),
            (None if fault == "head-bias" else copied(hf.lm_head.bias)),
        )
        r = c.rotary_dim + (2 if fault == "rotary-dim" else 0)
        self.r = r
        angle = torch.arange(c.n_positions)[:, None] / 10000 ** (torch.arange(0, r, 2) / r)
        self.tables = [angle.sin(), angle.cos()]

    def turn(self, z, t):
        s, c = (u[:t, None] for u in self.tables)
        y, rest = z[..., : self.r], z[..., self.r :]
        if self.fault == "halves":
            a, b = y.chunk(2, -1)
            return torch.cat([a * c - b * s, b * c + a * s, rest], -1)
        a, b = y[..., ::2], y[..., 1::2]
        return torch.cat([torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2), rest], -1)

    def forward(self, ids):
        b, t = ids.shape
        x = self.wte[ids.reshape(-1)]
        for p in self.parts:
            y = p.norm(x)
            q, k, v = (y @ p.inner).view(b, t, self.h, 3, self.d).unbind(3)
            q, k = self.turn(q, t), self.turn(k, t)
            w = torch.einsum("bihd,bjhd->bhij", q, k)
            w = w.masked_fill(torch.arange(t)[None, :] > torch.arange(t)[:, None], torch.finfo(w.dtype).min)
            w = w if self.fault == "scale" else w / math.sqrt(self.d)
            z = torch.einsum("bhij,bjhd->bihd", w.softmax(-1), v).reshape(b * t, -1)
            z = F.linear(z, p.outer)
            u = p.fc(y)
            u = p.proj(F.gelu(u) if self.fault == "gelu" else F.gelu(u, approximate="tanh"))
            x = z + u + x
        return self.head(self.norm(x)).view(b, t, -1)


PORT = Rows


def reference() -> nn.Module:
    return transformers.GPTJForCausalLM(
        transformers.GPTJConfig(
            n_embd=36,
            n_head=3,
            n_layer=2,
            rotary_dim=6,
            n_inner=70,
            vocab_size=60,
            n_positions=48,
            attn_implementation="eager",
            use_cache=False,
        )
    )


FAULTS = {
    "head-bias": ("head/linear",),
    "rotary-dim": ("(model)/getitem", "(model)/mul", "(model)/neg"),
    "halves": ("(model)/chunk", "(model)/mul"),
    "scale": ("(model)/masked_fill", "(model)/softmax", "(model)/einsum"),
    "gelu": ("(model)/gelu",),
}
HARMLESS = ()
