"""Qwen3: queries and keys normed head by head, heads wider than the model divided by them, weights as matrices to the right."""

from __future__ import annotations

import torch
import transformers
from tests.ports.by_hand.parts import common, copied, rotary
from torch import nn
from torch.nn import functional as F


class Headed(nn.Module):
    class Attend(nn.Module):
        def __init__(self, a, c, fault):
            super().__init__()
            self.fault, self.c = fault, c
            self.kernel = nn.ParameterDict(
                {n: copied(getattr(a, f"{n}_proj").weight.T) for n in ("q", "k", "v", "o")}
            )
            if fault == "o-turned":
                square = a.o_proj.weight.unflatten(1, (c.num_attention_heads, -1)).flip(1).flatten(1)
                self.kernel["o"] = copied(square.T)
            gains = [a.q_norm.weight, a.k_norm.weight]
            if fault == "gains":
                gains.reverse()
            self.gain_q, self.gain_k = map(copied, gains)

        def normed(self, x, gain):
            return F.rms_norm(x, x.shape[-1:], gain, self.c.rms_norm_eps)

        def rotated(self, x):
            d = x.shape[-1]
            theta = self.c.rope_parameters["rope_theta"]
            power = torch.arange(0, d, 2).float() / (d + 4 if self.fault == "power" else d)
            angles = torch.outer(torch.arange(x.shape[-2]).float(), theta**-power)
            if self.fault == "neighbours":
                z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            else:
                z = torch.complex(*x.chunk(2, -1))
            z = z * torch.polar(torch.ones_like(angles), angles)
            return torch.cat([z.real, z.imag], -1)

        def forward(self, x):
            c = self.c
            q, k, v = (
                torch.matmul(x, self.kernel[n]).unflatten(-1, (-1, c.head_dim)).movedim(2, 1) for n in "qkv"
            )
            q = self.normed(q, self.gain_q)
            k = self.normed(k, self.gain_k)
            q, k = self.rotated(q), self.rotated(k)
            groups = c.num_attention_heads // c.num_key_value_heads
            if self.fault == "tile":
                k, v = torch.cat([k] * groups, 1), torch.cat([v] * groups, 1)
            else:
                k, v = (z[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for z in (k, v))
            width = c.hidden_size // c.num_attention_heads if self.fault == "width" else c.head_dim
            scores = (q / width**0.5) @ k.mT
            scores = scores.tril() + torch.full_like(scores[0, 0], -1e9).triu(1)
            return (scores.softmax(-1) @ v).movedim(1, 2).flatten(2) @ self.kernel["o"]

    class Feed(nn.Module):
        def __init__(self, m, fault):
            super().__init__()
            self.fault = fault
            self.a, self.b, self.c = (
                copied(getattr(m, f"{n}_proj").weight.T) for n in ("gate", "up", "down")
            )

        def forward(self, x):
            inner = x @ self.a
            active = inner * (torch.sigmoid(1.702 * inner) if self.fault == "quick" else torch.sigmoid(inner))
            return (active * (x @ self.b)) @ self.c

    class Layer(nn.Module):
        def __init__(self, layer, c, fault, eps):
            super().__init__()
            self.fault, self.eps = fault, eps
            self.attend, self.feed = Headed.Attend(layer.self_attn, c, fault), Headed.Feed(layer.mlp, fault)
            self.ahead, self.between = (
                copied(layer.input_layernorm.weight),
                copied(layer.post_attention_layernorm.weight),
            )

        def forward(self, x):
            y = x + self.attend(F.rms_norm(x, x.shape[-1:], self.ahead, self.eps))
            z = F.rms_norm(x if self.fault == "stale" else y, x.shape[-1:], self.between, self.eps)
            return y + self.feed(z)

    def __init__(self, hf, fault=None):
        super().__init__()
        c = hf.config
        self.eps, self.fault = c.rms_norm_eps, fault
        self.embedding = copied(hf.model.embed_tokens.weight)
        self.layers = nn.ModuleList(Headed.Layer(x, c, fault, self.eps) for x in hf.model.layers)
        self.norm = copied(hf.model.norm.weight)
        head = hf.model.embed_tokens.weight if fault == "tied" else hf.lm_head.weight
        self.head = copied(head.T)

    def forward(self, input_ids):
        x = F.embedding(input_ids, self.embedding)
        for layer in self.layers:
            x = layer(x)
        return F.rms_norm(x, x.shape[-1:], self.norm, self.eps) @ self.head


PORT = Headed


def reference() -> nn.Module:
    return transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=12, intermediate_size=44, vocab_size=70,
            max_position_embeddings=64, rope_parameters=rotary(5e5), tie_word_embeddings=False, **common(),
        )
    )  # fmt: skip


FAULTS = {
    "o-turned": ("layers.0.attend/matmul",),
    "gains": ("layers.0.attend/rms_norm",),
    "power": (
        "layers.0.attend/pow",
        "layers.0.attend/rpow",
        "layers.0.attend/truediv",
        "layers.0.attend/div",
    ),
    "neighbours": ("layers.0.attend/mul", "layers.0.attend/view_as_complex"),
    "tile": ("layers.0.attend/matmul",),
    "width": ("layers.0.attend/truediv", "layers.0.attend/div", "layers.0.attend/matmul"),
    "quick": ("layers.0.feed/mul", "layers.0.feed/sigmoid"),
    "stale": ("layers.0/rms_norm",),
    "tied": ("(model)/matmul",),
}
HARMLESS = ()
