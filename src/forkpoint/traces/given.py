"""What goes into a recorded call: by what names, which of it is kept, and whether it goes on with the call before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.runs.layout import Coordinates
from forkpoint.runs.returned import CACHES, cached_tokens
from forkpoint.runs.run import tensors_in
from forkpoint.support.readable import why_unreadable

KEPT_BYTES = 1 << 26
"""Most bytes of a call's inputs, and of what it returned, that are kept as they are; the rest has digests alone."""


def named(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What goes into a module by the names of its parameters."""
    try:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    inputs: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            inputs.update({f"{name}[{i}]": item for i, item in enumerate(value)})
        elif kind is inspect.Parameter.VAR_KEYWORD:
            inputs.update(value)
        else:
            inputs[name] = value
    return inputs


def copies_of(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of the inputs that rows are paired by, before the model can write to them."""
    room, copies = KEPT_BYTES, dict[str, Tensor]()
    for name, value in inputs.items():
        if (
            isinstance(value, Tensor)
            and value.layout == torch.strided
            and not why_unreadable(value)
            and value.nbytes <= room
        ):
            room -= value.nbytes
            copies[name] = value.detach().cpu().clone()
    return copies


def shape_of(value: Any) -> Any:
    """All that layouts are read from: whole numbers as they are, of others the shape."""
    if (
        not isinstance(value, Tensor)
        or value.is_nested
        or not (value.is_floating_point() or value.is_complex())
    ):
        return value.detach().clone() if isinstance(value, Tensor) and not value.is_nested else value
    return torch.zeros((), dtype=value.dtype).expand(value.shape)


def goes_on(inputs: Mapping[str, Any]) -> bool:
    """Whether a call is given a cache that holds tokens."""
    for name in CACHES:
        cache = inputs.get(name)
        if cache is None:
            continue
        length = cached_tokens(cache)
        if length is not None:
            return length > 0
        return any(bool((t != 0).any()) for t in tensors_in(cache) if t.numel() and not t.is_meta)
    return False


def from_sample(coordinates: Coordinates, first: int) -> Coordinates:
    """The same coordinates with their samples numbered from another one on."""
    sample = coordinates.sample
    return Coordinates(torch.where(sample >= 0, sample + first, sample), coordinates.position)
