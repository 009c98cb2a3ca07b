"""ViT with patches cut by hand, one matrix for q, k, v."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tests.ports.by_hand.parts import copied
from torch import nn
from torch.nn import functional as F


def _one(named: dict[str, Any], *names: str) -> Any:
    """The parameter by the name that it has in this version of transformers."""
    return next(named[name] for name in names if name in named)


class Unfolded(nn.Module):
    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.c, self.fault = c, fault
        e = hf.embeddings
        self.cls, self.pos = copied(e.cls_token[0, 0]), copied(e.position_embeddings[0])
        self.patch, self.patch_b = (
            copied(e.patch_embeddings.projection.weight.flatten(1)),
            copied(e.patch_embeddings.projection.bias),
        )
        self.blocks = nn.ModuleList()
        for x in hf.layers if hasattr(hf, "layers") else hf.encoder.layer:
            n = dict(x.named_parameters())
            b = nn.Module()
            w = [
                [
                    _one(n, f"attention.attention.{o}.{s}", f"attention.{p}_proj.{s}")
                    for o, p in (("query", "q"), ("key", "k"), ("value", "v"))
                ]
                for s in ("weight", "bias")
            ]
            b.w, b.b = copied(torch.cat(w[0])), copied(torch.cat(w[1]))
            b.o, b.ob = (
                copied(_one(n, "attention.output.dense.weight", "attention.o_proj.weight")),
                copied(_one(n, "attention.output.dense.bias", "attention.o_proj.bias")),
            )
            b.u, b.ub = (
                copied(_one(n, "intermediate.dense.weight", "mlp.fc1.weight")),
                copied(_one(n, "intermediate.dense.bias", "mlp.fc1.bias")),
            )
            b.d, b.db = (
                copied(_one(n, "output.dense.weight", "mlp.fc2.weight")),
                copied(_one(n, "output.dense.bias", "mlp.fc2.bias")),
            )
            b.n1, b.n2 = (
                nn.LayerNorm(c.hidden_size, eps=1e-6 if fault == "eps" else c.layer_norm_eps),
                nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps),
            )
            for mine, name in ((b.n1, "layernorm_before"), (b.n2, "layernorm_after")):
                mine.weight, mine.bias = copied(n[name + ".weight"]), copied(n[name + ".bias"])
            self.blocks.append(b)
        self.n = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.n.weight, self.n.bias = copied(hf.layernorm.weight), copied(hf.layernorm.bias)

    def forward(self, image):
        c, s = self.c, self.c.patch_size
        p = image.unfold(2, s, s).unfold(3, s, s)
        p = p.permute(0, 3, 2, 1, 4, 5) if self.fault == "columns" else p.permute(0, 2, 3, 1, 4, 5)
        x = p.flatten(3).flatten(1, 2) @ self.patch.T + self.patch_b
        x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], 1) + self.pos
        for b in self.blocks:
            q, k, v = (
                F.linear(b.n1(x), b.w, b.b)
                .unflatten(-1, (3, c.num_attention_heads, -1))
                .permute(2, 0, 3, 1, 4)
            )
            x = x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), b.o, b.ob)
            y = F.gelu(F.linear(b.n2(x), b.u, b.ub), approximate="tanh" if self.fault == "gelu" else "none")
            x = x + F.linear(y, b.d, None if self.fault == "bias" else b.db)
        return self.n(x)


PORT = Unfolded


def reference() -> nn.Module:
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=24,
            num_attention_heads=3,
            intermediate_size=50,
            image_size=12,
            patch_size=4,
            num_channels=3,
            layer_norm_eps=1e-3,
            num_hidden_layers=2,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    )


FAULTS = {
    "eps": ("blocks.0.n1/layer_norm",),
    "columns": ("(model)/permute", "(model)/flatten", "(model)/matmul", "(model)/add", "(model)/cat"),
    "gelu": ("(model)/gelu",),
    "bias": ("(model)/linear",),
}
HARMLESS = ()
