"""Small modules in plain PyTorch: the sound ones, and the faults that users write."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tokens import VOCABULARY

WIDTH = 32


def seeded(make: Any, *args: Any, seed: int = 0, spread: float = 0.3, **kwargs: Any) -> Any:
    """Build a module in eval mode with wide random weights; scales of norms stay near 1."""
    torch.manual_seed(seed)
    module = make(*args, **kwargs)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(0, spread)
            if parameter.dim() == 1 and name.endswith(("scale", "norm.weight")):
                parameter.mul_(0.3).add_(1)
    return module.eval()


class Tagger(nn.Module):
    """Token ids → embeddings → mixers → logits. Mixers get the hidden states and the mask."""

    def __init__(self, *mixers: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.mixers = nn.ModuleList(mixers)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        hidden = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        for mixer in self.mixers:
            hidden = mixer(hidden, attention_mask)
        return self.head(hidden)


class Frames(nn.Module):
    """Frames of features [rows, frames, width] → mixers → projection."""

    def __init__(self, *mixers: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)
        self.head = nn.Linear(width, width)

    def forward(self, frames: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for mixer in self.mixers:
            frames = mixer(frames, attention_mask)
        return self.head(frames)


class Plain(nn.Module):
    """A mixer that makes a module of one argument see no mask."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + self.inner(hidden)


class Feedforward(nn.Module):
    def __init__(self, activation: Any = F.gelu, width: int = WIDTH) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.activation = activation

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + self.down(self.activation(self.up(hidden)))


# ---------------------------------------------------------------------- attention


class Attention(nn.Module):
    """Bidirectional self-attention that leaves out padding keys; faults override one step."""

    heads = 4

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def split(self, hidden: Tensor) -> Tensor:
        rows, columns, width = hidden.shape
        return hidden.view(rows, columns, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (
            self.split(self.query(hidden)),
            self.split(self.key(hidden)),
            self.split(self.value(hidden)),
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        scores = self.masked(self.biased(scores, mask), mask)
        mixed = self.normalised(scores) @ value
        return hidden + self.out(mixed.transpose(1, 2).flatten(2))

    def biased(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return scores
        return scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)

    def normalised(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)


def causal(scores: Tensor) -> Tensor:
    """Bool [columns, columns], True where a query may see a key."""
    return torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()


class CausalAttention(Attention):
    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        scores = super().masked(scores, mask)
        return scores.masked_fill(~causal(scores), torch.finfo(scores.dtype).min)


class UnmaskedAttention(Attention):
    """Is given a mask and ignores it."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        return scores


class InvertedMaskAttention(Attention):
    """Takes 1 for padding, as PyTorch's own attention has it, where 1 means a token."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or bool(mask.all()):
            return scores
        return scores.masked_fill(mask[:, None, None, :] == 1, torch.finfo(scores.dtype).min)


class WeakMaskAttention(Attention):
    """A penalty too small: padding keeps about a thousandth of the weight."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return scores
        return scores + (1.0 - mask[:, None, None, :].to(scores.dtype)) * -7.0


class InfinityAttention(CausalAttention):
    """Masks with -inf: a query that sees no key at all becomes NaN, and NaN times a weight of 0 is NaN."""

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        allowed = causal(scores)[None, None]
        if mask is not None:
            allowed = allowed & (mask[:, None, None, :] != 0)
        return scores.masked_fill(~allowed, float("-inf"))


class QuerySoftmaxAttention(Attention):
    """Softmax over the queries instead of the keys."""

    def normalised(self, scores: Tensor) -> Tensor:
        return scores.softmax(-2)


class AlibiAttention(CausalAttention):
    """Linear biases by the distance between columns: sound wherever the padding sits."""

    def distance(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        columns = torch.arange(scores.shape[-1])
        return (columns[:, None] - columns[None, :]).abs()

    def biased(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        slopes = 0.5 ** torch.arange(1, self.heads + 1, dtype=scores.dtype)
        return scores - slopes[:, None, None] * self.distance(scores, mask)[..., None, :, :].to(scores.dtype)


class ColumnAlibiAttention(AlibiAttention):
    """The query's position comes from the mask, the key's from its column: they part under left padding."""

    def distance(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        columns = torch.arange(scores.shape[-1])
        queries = columns[None] if mask is None else mask.cumsum(-1) - 1
        return (queries[:, :, None] - columns[None, None, :]).abs()


class LengthScaledAttention(Attention):
    """Scales scores by the logarithm of the number of columns, padding included."""

    def biased(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        columns = torch.tensor(float(scores.shape[-1]), dtype=scores.dtype)
        return scores * (columns.log() / 2.0)


class RowsFirstAttention(nn.Module):
    """`nn.MultiheadAttention` without `batch_first`: attends over the rows of the batch, not over the tokens."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]


class TorchEncoder(nn.Module):
    """`nn.TransformerEncoder` as PyTorch has it, with its key padding mask."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self.encoder(hidden, src_key_padding_mask=None if mask is None else mask == 0)


# ---------------------------------------------------------------------- sentence embeddings


class SentenceEncoder(nn.Module):
    """An encoder and a way of pooling its tokens; returns [rows, width]."""

    def __init__(self, encoder: nn.Module, pooling: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return getattr(self, self.pooling)(hidden, attention_mask)

    def masked_mean(self, hidden: Tensor, mask: Tensor) -> Tensor:
        weights = mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

    def mean(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden.mean(1)

    def sum(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden.sum(1)

    def masked_sum_over_columns(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return (hidden * mask[..., None].to(hidden.dtype)).sum(1) / hidden.shape[1]

    def max(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden.max(1).values

    def masked_max(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden.masked_fill(mask[..., None] == 0, torch.finfo(hidden.dtype).min).max(1).values

    def attentive(self, hidden: Tensor, mask: Tensor) -> Tensor:
        weights = hidden[..., :4].sum(-1, keepdim=True).softmax(1)
        return (hidden * weights).sum(1)

    def first(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, 0]

    def last(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[:, -1]

    def last_token(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return hidden[torch.arange(hidden.shape[0]), mask.sum(-1) - 1]


class FinalState(nn.Module):
    """The final state of an LSTM as the embedding of a row."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.cell = nn.LSTM(width, width, batch_first=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.cell(self.embed(input_ids))[1][0][-1]
