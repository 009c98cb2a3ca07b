"""Caches that a run is given: somebody computed them before, in some dtype, and nobody saw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from forkpoint.explain.session import Session
from forkpoint.runs.returned import ALL_CACHES
from forkpoint.runs.run import copy_inputs, tensors_in


def caches_of(call: Mapping[str, Any]) -> list[Any]:
    """The caches among the inputs of a call."""
    return [call[name] for name in ALL_CACHES if call.get(name) is not None]


def floats_of(calls: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    """The floating-point tensors of caches among the inputs of calls."""
    tensors = (tensor for call in calls for cache in caches_of(call) for tensor in tensors_in(cache))
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def given_to_one(session: Session) -> str | None:
    """The run, `a` or `b`, that alone was given a cache."""
    a, b = (bool(floats_of(traced.run.calls)) for traced in (session.a, session.b))
    return None if a is b else "a" if a else "b"


def with_caches_moved(session: Session, run: str, seed: int) -> list[dict[str, Any]] | None:
    """The inputs of a run with what it alone was given in caches moved by a unit in the last place, up or down at random.

    The unit is that of the narrowest dtype that the run computes in, as whoever made the cache did. None where it was
    given none, the other run was given one, too, or it can't be copied.
    """
    traced = session.a if run == "a" else session.b
    calls = traced.run.calls
    if given_to_one(session) != run:
        return None
    own = {tensor.data_ptr() for tensor in floats_of(calls)}
    copied = [copy_inputs(call) for call in calls]
    tensors = floats_of(copied)
    if any(tensor.data_ptr() in own for tensor in tensors):
        return None  # it is its user's
    computed = {getattr(torch, event.dtype) for event in traced.trace.events if event.floating}
    dtypes = {dtype for dtype in computed if dtype.is_floating_point} | {tensor.dtype for tensor in tensors}
    unit = max(torch.finfo(dtype).eps for dtype in dtypes)
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        signs = torch.randint(0, 2, tensor.shape, generator=generator).to(tensor.device) * 2 - 1
        tensor.mul_(1 + unit * signs.to(tensor.dtype))
    return copied
