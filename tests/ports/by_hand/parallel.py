"""Phi with one matrix for q, k, v (head by head) and the first MLP layer, products with @."""

from __future__ import annotations

import math

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, rotary
from torch import nn
from torch.nn import functional as F


class Parallel(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.fault, self.h = fault, c.num_attention_heads
        self.d = c.hidden_size // self.h
        self.rot = int(self.d * (0.4 if fault != "partial" else 0.6))
        self.embed = copied(hf.model.embed_tokens.weight)
        self.into, self.into_b, self.back, self.back_b, self.down, self.down_b, self.ln = (
            nn.ParameterList() for _ in range(7)
        )
        for x in hf.model.layers:
            a = x.self_attn

            def by_head(*z):
                return torch.stack([y.unflatten(0, (self.h, self.d)) for y in z], 1).flatten(0, 2)

            self.into.append(
                nn.Parameter(
                    torch.cat([by_head(a.q_proj.weight, a.k_proj.weight, a.v_proj.weight), x.mlp.fc1.weight])
                    .T.detach()
                    .clone()
                )
            )
            self.into_b.append(
                nn.Parameter(
                    torch.cat([by_head(a.q_proj.bias, a.k_proj.bias, a.v_proj.bias), x.mlp.fc1.bias])
                    .detach()
                    .clone()
                )
            )
            self.back.append(copied(a.dense.weight.T))
            self.back_b.append(copied(a.dense.bias))
            self.down.append(copied(x.mlp.fc2.weight.T))
            self.down_b.append(copied(x.mlp.fc2.bias))
            self.ln.append(
                nn.Parameter(torch.stack([x.input_layernorm.weight, x.input_layernorm.bias]).detach().clone())
            )
        self.fin = nn.Parameter(
            torch.stack([hf.model.final_layernorm.weight, hf.model.final_layernorm.bias]).detach().clone()
        )
        self.head, self.head_b = copied(hf.lm_head.weight.T), copied(hf.lm_head.bias)

    def turn(self, x):
        r, p = x[..., : self.rot], x[..., self.rot :]
        t = torch.arange(x.shape[1]).float()
        f = torch.exp(torch.arange(0, self.rot, 2).float() * (-math.log(10000.0) / self.rot))
        ang = (t[:, None] * f)[:, None]
        ang = torch.repeat_interleave(ang, 2, -1) if self.fault == "interleave" else torch.cat([ang, ang], -1)
        half = torch.cat([-r[..., self.rot // 2 :], r[..., : self.rot // 2]], -1)
        return torch.cat([r * ang.cos() + half * ang.sin(), p], -1)

    def forward(self, idx):
        x = self.embed[idx]
        b, t, n = x.shape
        keep = torch.tril(torch.ones(t, t)).bool()
        for i in range(len(self.into)):
            y = F.layer_norm(x, (n,), self.ln[i][0], self.ln[i][1], 1e-5)
            z = y @ self.into[i] + self.into_b[i]
            qkv, mlp = z[..., : 3 * n], z[..., 3 * n :]
            q, k, v = qkv.view(b, t, self.h, 3, self.d).unbind(3)
            q, k = self.turn(q), self.turn(k)
            s = torch.einsum("bthd,bshd->bhts", q, k) / self.d**0.5
            s = s.masked_fill(~keep, float("-inf")).softmax(-1)
            att = torch.einsum("bhts,bshd->bthd", s, v).reshape(b, t, n) @ self.back[i] + self.back_b[i]
            if self.fault == "sequential":
                x = x + att
                y = F.layer_norm(x, (n,), self.ln[i][0], self.ln[i][1], 1e-5)
                mlp = y @ self.into[i][:, 3 * n :] + self.into_b[i][3 * n :]
                x = x + F.gelu(mlp, approximate="tanh") @ self.down[i] + self.down_b[i]
                continue
            mlp = F.relu(mlp) if self.fault == "relu" else F.gelu(mlp, approximate="tanh")
            x = x + att + mlp @ self.down[i] + self.down_b[i]
        x = F.layer_norm(x, (n,), self.fin[0], self.fin[1], 1e-5)
        return x @ self.head + (0 if self.fault == "head-bias" else self.head_b)


PORT = Parallel


def reference() -> nn.Module:
    return transformers.PhiForCausalLM(
        transformers.PhiConfig(
            hidden_size=40,
            num_attention_heads=4,
            intermediate_size=60,
            vocab_size=70,
            max_position_embeddings=64,
            rope_parameters=rotary(partial_rotary_factor=0.4),
            hidden_act="gelu_new",
            **common(),
        )
    )


FAULTS = {
    "partial": ("(model)/getitem", "(model)/arange", "(model)/exp", "(model)/mul", "(model)/neg"),
    "interleave": ("(model)/repeat_interleave", "(model)/cos", "(model)/sin", "(model)/mul"),
    "sequential": ("(model)/layer_norm", "(model)/add"),
    "relu": ("(model)/relu",),
    "head-bias": ("(model)/matmul", "(model)/add"),
}
HARMLESS = ()
