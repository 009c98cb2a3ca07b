"""The computed probe: is a parameter of one model what the other computes anew in each call, rounded?

Weight norm, low-rank updates and other parametrisations make a weight of their own parameters. Once it is kept in their
place, it is rounded to the dtype of the parameters, and float64 can't give back what it lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from forkpoint.capture.recorder import CopiedCall
from forkpoint.explain.locate import fetch_ops, named_inputs
from forkpoint.explain.session import Session, Traced
from forkpoint.match import Joined
from forkpoint.match.distance import unit_at
from forkpoint.probes.inputs import Alone, Inputs, Weight
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult

MAX_STORED = 1 << 31
"""Bytes of computed weights; models that have more are not asked."""
_TIMES, _ULPS = 2.0, 1.0
"""How many times farther than the other model's own, and by how many units in the last place more, a weight may be rounded."""


@dataclass(frozen=True)
class Computed:
    """What `computed` found.

    Attributes:
        weights: the parameters, with what the other model computes in float64.
        names: of these.
        ulps: how many units in its last place the farthest of them is from that.
    """

    weights: tuple[Weight, ...]
    names: tuple[str, ...]
    ulps: float

    def evidence(self, before: float, after: float) -> ProbeResult:
        """What becomes of the gap in float64 with the computed weights in both runs."""
        text = (
            f"{len(self.weights)} parameters of one model are what the other computes, rounded to within "
            f"{self.ulps:.2g} units in the last place, {self.names[0]} first; with what it computes in both, the gap in float64 "
            f"falls from {before:.2g} to {after:.2g}"
        )
        return ProbeResult("computed", "rounding", after, text)


def computed(session: Session, given: Inputs) -> Computed | None:
    """Find parameters of one model that, but for rounding, are what the other computes in their place.

    Asked of parameters that one model alone has. Where an op uses one, both runs are looked at in float64, and the other as
    it is: what it computes is rounded, too, which tells how far rounding takes it.

    Returns:
        None where there are none.
    """
    weights: list[Weight] = []
    titles: list[str] = []
    ulps = 0.0
    for side, mine, other in (("a", session.a, session.b), ("b", session.b, session.a)):
        alone = _by_full_name(mine, [one for one in given.alone if one.side == side])
        paths = {one.path for one in alone.values()}
        rows = [
            row for row in session.join.rows if _is_met(row) and session.a.trace.plain(row.op.module) in paths
        ]
        if not rows or sum(8 * _parameter(one).numel() for one in alone.values()) > MAX_STORED:
            continue
        own_calls, exact = (_calls(session, traced, rows, Promotion()) for traced in (mine, other))
        for here, there, as_it_is in zip(own_calls, exact, _calls(session, other, rows, None), strict=True):
            for full_name, value, rounded in _in_place(here, there, as_it_is):
                one = alone.get(full_name)
                if one is None:
                    continue
                apart, own = _ulps(_parameter(one), value), _ulps(rounded, value)
                if math.isfinite(apart) and apart <= _TIMES * own + _ULPS:
                    del alone[full_name]
                    ulps = max(ulps, apart)
                    weights.append(Weight((one.module,), one.name, value, "_parameters"))
                    titles.append(one.title)
    return Computed(tuple(weights), tuple(titles), ulps) if weights else None


def _by_full_name(traced: Traced, alone: list[Alone]) -> dict[str, Alone]:
    """Parameters by the names that the run's own calls have for them."""
    by_id = {id(one.module._parameters[one.name]): one for one in alone}
    model = traced.run.modules
    named = [] if model is None else model.named_parameters(remove_duplicate=False)
    return {name: by_id[id(value)] for name, value in named if id(value) in by_id}


def _parameter(one: Alone) -> Tensor:
    parameter = one.module._parameters[one.name]
    assert parameter is not None
    return parameter.detach()


def _is_met(row: Joined) -> bool:
    """Whether a row is a function's that both runs called."""
    return not row.op.is_boundary and row.first_a is not None and row.first_b is not None


def _calls(
    session: Session, traced: Traced, rows: list[Joined], promotion: Promotion | None
) -> list[CopiedCall | None]:
    """The first call of some ops of a run, in float64 or as it is."""
    events = [row.first_a if traced is session.a else row.first_b for row in rows]
    wanted = [(traced.trace.ops[event.op], event) for event in events if event is not None]
    return fetch_ops(traced, wanted, promotion=promotion)


def _in_place(
    here: CopiedCall | None, there: CopiedCall | None, as_it_is: CopiedCall | None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The parameters that go into a call, each with what the other run computes in its place, in float64 and as it is."""
    if here is None or there is None or as_it_is is None:
        return
    exact, rounded = named_inputs(there), named_inputs(as_it_is)
    for name, value in named_inputs(here).items():
        full_name, other = here.owned.get(id(value)), exact.get(name)
        if full_name is None or other is None or id(other) in there.owned or name not in rounded:
            continue
        if there.input_labels.get(id(other)) is None:  # made of no token: of weights alone
            yield full_name, other, rounded[name]


def _ulps(weight: Tensor, exact: Tensor) -> float:
    """How many units in its last place a weight is from a value at most; infinite where it can't be that value, rounded."""
    if exact.dtype != torch.float64 or exact.shape != weight.shape or not weight.numel():
        return math.inf
    if not weight.dtype.is_floating_point or weight.dtype == torch.float64:
        return math.inf
    largest = float(((weight.detach().double() - exact).abs() / unit_at(exact.abs(), weight.dtype)).max())
    return largest if math.isfinite(largest) else math.inf
