"""Gemma 2 with fused projections, soft caps, a window on every second layer, and residuals that are added late."""

import torch
from torch import nn


class Scaled(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.zeros(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        power = (x * x).mean(-1, keepdim=True)
        normed = x / torch.sqrt(power + self.eps)
        return normed * (1 + self.gain)


class Layer(nn.Module):
    def __init__(self, c, index: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.cap, self.scalar = c.attn_logit_softcapping, c.query_pre_attn_scalar
        self.window = c.sliding_window if c.layer_types[index] == "sliding_attention" else None
        self.base = (c.rope_parameters.get(c.layer_types[index]) or c.rope_parameters)["rope_theta"]
        self.before, self.after, self.ahead, self.behind = (
            Scaled(c.hidden_size, c.rms_norm_eps) for _ in range(4)
        )
        self.qkv = nn.Linear(c.hidden_size, (self.heads + 2 * self.groups) * self.size, bias=False)
        self.o = nn.Linear(self.heads * self.size, c.hidden_size, bias=False)
        self.gate_up = nn.Linear(c.hidden_size, 2 * c.intermediate_size, bias=False)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def rope(self, x: torch.Tensor) -> torch.Tensor:
        half = self.size // 2
        frequencies = self.base ** (-torch.arange(half).float() / half)
        angles = torch.outer(torch.arange(x.shape[1]).float(), frequencies)
        both = torch.cat([angles, angles], -1)[:, None]
        crossed = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * both.cos() + crossed * both.sin()

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns, _ = x.shape
        heads = self.qkv(x).view(rows, columns, -1, self.size)
        q, k, v = heads.split([self.heads, self.groups, self.groups], 2)
        q, k = self.rope(q), self.rope(k)
        k, v = (y.repeat_interleave(self.heads // self.groups, 2) for y in (k, v))
        products = torch.einsum("bqhd,bkhd->bhqk", q, k)
        scores = products * self.scalar**-0.5
        capped = torch.tanh(scores / self.cap) * self.cap
        near = torch.ones(columns, columns, dtype=torch.bool).tril()
        if self.window is not None:
            near = near & ~near.tril(-self.window)
        capped = capped.masked_fill(~near, float("-inf"))
        return self.o(torch.einsum("bhqk,bkhd->bqhd", capped.softmax(-1), v).flatten(2))

    def forward(self, x: torch.Tensor, late: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + late
        x = x + self.after(self.attend(self.before(x)))
        gate, up = self.gate_up(self.ahead(x)).chunk(2, -1)
        active = nn.functional.gelu(gate, approximate="tanh")
        return x, self.behind(self.down(active * up))


class Port(nn.Module):
    def __init__(self, c) -> None:
        super().__init__()
        self.table = nn.Embedding(c.vocab_size, c.hidden_size)
        self.stack = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.final, self.cap = Scaled(c.hidden_size, c.rms_norm_eps), c.final_logit_softcapping

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.table(input_ids)
        x = x * self.table.embedding_dim**0.5
        late = torch.zeros_like(x)
        for layer in self.stack:
            x, late = layer(x, late)
        logits = self.final(x + late) @ self.table.weight.T
        return torch.tanh(logits / self.cap) * self.cap


def ported(model) -> nn.Module:
    c = model.config
    port, there = Port(c), model.state_dict()
    weights = {"table.weight": there["model.embed_tokens.weight"], "final.gain": there["model.norm.weight"]}
    for i in range(c.num_hidden_layers):
        of = {
            n.removeprefix(f"model.layers.{i}."): v
            for n, v in there.items()
            if n.startswith(f"model.layers.{i}.")
        }
        q, k, v = (of[f"self_attn.{name}_proj.weight"] for name in "qkv")
        gate, up = of["mlp.gate_proj.weight"], of["mlp.up_proj.weight"]
        mine = {"qkv.weight": torch.cat([q, k, v]), "o.weight": of["self_attn.o_proj.weight"]}
        mine |= {"gate_up.weight": torch.cat([gate, up]), "down.weight": of["mlp.down_proj.weight"]}
        mine |= {
            "before.gain": of["input_layernorm.weight"],
            "after.gain": of["post_attention_layernorm.weight"],
        }
        mine["ahead.gain"] = of["pre_feedforward_layernorm.weight"]
        mine["behind.gain"] = of["post_feedforward_layernorm.weight"]
        weights |= {f"stack.{i}.{name}": value for name, value in mine.items()}
    port.load_state_dict(weights)
    return port.eval()
