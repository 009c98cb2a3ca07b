"""`attn_implementation="forkpoint"`: attention over each sequence by itself, from its position 0, without padding."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from forkpoint.invariance import blocks, gpu, sequences, state
from forkpoint.invariance.asked import Attention
from forkpoint.invariance.dispatch import Stock, is_active, kernel, plain
from forkpoint.invariance.sequences import Sequences

NAME = "forkpoint"
_OWN = "forkpoint_sequences"
"""What a mask carries along: a function that gives its sequences."""
_replaced: dict[int, str] = {}
"""By the address of a configuration: what a block replaces by this attention, and other threads still go by."""


@contextmanager
def standing_in(config: Any, name: str | None) -> Generator[None]:
    """This attention stands in for another one, in threads that are within a block."""
    if name is None or id(config) in _replaced:
        yield
        return
    _replaced[id(config)] = name
    try:
        yield
    finally:
        del _replaced[id(config)]


def _elsewhere(config: Any) -> str | None:
    """The attention that a thread outside of any block goes by, where it is not this one."""
    name = None if is_active() else _replaced.get(id(config))
    return None if name == NAME else name


@cache
def register() -> None:
    """Makes the name known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def mask(*args: Any, **kwargs: Any) -> torch.Tensor:
    """The mask `[batch, 1, queries, keys]`, bool, which knows the sequences of its batch; arguments as of `sdpa_mask`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask

    other = _elsewhere(kwargs.get("config"))
    if other is not None:
        return ALL_MASK_ATTENTION_FUNCTIONS[other](*args, **kwargs)
    function, valid = kwargs.get("mask_function", causal_mask_function), kwargs.get("attention_mask")
    q_offset, kv_offset = int(kwargs.get("q_offset", 0)), int(kwargs.get("kv_offset", 0))
    made = causal_batch = None
    if function is causal_mask_function and not args and _on_gpu(kwargs.get("device")):
        made, causal_batch = _causal(kwargs, q_offset, kv_offset)
    if made is None:
        kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        with plain():
            made = sdpa_mask(*args, **kwargs)
    assert made is not None
    batch: list[Sequences] = [] if causal_batch is None else [causal_batch]

    def own() -> Sequences:
        if not batch:
            if function is causal_mask_function and valid is None:
                batch.append(sequences.of_causal_mask(made, q_offset, kv_offset))
            else:
                causal = sequences.is_causal(function, made.device)
                batch.append(sequences.of_mask(made, valid, q_offset, kv_offset, causal))
        return batch[0]

    setattr(made, _OWN, own)
    return made


def _causal(
    asked: dict[str, Any], q_offset: int, kv_offset: int
) -> tuple[torch.Tensor, Sequences] | tuple[None, None]:
    """A mask that nothing reads, and the sequences that a kernel is told of instead; None where a mask must be read."""
    device, valid = torch.device(asked["device"]), asked.get("attention_mask")
    shape = asked["batch_size"], 1, asked["q_length"], asked["kv_length"]
    made = torch.ones((), dtype=torch.bool, device=device).expand(shape)
    if valid is None:
        return made, sequences.of_causal_mask(made, q_offset, kv_offset)
    batch = sequences.of_causal_padding(valid, *shape[2:], q_offset, kv_offset, device)
    return (None, None) if batch is None else (made, batch)


def _on_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda" and gpu.available()


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers asks for it.

    Args:
        module: the module that attends.
        query: `[batch, heads, queries, size]`.
        key, value: `[batch, key heads, keys, size]`.
        attention_mask: what `mask` made, or None.
        dropout: must be 0.
        scaling: factor of the scores, by default one over the square root of the size.
        is_causal: what to do without a mask; by default what the module says.
        position_bias: `[1 or batch, heads, queries, keys]`, added to the scores.
        softcap: bound of the scores.
        s_aux: `[heads]`, scores of a key that has no value.

    Returns:
        `[batch, queries, heads, size]`, zeros for padding, and None.

    Raises:
        InvarianceError: there is no invariant form: dropout, or a mask that tells no sequences.
    """
    other = _elsewhere(getattr(module, "config", None))
    if other is not None:
        more = {"position_bias": position_bias, "softcap": softcap, "s_aux": s_aux}
        rest.update({key: value for key, value in more.items() if value is not None})
        return _other(other, module)(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **rest,
        )
    own: Callable[[], Sequences] | None = getattr(attention_mask, _OWN, None)
    if own is not None and query.is_cuda and not dropout and query.dtype in gpu.DTYPES and gpu.available():
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        with _as_one():
            return gpu.attend(query, key, value, position_bias, own(), Attention(scale, softcap, s_aux)), None
    if dropout:
        state.refuse("dropout in attention", "it draws random numbers by the layout")
    if own is None and attention_mask is not None:
        state.refuse("attention with a mask of the caller's own", "it doesn't tell where a sequence begins")
        with plain():
            return _stock(
                module, query, key, value, attention_mask, scaling, position_bias, softcap, s_aux
            ), None
    with plain(), _as_one():
        if own is not None:
            batch = own()
        else:
            causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
            batch = sequences.without_mask(query, key, causal and query.shape[2] > 1)
        asked = Attention(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
        if query.device.type == "cuda" and query.dtype in gpu.DTYPES and gpu.available():
            return gpu.attend(query, key, value, position_bias, batch, asked), None
        if query.is_cuda:
            state.refuse(
                f"attention in {query.dtype} on a GPU",
                "only in float32, bfloat16 and float16, and with Triton, it has a kernel",
            )
        result: torch.Tensor | None = None
        for one in batch:
            if not sequences.count(one.queries):
                continue
            bias = None
            if position_bias is not None:
                bias = position_bias[min(one.row, position_bias.shape[0] - 1)]
                bias = bias[:, one.queries][..., one.keys]
            if query.is_cuda:
                one = sequences.written_out(one)
            k, v = key[one.row][:, one.keys], value[one.row][:, one.keys]
            made = blocks.attend(query[one.row][:, one.queries], k, v, bias, one, asked)
            if query.shape[0] == 1 and made.shape[0] == query.shape[2]:
                return made[None], None
            if result is None:
                result = query.new_zeros(query.shape[0], query.shape[2], *made.shape[1:])
            result[one.row, one.queries] = made
        if result is None:
            result = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    return result, None


_as_one = torch._C.DisableTorchFunction
"""Within, functions of torch are not seen by modes: what they are called on has the form of blocks, not of the call."""


def _other(name: str, module: torch.nn.Module) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def _stock(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor,
    scaling: float | None, bias: torch.Tensor | None, softcap: float | None, sinks: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if softcap is not None or sinks is not None:
        raise NotImplementedError("a mask of one's own together with a softcap or sinks")
    return sdpa_attention_forward(
        module, query, key, value, mask, scaling=scaling, position_bias=bias
    )[0]  # fmt: skip


@kernel("scaled_dot_product_attention")
def scaled_dot_product_attention(
    stock: Stock, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The function as a model calls it by itself: by sequences where it hands over no mask."""
    if attn_mask is not None or query.dim() != 4:
        state.refuse("scaled_dot_product_attention", "its mask doesn't tell where a sequence begins")
        return stock(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    made, _ = attention(_NOBODY, query, key, value, None, dropout_p, scale, is_causal)
    return made.transpose(1, 2)


_NOBODY = torch.nn.Identity()
