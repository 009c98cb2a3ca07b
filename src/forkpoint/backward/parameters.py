"""The gradients of parameters, each compared whole, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forkpoint.explain.session import Session, Traced
from forkpoint.match.align import gap, largest_pair
from forkpoint.match.distance import ulps
from forkpoint.match.pairs import Pairs
from forkpoint.result import ParameterGradient
from forkpoint.support.memory import Shelf, Shelved, load

HostGradients = Mapping[int, Tensor | Shelved | None]
"""By the id of each parameter that requires a gradient, what arrived; None where nothing did."""


def keep(gradients: Mapping[int, Tensor | None], shelf: Shelf) -> HostGradients:
    """The gradients on the host."""
    return {
        key: None if value is None else shelf.keep(_plain(value).cpu()) for key, value in gradients.items()
    }


def same(earlier: HostGradients, gradients: Mapping[int, Tensor | None]) -> bool:
    """Whether gradients are those that were kept, bit for bit."""
    for key, value in gradients.items():
        before = earlier[key]
        if (before is None) != (value is None):
            return False
        if before is not None and value is not None:
            left, right = load(before), _plain(value).cpu()
            if gap(left, right, Pairs.whole(left.numel())).differing:
                return False
    return True


def compare(session: Session, a: HostGradients, b: HostGradients) -> tuple[ParameterGradient, ...]:
    """Compare the gradients of all parameters of both models, in the order of run A's.

    Where a parameter requires a gradient and none arrives, it is zero.
    """
    mine, theirs = all_by_name(session.a), all_by_name(session.b)
    return tuple(
        _one(name, (mine.get(name), theirs.get(name)), (a, b))
        for name in dict.fromkeys([*mine, *theirs])
        if any(name in run and run[name].requires_grad for run in (mine, theirs))
    )


def _one(
    name: str,
    weights: tuple[nn.Parameter | None, nn.Parameter | None],
    gradients: tuple[HostGradients, HostGradients],
) -> ParameterGradient:
    shapes = [tuple(weight.shape) for weight in weights if weight is not None]

    def without(reason: str) -> ParameterGradient:
        return ParameterGradient(name, "not compared", shapes[0], reason=reason)

    for run, weight in zip("AB", weights, strict=True):
        if weight is None:
            return without(f"run {run} has no such parameter")
        if not weight.requires_grad:
            return without(f"it requires no gradient in run {run}")
    if shapes[0] != shapes[1]:
        return without(f"shape {list(shapes[0])} in A, {list(shapes[1])} in B")
    saved = [run[id(weight)] for run, weight in zip(gradients, weights, strict=True)]
    loaded = [None if value is None else load(value) for value in saved]
    first = next((value for value in loaded if value is not None), None)
    if first is None:
        return without("no gradient arrives in either run")
    return described(name, *(torch.zeros_like(first) if value is None else value for value in loaded))


def described(name: str, a: Tensor, b: Tensor) -> ParameterGradient:
    """How two gradients of one parameter compare.

    >>> compared = described("weight", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    >>> compared.status, compared.max_abs, round(compared.relative, 3), round(compared.cosine, 3)
    ('differs', 2.0, 0.894, 0.976)
    """
    pairs = Pairs.whole(a.numel())
    difference = gap(a, b, pairs)
    apart: float | None = 0.0
    if difference.differing:
        at, _ = pairs.at(largest_pair(a, b, pairs, difference))
        apart = ulps(float(a.reshape(-1)[at]), float(b.reshape(-1)[at]), a.dtype, b.dtype)
    x, y = a.reshape(-1).double(), b.reshape(-1).double()
    norm_a, norm_b, between = (float(torch.linalg.vector_norm(v)) for v in (x, y, x - y))
    finite = math.isfinite(norm_a) and math.isfinite(norm_b)
    whole = finite and norm_a > 0 and norm_b > 0
    relative = (between / norm_a if norm_a else math.inf) if finite else None
    return ParameterGradient(
        name, "differs" if difference.differing else "equal", tuple(a.shape),
        str(a.dtype).removeprefix("torch."), str(b.dtype).removeprefix("torch."),
        len(pairs), difference.differing, difference.max_abs, apart,
        relative if difference.differing else 0.0,
        max(-1.0, min(1.0, float(x @ y) / norm_a / norm_b)) if whole else None,
    )  # fmt: skip


def all_by_name(traced: Traced) -> dict[str, nn.Parameter]:
    """All parameters of a run's model, by what the other run calls them."""
    model = traced.run.modules
    named = () if model is None else model.named_parameters()
    return {traced.trace.plain(name): weight for name, weight in named}


def dense(value: Tensor) -> Tensor:
    """A gradient, which embeddings may make sparse, with all its elements."""
    return value if value.layout is torch.strided else value.to_dense()


def _plain(value: Tensor) -> Tensor:
    value = dense(value.detach())
    return torch.view_as_real(value) if value.is_complex() else value
