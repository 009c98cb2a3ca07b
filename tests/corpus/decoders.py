"""Decoders with caches of their own, sound or faulty."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from .modules import WIDTH, Attention
from .tokens import VOCABULARY

# ---------------------------------------------------------------------- caches


class CachedDecoder(nn.Module):
    """One layer of causal attention with learned positions and a cache of keys and values."""

    def __init__(self, width: int = WIDTH, positions: int = 64) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(positions, width)
        self.attention = Attention(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: tuple[Tensor, Tensor] | None = None,
    ) -> CausalLMOutputWithPast:
        past = 0 if past_key_values is None else self.length(past_key_values)
        if position_ids is None:
            position_ids = torch.arange(past, past + input_ids.shape[1])[None]
        hidden = self.embed(input_ids) + self.place(position_ids)
        one = self.attention
        query, key, value = (one.split(part(hidden)) for part in (one.query, one.key, one.value))
        key, value = self.extend(past_key_values, key, value)
        mixed = self.attend(query, key, value, past)
        logits = self.head(hidden + one.out(mixed.transpose(1, 2).flatten(2)))
        return CausalLMOutputWithPast(
            logits=logits,
            past_key_values=self.kept(key, value, past + input_ids.shape[1]),  # pyright: ignore[reportArgumentType]
        )

    def length(self, cache: tuple[Tensor, ...]) -> int:
        return cache[0].shape[2]

    def extend(self, cache: tuple[Tensor, ...] | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if cache is None:
            return key, value
        return torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)

    def kept(self, key: Tensor, value: Tensor, length: int) -> tuple[Tensor, ...]:
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, past: int) -> Tensor:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(past)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class TopLeftDecoder(CachedDecoder):
    """Leaves the mask to `is_causal`, which aligns it with the first key: a step sees key 0 alone."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, past: int) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class ShortMaskDecoder(CachedDecoder):
    """The mask of a step is one column short: the newest key but one is not seen."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, past: int) -> Tensor:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(past)
        if past:
            mask[:, past - 1] = False
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class SwappedRowsDecoder(CachedDecoder):
    """Hands the cache of each row to the next row."""

    def kept(self, key: Tensor, value: Tensor, length: int) -> tuple[Tensor, ...]:
        return key.roll(1, 0), value.roll(1, 0)


class RelativeKeyDecoder(CachedDecoder):
    """Scores get a learned term by distance, as BERT's `relative_key` had it.

    `restarts`: a step takes its queries to stand at 0, 1, … instead of after the cached ones.
    """

    restarts = False

    def __init__(self, width: int = WIDTH, positions: int = 64) -> None:
        super().__init__(width, positions)
        self.distance = nn.Embedding(2 * positions - 1, width // Attention.heads)
        self.span = positions

    def attend(self, query: Tensor, key: Tensor, value: Tensor, past: int) -> Tensor:
        start = 0 if self.restarts else past
        left = torch.arange(start, start + query.shape[2])[:, None]
        right = torch.arange(key.shape[2])[None]
        relative = torch.einsum("bhld,lrd->bhlr", query, self.distance(left - right + self.span - 1))
        scores = (query @ key.transpose(-1, -2) + relative) / query.shape[-1] ** 0.5
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(past)
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) @ value


class RestartingDecoder(RelativeKeyDecoder):
    restarts = True


class StaticDecoder(CachedDecoder):
    """A cache of fixed size; `sees_empty` attends to its unused slots too."""

    slots = 24
    sees_empty = False

    def length(self, cache: tuple[Tensor, ...]) -> int:
        return int(cache[2])

    def extend(self, cache: tuple[Tensor, ...] | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        start = 0 if cache is None else self.length(cache)
        empty = torch.zeros(*key.shape[:2], self.slots, key.shape[3], dtype=key.dtype)
        old_key, old_value = (empty, empty) if cache is None else (cache[0], cache[1])
        end = start + key.shape[2]
        key = torch.cat([old_key[:, :, :start], key, old_key[:, :, end:]], 2)
        return key, torch.cat([old_value[:, :, :start], value, old_value[:, :, end:]], 2)

    def kept(self, key: Tensor, value: Tensor, length: int) -> tuple[Tensor, ...]:
        return key, value, torch.tensor(length)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, past: int) -> Tensor:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(past)
        if self.sees_empty:
            mask = mask | (torch.arange(key.shape[2]) >= past + query.shape[2])
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class LeakyStaticDecoder(StaticDecoder):
    sees_empty = True


class Streaming(nn.Module):
    """Keeps a state from call to call, in a buffer; nothing resets it between sentences."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.mix, self.head = nn.Linear(width, width), nn.Linear(width, VOCABULARY)
        self.register_buffer("state", torch.zeros(width), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        outputs = []
        for hidden in self.embed(input_ids)[0]:
            self.state = torch.tanh(self.mix(self.state) + hidden)
            outputs.append(self.state)
        return self.head(torch.stack(outputs))[None]


class Running(nn.Module):
    """Takes a running mean off each token, and moves it by the tokens' own mean in each call."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.register_buffer("mean", torch.zeros(width))
        self.momentum = 0.1

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embed(input_ids)
        centred = hidden - self.mean
        self.mean += self.momentum * (hidden.mean((0, 1)) - self.mean)
        return self.head(torch.tanh(centred))


class ForgetfulCache(CachedDecoder):
    """Keeps its cache in an attribute, and so from one sentence to the next."""

    def __init__(self, width: int = WIDTH, positions: int = 64) -> None:
        super().__init__(width, positions)
        self.cache: tuple[Tensor, Tensor] | None = None

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> BaseModelOutput:  # pyright: ignore[reportIncompatibleMethodOverride]
        given = torch.arange(input_ids.shape[1])[None] if position_ids is None else position_ids
        out = super().forward(input_ids, given, self.cache)
        self.cache = out.past_key_values  # pyright: ignore[reportAttributeAccessIssue]
        return BaseModelOutput(last_hidden_state=out.logits)
