"""GPT-NeoX with separate projections, whose weights are transposed, and a part of each head rotated by tables made before."""

import math

import torch
from torch import nn


class Transposed(nn.Module):
    """`x @ w + b`, as GPT-2 has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.empty(inputs, outputs)), nn.Parameter(torch.empty(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        product = x @ self.w
        return product + self.b


class Block(nn.Module):
    def __init__(self, c) -> None:
        super().__init__()
        size = c.hidden_size
        self.heads, self.size = c.num_attention_heads, size // c.num_attention_heads
        self.turned = int(self.size * c.rope_parameters["partial_rotary_factor"])
        self.base = c.rope_parameters["rope_theta"]
        self.ln1 = nn.LayerNorm(size, eps=c.layer_norm_eps)
        self.ln2 = nn.LayerNorm(size, eps=c.layer_norm_eps)
        self.q, self.k, self.v, self.out = (Transposed(size, size) for _ in range(4))
        self.up, self.down = Transposed(size, c.intermediate_size), Transposed(c.intermediate_size, size)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        exponents = torch.arange(0, self.turned, 2, dtype=torch.float32) / self.turned
        frequencies = self.base**-exponents
        angles = torch.arange(x.shape[2])[:, None] * frequencies
        first, second, rest = x.split([self.turned // 2, self.turned // 2, self.size - self.turned], -1)
        left = first * angles.cos() - second * angles.sin()
        right = second * angles.cos() + first * angles.sin()
        return torch.cat([left, right, rest], -1)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns, _ = x.shape
        q, k, v = (
            f(x).view(rows, columns, self.heads, self.size).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        q = self.rotate(q)
        k = self.rotate(k)
        products = torch.einsum("bhqd,bhkd->bhqk", q, k)
        scores = products / math.sqrt(self.size)
        allowed = torch.ones(columns, columns).tril() > 0
        scores = torch.where(allowed, scores, torch.finfo(scores.dtype).min)
        shares = torch.softmax(scores, -1)
        mixed = torch.einsum("bhqk,bhkd->bqhd", shares, v).flatten(2)
        return self.out(mixed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attended = self.attend(self.ln1(x))
        inner = self.up(self.ln2(x))
        active = nn.functional.gelu(inner)
        return x + attended + self.down(active)


class Port(nn.Module):
    def __init__(self, c) -> None:
        super().__init__()
        self.words = nn.Embedding(c.vocab_size, c.hidden_size)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.last = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x))


def ported(model) -> nn.Module:
    c = model.config
    port, there = Port(c), model.state_dict()
    head = next(v for n, v in there.items() if n in ("lm_head.weight", "embed_out.weight"))
    weights = {"words.weight": there["gpt_neox.embed_in.weight"], "head.weight": head}
    weights["last.weight"] = there["gpt_neox.final_layer_norm.weight"]
    weights["last.bias"] = there["gpt_neox.final_layer_norm.bias"]
    for i in range(c.num_hidden_layers):
        start = f"gpt_neox.layers.{i}."
        of = {n.removeprefix(start): v for n, v in there.items() if n.startswith(start)}
        fused = of["attention.query_key_value.weight"].view(c.num_attention_heads, 3, -1, c.hidden_size)
        q, k, v = (fused[:, part].reshape(-1, c.hidden_size) for part in range(3))
        biases = of["attention.query_key_value.bias"].view(c.num_attention_heads, 3, -1)
        bq, bk, bv = (biases[:, part].reshape(-1) for part in range(3))
        mine = {"q.w": q.T, "q.b": bq, "k.w": k.T, "k.b": bk, "v.w": v.T, "v.b": bv}
        mine |= {"out.w": of["attention.dense.weight"].T, "out.b": of["attention.dense.bias"]}
        mine |= {"up.w": of["mlp.dense_h_to_4h.weight"].T, "up.b": of["mlp.dense_h_to_4h.bias"]}
        mine |= {"down.w": of["mlp.dense_4h_to_h.weight"].T, "down.b": of["mlp.dense_4h_to_h.bias"]}
        mine |= {"ln1.weight": of["input_layernorm.weight"], "ln1.bias": of["input_layernorm.bias"]}
        mine |= {
            "ln2.weight": of["post_attention_layernorm.weight"],
            "ln2.bias": of["post_attention_layernorm.bias"],
        }
        weights |= {f"blocks.{i}.{name}": value for name, value in mine.items()}
    port.load_state_dict(weights)
    return port.eval()
