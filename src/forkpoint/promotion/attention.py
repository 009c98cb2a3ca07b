"""Attention kernels that take half precision only, done in float64 from their definition.

`[samples, tokens, heads, features]`, or `[tokens, heads, features]` with the bounds of each sample, as in flash
attention 2 (arXiv:2307.08691). A causal mask is aligned to the last key. Keys and values may have fewer heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from forkpoint.promotion.errors import CannotRewriteError


@dataclass(frozen=True)
class Rules:
    """Which keys a query sees, and what is done to their scores."""

    scale: float | None = None
    """Of the scores; None for one over the root of the number of features."""
    causal: bool = False
    before: int = -1
    """How many keys before its own position a query sees; negative for all."""
    after: int = -1
    softcap: float = 0.0
    """Scores become ``softcap * tanh(scores / softcap)``; 0 leaves them."""
    slopes: torch.Tensor | None = None
    """ALiBi's slope of each head, `[heads]` or `[samples, heads]`."""


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: Rules
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one sample: `[tokens, heads, features]` and the log-sum-exp of its scores, `[heads, tokens]`."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if rules.scale is None else rules.scale
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if rules.softcap > 0:
        scores = torch.tanh(scores / rules.softcap) * rules.softcap
    queries, keys = scores.shape[1:]
    own = torch.arange(queries, device=query.device).unsqueeze(1) + (keys - queries)
    distance = torch.arange(keys, device=query.device) - own
    if rules.slopes is not None:
        scores = scores - rules.slopes.reshape(-1, 1, 1) * distance.abs()
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if rules.causal:
        hidden |= distance > 0
    if rules.before >= 0:
        hidden |= distance < -rules.before
    if rules.after >= 0:
        hidden |= distance > rules.after
    scores = scores.masked_fill(hidden, -torch.inf)
    # A query that sees no key gets 0, as the kernels have it, and not NaN.
    weights = torch.softmax(scores, dim=-1).masked_fill(hidden.all(dim=-1, keepdim=True), 0.0)
    return torch.einsum("hqk,khd->qhd", weights, value), torch.logsumexp(scores, dim=-1)


def attend_dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: Rules
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[samples, tokens, heads, features]`, and `[samples, heads, tokens]` for the log-sum-exp."""
    samples = [attend(query[n], key[n], value[n], _of_sample(rules, n)) for n in range(query.shape[0])]
    return torch.stack([out for out, _ in samples]), torch.stack([total for _, total in samples])


def attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    rules: Rules,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`[tokens, heads, features]`, and `[heads, tokens]`; sample n is between bounds n and n + 1."""
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
    totals = torch.zeros(query.shape[1], query.shape[0], dtype=query.dtype, device=query.device)
    starts, key_starts = query_bounds.tolist(), key_bounds.tolist()
    for n in range(len(starts) - 1):
        of_query, of_key = slice(starts[n], starts[n + 1]), slice(key_starts[n], key_starts[n + 1])
        out[of_query], totals[:, of_query] = attend(
            query[of_query], key[of_key], value[of_key], _of_sample(rules, n)
        )
    return out, totals


def _of_sample(rules: Rules, sample: int) -> Rules:
    if rules.slopes is None or rules.slopes.dim() < 2:
        return rules
    return replace(rules, slopes=rules.slopes[sample])


def aten_flash_attention(
    *,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor | None,
    cum_seq_k: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    alibi_slopes: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, ...]:
    """``aten::_flash_attention_forward``, which is under `torch.nn.attention.varlen.varlen_attn` too."""
    _only_plain(dropout_p, more)
    before, after = (-1 if size is None else size for size in (window_size_left, window_size_right))
    rules = Rules(scale, is_causal, before, after, slopes=alibi_slopes)
    if cum_seq_q is None:
        out, totals = attend_dense(query, key, value, rules)
    else:
        bounds = cum_seq_q if cum_seq_k is None else cum_seq_k
        out, totals = attend_packed(query, key, value, cum_seq_q, bounds, rules)
    random_state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    return out, totals, random_state, random_state.clone(), query.new_empty(0)


def flash_attention(
    *, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float, **more: Any
) -> tuple[torch.Tensor, ...]:
    """``flash_attn::_flash_attn_forward`` of the flash-attn package, version 2."""
    out, totals = attend_dense(q, k, v, _flash_rules(dropout_p, **more))
    return out, totals, q.new_empty(0), torch.zeros(2, dtype=torch.int64, device=q.device)


def flash_attention_packed(
    *,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    dropout_p: float,
    **more: Any,
) -> tuple[torch.Tensor, ...]:
    """``flash_attn::_flash_attn_varlen_forward`` of the flash-attn package, version 2."""
    out, totals = attend_packed(q, k, v, cu_seqlens_q, cu_seqlens_k, _flash_rules(dropout_p, **more))
    return out, totals, q.new_empty(0), torch.zeros(2, dtype=torch.int64, device=q.device)


def _flash_rules(
    dropout: float,
    *,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    **more: Any,
) -> Rules:
    _only_plain(dropout, more)
    return Rules(softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes)


def _only_plain(dropout: float, more: dict[str, Any]) -> None:
    if dropout:
        raise CannotRewriteError("flash attention with dropout")
    tensors = [name for name, value in more.items() if isinstance(value, torch.Tensor)]
    if tensors:
        raise CannotRewriteError(f"flash attention with {', '.join(tensors)}")
