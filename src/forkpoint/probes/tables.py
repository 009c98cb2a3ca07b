"""The tables probe: is what two models differ by in float64 no more than what rounding did to their tables?

Sines, frequencies and the like are often computed once, when a model is made, and kept in float32. Float64 can't give back
what they lost. Two models that keep other tables, or of which one computes what the other keeps, then stay apart by that much.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.explain.results import ResultComparison, compare_results
from forkpoint.explain.session import Session
from forkpoint.probes.inputs import Weight, same_weights
from forkpoint.probes.precision import Precision
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.runs.modules import walk
from forkpoint.support.readable import PLAIN, why_unreadable

RUNS = 2
"""How often each run is made with its tables moved."""
MARGIN = 4.0
"""How many times the largest measured effect still counts as that of rounding: frequencies are rounded more than once."""
_NARROW = {torch.float32, torch.bfloat16, torch.float16, torch.complex64}
_SHORT = 2.0**16
"""An element that is whole when it is multiplied by this is held to be exact."""
_DEEP = 4
"""Containers within containers in which tables are looked for."""


def tables_of(model: nn.Module | None) -> list[Tensor]:
    """The floating-point tensors that a model holds and that are no parameters, if rounding has changed them."""
    tables: dict[int, Tensor] = {}
    for _, module in walk(model):
        for value in (*module._buffers.values(), *_tensors_in(vars(module).values(), _DEEP)):
            if value is not None and _is_rounded(value):
                tables.setdefault(id(value), value)
    return list(tables.values())


def _tensors_in(values: Iterable[Any], depth: int) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif depth and isinstance(value, list | tuple):
            yield from _tensors_in(value, depth - 1)
        elif depth and isinstance(value, dict):
            yield from _tensors_in(value.values(), depth - 1)


def _is_rounded(value: Tensor) -> bool:
    if type(value) not in PLAIN or isinstance(value, nn.Parameter) or value.dtype not in _NARROW:
        return False
    if why_unreadable(value) or value.layout != torch.strided or not value.numel():
        return False
    return bool(_inexact(value.detach()).any())


def _inexact(value: Tensor) -> Tensor:
    """Where an element needs more binary places than exact numbers have; [..., 2] of a complex one."""
    real = torch.view_as_real(value) if value.is_complex() else value
    scaled = real.double() * _SHORT
    return (scaled != scaled.round()) & scaled.isfinite()


def _moved(value: Tensor, generator: torch.Generator) -> Tensor:
    """A table in double precision with what was rounded moved by a unit in the last place, up or down."""
    real = torch.view_as_real(value) if value.is_complex() else value
    signs = torch.randint(0, 2, real.shape, generator=generator).to(real.device) * 2 - 1
    moved = torch.where(
        _inexact(value), real.double() * (1 + torch.finfo(real.dtype).eps * signs), real.double()
    )
    return torch.view_as_complex(moved) if value.is_complex() else moved


def rounded_tables(
    session: Session, exact: Precision, weights: tuple[Weight, ...] = ()
) -> ProbeResult | None:
    """Whether the gap in float64 is no more than what it does to move the tables of both models by a unit in the last place.

    Tables that both models hold alike make no gap, and are left as they are.

    Args:
        exact: both runs in float64.
        weights: what both runs should use.

    Returns:
        The outcome `rounding`, or None: one model, no such tables, or a gap beyond what they make.
    """
    models = session.a.run.modules, session.b.run.modules
    gaps = exact.compared.gaps
    if models[0] is None or models[1] is None or models[0] is models[1] or not gaps:
        return None
    if not all(g.floating and math.isfinite(g.gap.max_abs) for g in gaps if g.gap.differing):
        return None
    tables = [tables_of(model) for model in models]
    alone = _without_common(tables[0], tables[1]), _without_common(tables[1], tables[0])
    if not any(alone):
        return None
    effect = 0.0
    for run, traced, results, own in zip(
        "ab", (session.a, session.b), (exact.a, exact.b), alone, strict=True
    ):
        for seed in range(RUNS if own else 0):
            generator = torch.Generator().manual_seed(seed)
            promotion = Promotion()
            for table in own:
                promotion.hold(table, _moved(table.detach(), generator))
            with same_weights(weights):
                moved = traced.in_float64(promotion)
            effect = max(effect, _largest(compare_results(session, results, moved, own=run)))
    if exact.gap > MARGIN * effect:
        return None
    text = (
        f"the models keep other tables, rounded when they were made; each moved by one unit in its last place changes the "
        f"result by {effect:.2g} in float64, and the gap there is {exact.gap:.2g}"
    )
    return ProbeResult("tables", "rounding", exact.gap, text)


def _without_common(mine: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """The tables that the other model has not."""
    return [
        t
        for t in mine
        if not any(
            t.shape == o.shape and t.dtype == o.dtype and torch.equal(t, o.to(t.device)) for o in others
        )
    ]


def _largest(compared: ResultComparison) -> float:
    return max((g.gap.max_abs for g in compared.floating), default=0.0)
