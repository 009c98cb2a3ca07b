"""Which columns of an input hold tokens, read from what the other inputs say: masks of any dtype and form, and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forkpoint.errors import InputError

CUMULATIVE_LENGTHS = ("cu_seqlens", "cu_seq_lens_q", "cu_seqlens_q")
_MASKS = ("attention_mask", "encoder_attention_mask")
_PADDING_MASKS = {"src_key_padding_mask": True, "key_padding_mask": True, "padding_mask": None}
"""Masks of padding; whether by torch's convention nonzero is padding, or nobody's, so that the values have to tell."""

_HIDDEN = -5e3
"""What is added to the score of a key that nothing may see lies below that; biases lie above."""


class Mask(NamedTuple):
    """Where an input says that tokens are: its name, and True at every column that holds one."""

    name: str
    valid: Tensor


def states_layout(input_name: str) -> bool:
    """Whether an input of this name states where the tokens are: a mask, positions, or lengths.

    >>> [name for name in ("pixel_mask", "position_ids", "seq_lens", "head_mask", "task_id") if states_layout(name)]
    ['pixel_mask', 'position_ids', 'seq_lens']
    """
    if input_name in (*CUMULATIVE_LENGTHS, "seq_idx", "cache_position"):
        return True
    if input_name.endswith("head_mask"):
        return False
    return input_name.endswith(("mask", "position_ids", "positions")) or is_lengths(input_name)


def is_lengths(input_name: str) -> bool:
    """Whether an input of this name holds the number of tokens of each row.

    >>> [name for name in ("lengths", "input_lengths", "seq_lens", "target_lengths", "cu_seqlens") if is_lengths(name)]
    ['lengths', 'input_lengths', 'seq_lens']
    """
    foreign = (
        input_name.startswith(("cu_", "max_", "decoder_")) or "target" in input_name or "label" in input_name
    )
    return input_name.endswith(("length", "lengths", "lens", "seqlens")) and not foreign


def find_mask(inputs: Mapping[str, Any], tokens: Tensor, *, decoder: bool = False) -> Mask | None:
    """What the inputs of a call say of where its tokens are; None where they say nothing.

    Args:
        inputs: of the call.
        tokens: the one that carries the tokens.
        decoder: whether these are the decoder's.

    Raises:
        InputError: a mask that can be read both ways.
    """
    names = ("decoder_attention_mask",) if decoder else _MASKS
    beside = inputs.get("encoder_hidden_states")
    if isinstance(beside, Tensor) and beside is not tokens:
        names = [name for name in names if name != "encoder_attention_mask"]  # it is that one's
    for name in names:
        mask = inputs.get(name)
        valid = _of_attention(mask, tokens) if isinstance(mask, Tensor) else None
        if valid is not None:
            return Mask(name, valid)
    if decoder:
        return None
    for name, inverted in _PADDING_MASKS.items():
        mask = inputs.get(name)
        if isinstance(mask, Tensor):
            flat = _one_channel(mask)
            if flat.dim() == 2:
                return Mask(name, _of_padding(name, flat, tokens, inverted))
    for name, lengths in inputs.items():
        if isinstance(lengths, Tensor) and is_lengths(name):
            valid = _of_lengths(lengths, tokens)
            if valid is not None:
                return Mask(name, valid)
    return None


def _of_attention(mask: Tensor, tokens: Tensor) -> Tensor | None:
    """The keys that anything may see."""
    mask = mask.detach().cpu()
    additive = mask.is_floating_point() and bool((mask <= _HIDDEN).any())
    if mask.dim() <= 2:
        return mask > _HIDDEN if additive else mask != 0
    if mask.dim() == 4:  # [rows, heads, queries, keys]
        seen = mask > _HIDDEN if additive or mask.is_floating_point() else mask != 0
        keys = seen.any(1).any(1)
        rows = tokens.shape[0]
        return keys.expand(rows, -1) if len(keys) == 1 else keys if len(keys) == rows else None
    return None


def _one_channel(mask: Tensor) -> Tensor:
    """A mask of [rows, channels, columns] that is the same for all channels, as [rows, columns]."""
    if mask.dim() == 3 and bool((mask == mask[:, :1]).all()):
        return mask[:, 0]
    return mask


def _of_padding(name: str, mask: Tensor, tokens: Tensor, inverted: bool | None) -> Tensor:
    """A mask of padding; where nothing says whether nonzero is padding or not, its values do."""
    mask = mask.detach().cpu()
    if mask.is_floating_point() and bool((mask < 0).any()):  # added to scores
        return mask > _HIDDEN
    marked = mask != 0
    readings = [reading for reading in (~marked, marked) if _is_sound(reading)]
    if inverted is not None and (not readings or (len(readings) == 2 and inverted)):
        return ~marked
    if len(readings) == 2:
        constant = [reading for reading in readings if _pads_alike(reading, tokens)]
        readings = constant if len(constant) == 1 else readings
    if len(readings) == 1:
        return readings[0]
    raise InputError(
        f"{name} can be read both ways" if readings else f"{name} whose padding is not at an end of each row",
        "a mask that shows whether True is a real token or padding, as one with an unpadded row does",
        "give the layout: fp.Layout.from_mask(mask) where True is a real token, fp.Layout.from_mask(~mask) where it is padding",
    )


def _is_sound(valid: Tensor) -> bool:
    """Whether every row has a token, and its tokens are together, so that padding is at an end."""
    edges = torch.nn.functional.pad(valid.int(), (1, 1)).diff(dim=-1).clamp(min=0).sum(-1)
    return bool((edges == 1).all())


def _pads_alike(valid: Tensor, tokens: Tensor) -> bool:
    """Whether all that a mask calls padding holds one value, and tokens do not."""
    values = tokens.detach().cpu()
    if values.dim() == 3 and tuple(values.shape[:2]) != tuple(valid.shape):
        values = values.transpose(1, 2)
    if tuple(values.shape[:2]) != tuple(valid.shape):
        return False
    padding, real = values[~valid], values[valid]
    return bool((padding == padding[:1]).all()) and not bool((real == real[:1]).all())


def _of_lengths(lengths: Tensor, tokens: Tensor) -> Tensor | None:
    """The columns before the end of each row, along the dimension that the lengths fit."""
    if (
        lengths.dim() != 1
        or lengths.is_floating_point()
        or tokens.dim() < 2
        or len(lengths) != tokens.shape[0]
    ):
        return None
    lengths = lengths.detach().cpu().long()
    longest = int(lengths.max()) if lengths.numel() else 0
    columns = [n for n in (tokens.shape[1], tokens.shape[-1]) if tokens.dim() == 3 or n == tokens.shape[1]]
    fitting = [n for n in columns if longest == n] or [n for n in columns if longest <= n]
    if not fitting or longest < 1 or tokens.dim() > 3:
        return None
    return torch.arange(fitting[0])[None] < lengths[:, None]


def real_pixels(name: str, tokens: Tensor, inputs: Mapping[str, Any]) -> list[Tensor] | None:
    """Of each image its pixels that are no padding, [channels, pixels]; None for what is no image with a mask."""
    if name != "pixel_values" or tokens.dim() != 4:
        return None
    mask = inputs.get("pixel_mask")
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (tokens.shape[0], *tokens.shape[2:]):
        return [image.reshape(len(image), -1) for image in tokens]
    return [image[:, real.to(image.device) != 0] for image, real in zip(tokens, mask, strict=True)]
