"""A small engine in plain torch with vLLM's layout: flat tokens of several requests, chunks, keys and values in blocks, fused
projections, `(hidden, residual)` pairs, rotation in place.

It takes its weights from a Llama or a Qwen3 of transformers, and computes the same function.
"""

# pyright: reportCallIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportReturnType=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# A module's attributes are of no type that torch declares.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.engines import EngineFacts, Reported, Sample, Tables

BLOCK = 4
"""Tokens of a block of the cache."""
TABLES = Tables(
    fused={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
    renamed={"logits_processor": "lm_head"},
)


@dataclass
class Metadata:
    """Of one call: whose the flat tokens are."""

    requests: list[int]
    starts: list[int]
    lengths: list[int]
    """Tokens of each request, those of this call among them."""


class RMSNorm(nn.Module):
    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(like.weight.detach().clone()), like.variance_epsilon

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if residual is not None:
            x = residual = x + residual
        normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        return normed if residual is None else (normed, residual)


class Fused(nn.Module):
    def __init__(self, parts: list[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Linear(Fused):
    def __init__(self, like: nn.Linear) -> None:
        super().__init__([like])


class Rotary(nn.Module):
    def __init__(self, inverse: Tensor) -> None:
        super().__init__()
        self.inverse = inverse.clone()

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None].float() * self.inverse
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        for value in (query, key):  # in place
            heads = value.view(len(value), -1, 2 * len(self.inverse))
            one, two = heads.chunk(2, -1)
            turned = torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
            heads.copy_(turned)
        return query, key


class PagedAttention(nn.Module):
    def __init__(self, heads: int, key_heads: int, width: int, scale: float) -> None:
        super().__init__()
        self.heads, self.key_heads, self.width, self.scale = heads, key_heads, width, scale
        self.keys: dict[tuple[int, int], Tensor] = {}
        self.values: dict[tuple[int, int], Tensor] = {}
        self.metadata: Metadata | None = None

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.zeros_like(query)
        metadata = self.metadata
        if metadata is None:  # a warm-up
            return out
        for i, request in enumerate(metadata.requests):
            start, end = metadata.starts[i], metadata.starts[i + 1]
            before = metadata.lengths[i] - (end - start)
            for at in range(start, end):
                place = divmod(before + at - start, BLOCK)
                for cache, new in ((self.keys, key), (self.values, value)):
                    block = cache.setdefault((request, place[0]), torch.zeros(BLOCK, new.shape[1]))
                    block[place[1]] = new[at]
            out[start:end] = self.attend(query[start:end], request, metadata.lengths[i])
        return out

    def attend(self, query: Tensor, request: int, length: int) -> Tensor:
        blocks = range((length + BLOCK - 1) // BLOCK)
        k, v = (torch.cat([cache[request, b] for b in blocks])[:length] for cache in (self.keys, self.values))
        q = query.view(len(query), self.heads, self.width).transpose(0, 1)
        k, v = (x.view(length, self.key_heads, self.width).transpose(0, 1) for x in (k, v))
        k, v = (x.repeat_interleave(self.heads // self.key_heads, 0) for x in (k, v))
        at = torch.arange(length - len(query), length)
        scores = q @ k.transpose(1, 2) * self.scale
        scores = scores.masked_fill(torch.arange(length)[None] > at[:, None], -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(query), -1)


class Attention(nn.Module):
    def __init__(self, like: nn.Module, inverse: Tensor) -> None:
        super().__init__()
        self.sizes = [like.q_proj.out_features, like.k_proj.out_features, like.v_proj.out_features]
        self.qkv_proj = Fused([like.q_proj, like.k_proj, like.v_proj])
        self.o_proj = Linear(like.o_proj)
        for name in ("q_norm", "k_norm"):
            if hasattr(like, name):
                setattr(self, name, RMSNorm(getattr(like, name)))
        self.rotary_emb = Rotary(inverse)
        width = like.head_dim
        self.attn = PagedAttention(self.sizes[0] // width, self.sizes[1] // width, width, like.scaling)

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(hidden).split(self.sizes, -1)
        if hasattr(self, "q_norm"):
            width = self.attn.width
            q = self.q_norm(q.reshape(len(q), -1, width)).reshape(len(q), -1)
            k = self.k_norm(k.reshape(len(k), -1, width)).reshape(len(k), -1)
        q, k = self.rotary_emb(positions, q, k)
        return self.o_proj(self.attn(q, k, v))


class SiluAndMul(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


class MLP(nn.Module):
    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = Fused([like.gate_proj, like.up_proj]), Linear(like.down_proj)
        self.act_fn = SiluAndMul()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_up_proj(x)))


class Layer(nn.Module):
    def __init__(self, like: nn.Module, inverse: Tensor) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(like.self_attn, inverse), MLP(like.mlp)
        self.input_layernorm = RMSNorm(like.input_layernorm)
        self.post_attention_layernorm = RMSNorm(like.post_attention_layernorm)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = hidden
            hidden = self.input_layernorm(hidden)
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attn(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual


class Inner(nn.Module):
    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding.from_pretrained(like.embed_tokens.weight.detach().clone())
        self.layers = nn.ModuleList(Layer(layer, like.rotary_emb.inv_freq) for layer in like.layers)
        self.norm = RMSNorm(like.norm)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        return self.norm(hidden, residual)[0]


class LogitsProcessor(nn.Module):
    def forward(self, head: nn.Module, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states, head.weight)


class FakeEngine(nn.Module):
    """`answer` computes prompts in chunks of so many tokens, all requests together.

    Attributes:
        shift: added to the positions that the model is given.
        known: (request, tokens) that are in the cache and are not computed again.
    """

    def __init__(self, like: nn.Module, chunk: int = 6) -> None:
        super().__init__()
        self.model = Inner(like.model)
        self.lm_head = nn.Linear(1, 1, bias=False)
        self.lm_head.weight = nn.Parameter(like.lm_head.weight.detach().clone())
        self.logits_processor = LogitsProcessor()
        self.chunk, self.shift = chunk, 0
        self.known: dict[int, int] = {}
        self.dropped = 0
        self._where: fp.Coordinates | None = None

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(input_ids, positions)

    @property
    def pages(self) -> list[PagedAttention]:
        return [layer.self_attn.attn for layer in self.model.layers]

    def where(self, module: nn.Module, inputs: Any) -> Any:
        """Where the tokens of a call are: `layout` of `record`."""
        if self._where is None:
            self.dropped += 1
            return None
        return {"input_ids": self._where}

    @torch.no_grad()
    def warm_up(self, tokens: int) -> None:
        """As an engine does to see how much memory it takes."""
        self._where = None
        for page in self.pages:
            page.metadata = None
        self(torch.zeros(tokens, dtype=torch.long), torch.arange(tokens))

    @torch.no_grad()
    def answer(self, prompts: list[list[int]]) -> list[Tensor]:
        """The logits of each prompt, [tokens, vocabulary]; of those that it computed."""
        done = {i: self.known.get(i, 0) for i in range(len(prompts))}
        found: dict[int, list[Tensor]] = {i: [] for i in done}
        while any(done[i] < len(p) for i, p in enumerate(prompts)):
            room, requests, starts, lengths = self.chunk, [], [0], []
            ids: list[int] = []
            positions: list[int] = []
            for i, prompt in enumerate(prompts):
                take = min(room, len(prompt) - done[i])
                if take > 0:
                    requests.append(i)
                    ids += prompt[done[i] : done[i] + take]
                    positions += range(done[i], done[i] + take)
                    done[i] += take
                    room -= take
                    starts.append(len(ids))
                    lengths.append(done[i])
            for page in self.pages:
                page.metadata = Metadata(requests, starts, lengths)
            sample = torch.tensor(
                [r for i, r in enumerate(requests) for _ in range(starts[i + 1] - starts[i])]
            )
            self._where = fp.Coordinates(sample, torch.tensor(positions))
            hidden = self(torch.tensor(ids), torch.tensor(positions) + self.shift)
            logits = self.logits_processor(self.lm_head, hidden)
            for i, request in enumerate(requests):
                found[request].append(logits[starts[i] : starts[i + 1]])
        return [torch.cat(found[i]) for i in found]


def recorded(
    engine: FakeEngine,
    prompts: list[list[int]],
    folder: Path,
    *,
    temperature: float = 1.0,
    facts: bool = True,
    **told: Any,
) -> Path:
    """What an adapter does: record the engine while it answers, and write down what it was told and reported."""
    with fp.record(folder, layout=engine.where, model=engine, values=["*/input:*", "*/output"]):
        logits = engine.answer(prompts)
    if facts:
        reported = tuple(
            Reported(tuple(p), _logprobs(values / temperature, p, engine.known.get(i, 0)), i)
            for i, (p, values) in enumerate(zip(prompts, logits, strict=True))
        )
        settings = {"temperature": temperature, "logprobs_mode": "processed_logprobs", **told}
        samples = tuple(Sample(i, i, tuple(p)) for i, p in enumerate(prompts))
        EngineFacts("fake", "1", TABLES, engine.dropped, settings, {}, samples, reported).save(folder, {})
    return folder


def _logprobs(logits: Tensor, ids: list[int], known: int) -> tuple[float | None, ...]:
    table = logits.double().log_softmax(-1)
    rest = [float(table[i - known - 1, ids[i]]) for i in range(known + 1, len(ids))]
    return (*[None] * (known + 1), *rest)
