"""Llama as it was first written: rotations of complex numbers, neighbours in pairs, one fused projection."""

import torch
from torch import nn


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection whose heads have halves, in the order of heads that have pairs."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.square().mean(-1, keepdim=True)
        shifted = mean + self.eps
        return x * shifted.rsqrt() * self.scale


class Attention(nn.Module):
    def __init__(self, c) -> None:
        super().__init__()
        self.heads, self.groups, self.size = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.base = c.rope_parameters["rope_theta"]
        self.wqkv = nn.Linear(c.hidden_size, (self.heads + 2 * self.groups) * self.size, bias=False)
        self.wo = nn.Linear(self.heads * self.size, c.hidden_size, bias=False)

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1]).float()
        frequencies = 1.0 / self.base ** (torch.arange(0, self.size, 2).float() / self.size)
        angles = torch.outer(positions, frequencies)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        even, odd = x[..., ::2], x[..., 1::2]
        turned_even = even * cos - odd * sin
        turned_odd = odd * cos + even * sin
        return torch.stack([turned_even, turned_odd], -1).flatten(-2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns, _ = x.shape
        sizes = [self.heads * self.size, self.groups * self.size, self.groups * self.size]
        q, k, v = self.wqkv(x).split(sizes, -1)
        q = self.rotated(q.view(rows, columns, self.heads, self.size)).transpose(1, 2)
        k = self.rotated(k.view(rows, columns, self.groups, self.size)).transpose(1, 2)
        v = v.view(rows, columns, self.groups, self.size).transpose(1, 2)
        k, v = (y.repeat_interleave(self.heads // self.groups, 1) for y in (k, v))
        products = q @ k.transpose(-1, -2)
        scores = products * self.size**-0.5
        hidden = torch.ones(columns, columns, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
        weights = scores.softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(rows, columns, -1)
        return self.wo(mixed)


class Block(nn.Module):
    def __init__(self, c) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = (Norm(c.hidden_size, c.rms_norm_eps) for _ in range(2))
        self.attention = Attention(c)
        self.w1, self.w3 = (nn.Linear(c.hidden_size, c.intermediate_size, bias=False) for _ in range(2))
        self.w2 = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        y = self.ffn_norm(x)
        gate = nn.functional.silu(self.w1(y))
        product = gate * self.w3(y)
        return x + self.w2(product)


class Port(nn.Module):
    def __init__(self, c) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm, self.output = (
            Norm(c.hidden_size, c.rms_norm_eps),
            nn.Linear(c.hidden_size, c.vocab_size, bias=False),
        )

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.tok_embeddings(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def ported(model) -> nn.Module:
    c = model.config
    port, there = Port(c), model.state_dict()
    weights = {
        "tok_embeddings.weight": there["model.embed_tokens.weight"],
        "norm.scale": there["model.norm.weight"],
    }
    weights["output.weight"] = there["lm_head.weight"]
    for i in range(c.num_hidden_layers):
        of = {
            n.removeprefix(f"model.layers.{i}."): v
            for n, v in there.items()
            if n.startswith(f"model.layers.{i}.")
        }
        q = interleaved(of["self_attn.q_proj.weight"], c.num_attention_heads)
        k = interleaved(of["self_attn.k_proj.weight"], c.num_key_value_heads)
        v = of["self_attn.v_proj.weight"]
        o = of["self_attn.o_proj.weight"]
        gate, up = of["mlp.gate_proj.weight"], of["mlp.up_proj.weight"]
        mine = {"attention.wqkv.weight": torch.cat([q, k, v]), "attention.wo.weight": o}
        mine |= {"w1.weight": gate, "w3.weight": up, "w2.weight": of["mlp.down_proj.weight"]}
        mine["attention_norm.scale"] = of["input_layernorm.weight"]
        mine["ffn_norm.scale"] = of["post_attention_layernorm.weight"]
        weights |= {f"layers.{i}.{name}": value for name, value in mine.items()}
    port.load_state_dict(weights)
    return port.eval()
