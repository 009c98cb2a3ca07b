"""Whether tensors, and whole sets of results, are the same bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from forkpoint.support.readable import why_unreadable


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype and value, NaN equal to NaN.

    >>> import torch
    >>> same_bits(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]))
    True
    """
    gone = bool(why_unreadable(a)), bool(why_unreadable(b))
    if any(gone):
        return all(gone)  # there is nothing to compare
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.is_complex:  # of two numbers with NaN in one part, the other parts may differ
        a, b = (torch.view_as_real(value.resolve_conj().resolve_neg()) for value in (a, b))
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return a.layout is b.layout and same_bits(a.to_dense(), b.to_dense())
    if a.dtype.is_floating_point:
        return bool(((a == b) | ((a != a) & (b != b))).all())
    return bool((a == b).all())


def same_results(a: Sequence[Mapping[str, Tensor]], b: Sequence[Mapping[str, Tensor]]) -> bool:
    """The same for everything that a model returned in each call."""
    return len(a) == len(b) and all(
        x.keys() == y.keys() and all(same_bits(x[name], y[name]) for name in x)
        for x, y in zip(a, b, strict=True)
    )
