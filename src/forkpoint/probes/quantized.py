"""Quantised weights: are they another model's, rounded to steps?"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.errors import reraise_out_of_memory

Steps = tuple[Tensor, Tensor]
"""What quantised weights stand for, and half of the step at each."""

_CODES = 0.17
"""Half the largest distance of two numbers of nf4 or fp4, whose largest is 1."""
_ROUNDED = 2.0**-8
"""Relative to a weight: by what it may be rounded before it is quantised, and a block's scale after it."""


def are_quantized(module: nn.Module, weight: Tensor, other: Tensor) -> bool:
    """Whether quantised weights are others, rounded to steps: none is farther away than half a step.

    False, too, where nobody can tell what they stand for.

    Args:
        module: the module that holds them, and maybe their scales.
        weight: the quantised weights.
        other: weights of another model.
    """
    if not other.dtype.is_floating_point:
        return False
    try:
        steps = _steps(module, weight)
    except Exception as error:  # noqa: BLE001 - what a library keeps differs from version to version
        reraise_out_of_memory(error)
        return False
    exact = other.detach().double().cpu()
    if steps is None or steps[0].numel() != exact.numel():
        return False
    value, half = (each.detach().double().cpu().reshape(exact.shape) for each in steps)
    size = torch.maximum(value.abs(), exact.abs())
    return bool(((value - exact).abs() <= half + _ROUNDED * size).all())


def _steps(module: nn.Module, weight: Tensor) -> Steps | None:
    """What weights of torch's own quantised modules, or of those of bitsandbytes, stand for; None for others."""
    if weight.is_quantized:
        return weight.dequantize(), _of_torch(weight) / 2
    scales = getattr(weight, "SCB", None)
    if scales is None:
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if weight.dtype == torch.int8 and isinstance(scales, Tensor):
        step = scales.double()[:, None] / 127
        return weight.double() * step, (step / 2).expand(weight.shape)
    state: Any = getattr(weight, "quant_state", None)
    if state is None:
        return None
    value = importlib.import_module("bitsandbytes.functional").dequantize_4bit(weight.data, state).double()
    return value, _CODES * _largest_of_block(value, int(state.blocksize))


def _of_torch(weight: Tensor) -> Tensor:
    """The step at each of torch's quantised numbers."""
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return torch.full(weight.shape, weight.q_scale(), dtype=torch.float64)
    along = [1] * weight.dim()
    along[weight.q_per_channel_axis()] = -1
    return weight.q_per_channel_scales().double().reshape(along).expand(weight.shape)


def _largest_of_block(value: Tensor, size: int) -> Tensor:
    """The largest of each block, which a block has unchanged, for each of its elements."""
    flat = value.reshape(-1).abs()
    blocks = torch.nn.functional.pad(flat, (0, math.ceil(len(flat) / size) * size - len(flat)))
    largest = blocks.reshape(-1, size).amax(1, keepdim=True).expand(-1, size)
    return largest.reshape(-1)[: len(flat)]
