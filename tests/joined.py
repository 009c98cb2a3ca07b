"""Traces two runs of one function and joins them, without probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint import Layout, Run
from forkpoint.explain.session import Session, trace_run
from forkpoint.match import Join, Joined, Shared
from forkpoint.runs.pairing import pair_samples, read_content

Inputs = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def session(a: Run, b: Run) -> Session:
    """Both runs, traced and joined."""
    pairing = pair_samples(
        a.layout, b.layout, read_content(a.layout, a.calls), read_content(b.layout, b.calls)
    )
    traced = trace_run(a), trace_run(b)
    shared = Shared(traced[0].trace.table, traced[1].trace.table, pairing)
    return Session(*traced, shared, Join(traced[0].trace, traced[1].trace, shared))


def joined(
    function: Callable[..., Any], a: Inputs, b: Inputs, layout_a: Layout | None = None, layout_b: Layout | None = None,
    model: nn.Module | None = None,
) -> Session:  # fmt: skip
    """The same function in both runs."""
    call = lambda _, given: function(**given)  # noqa: E731
    return session(
        Run(model, a, layout=layout_a, call=call), Run(model, b, layout=layout_b, call=call)
    )  # fmt: skip


def row(found: Session, name: str, index: int = 0) -> Joined:
    """One op of a joined pair, by `module/function`."""
    return [r for r in found.join.rows if r.op.name == name][index]


def statuses(found: Session) -> dict[str, str]:
    return {r.op.name: r.status for r in found.join.rows}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(x: Tensor, left: int = 0, right: int = 0, seed: int = 9) -> tuple[Tensor, Layout]:
    """Rows of features with garbage on either side, and their layout."""
    rows, columns = x.shape[:2]
    before, after = (
        noise(rows, left, *x.shape[2:], seed=seed),
        noise(rows, right, *x.shape[2:], seed=seed + 1),
    )
    mask = torch.cat([torch.zeros(rows, left), torch.ones(rows, columns), torch.zeros(rows, right)], 1)
    return torch.cat([before.to(x.dtype), x, after.to(x.dtype)], 1), Layout.from_mask(mask)
