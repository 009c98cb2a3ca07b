"""The swap probe: do both runs compute the same where they part, given one layout and the same inputs?

Run B's model, called as run B calls it, is given run A's inputs in run A's layout. What it then has at the origin is
held against run A's value there. It is another only if the models, or what calls them, compute something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.session import Results, Session
from forkpoint.probes.handed import Handed
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.watchers import Snapshot, Store
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.runs.run import Run

_EQUAL = 1e-9
"""Relative to the largest value: what is rounding."""
_MAX_STORED = 1 << 30
"""Bytes of values that are kept."""


@dataclass
class Swap:
    """Run B's model and `call` with run A's inputs and layout, in float64.

    Attributes:
        at: the values that are asked about.
        held: whether the values asked about were made with decisions held, which those of the swapped run are not.
    """

    session: Session
    at: tuple[Meeting, ...] = ()
    held: bool = False

    @property
    def needed(self) -> bool:
        """Whether the two runs have two models, or two ways to call one."""
        a, b = self.session.a.run, self.session.b.run
        return a.model is not b.model or a.call is not b.call

    def same(self, at: Meeting | None) -> bool | None:
        """Whether both compute the same at a value, or in the results where there is none; None where that is not known.

        It is unknown, too, where one model is called in two ways and something else comes out: what its call sets or hands
        over (positions, a mask, a padding's content) may be what the runs are compared for.
        """
        if not self.needed:
            return True
        if self._made is None:
            return None
        value = None if at is None else _value_at(self._made[0], at)
        if self._results_agree if at is None or value is None else _agree(at.a.value, value.value):
            return True
        if self.held or self._one_model:
            return None
        if at is None:
            return False
        return None if value is None or self._is_handed_otherwise(at) else False

    def evidence(self, at: Meeting | None) -> ProbeResult | None:
        """What `same` found, as evidence; None where nothing was asked."""
        if not self.needed:
            return None
        same = self.same(at)
        place = "at the origin" if at is not None else "in the results"
        text = f"given run A's inputs in run A's layout, run B's model has {{}} {place}"
        if same:
            return ProbeResult("swap", "same", 0.0, text.format("run A's value"))
        if same is None:
            return ProbeResult(
                "swap", "unknown", None, f"whether both runs compute the same {place} could not be told"
            )
        return ProbeResult("swap", "differ", None, text.format("another value"))

    # ------------------------------------------------------------------ the swapped run

    def _swapped(self) -> tuple[Store, Results]:
        a, b = self.session.a, self.session.b
        keys = {meeting.b.op.key for meeting in self.at}
        store = Store(_MAX_STORED, lambda op: op.key in keys, self.session.memory.shelf())
        other = Run(b.run.model, a.run.calls, layout=a.run.layout, call=b.run.call)

        def enough() -> bool:
            return bool(store.snapshots and self.at) and all(
                _value_at(store, meeting) is not None for meeting in self.at
            )

        return store, b.instead(other, promotion=Promotion(), watcher=store, enough=enough)

    @cached_property
    def _made(self) -> tuple[Store, Results] | None:
        """The swapped run; None where run B's model does not take run A's inputs."""
        try:
            return self._swapped()
        except Exception as error:  # noqa: BLE001 - another model may not take these inputs
            reraise_out_of_memory(error)
            return None

    @cached_property
    def _results_agree(self) -> bool:
        """Whether the swapped run returns what run A does."""
        made = self._made
        assert made is not None
        mine, theirs = self.session.a.in_float64(Promotion()), made[1]
        return _return_the_same(mine, theirs)

    @cached_property
    def _one_model(self) -> bool:
        """Whether the same modules are behind both runs, so that only how they are called can be another."""
        mine, theirs = (
            {id(root) for root in traced.run.roots} for traced in (self.session.a, self.session.b)
        )
        return bool(mine) and mine == theirs

    def _is_handed_otherwise(self, at: Meeting) -> bool:
        """Whether the models compute the same if run B's is handed what run A's is: positions, or a mask, are what differs."""
        a, b = self.session.a, self.session.b
        if all(traced.run.call is None and isinstance(traced.run.model, nn.Module) for traced in (a, b)):
            return False
        promotion = Promotion()
        handed = Handed(promotion)
        try:
            with handed.taken_down(a.run.roots):
                mine = a.in_float64(promotion)
            with handed.given_to(b.run.roots):
                store, theirs = self._swapped()
        except Exception as error:  # noqa: BLE001 - another model may not take what this one does
            reraise_out_of_memory(error)
            return False
        if at.b.op.is_input:  # seen before the other tensors take its place
            return _return_the_same(mine, theirs)
        value = _value_at(store, at)
        return value is not None and _agree(at.a.value, value.value)


def _value_at(store: Store, at: Meeting) -> Snapshot | None:
    """The swapped run's value where run A has the one asked about."""
    place = at.b.op.key, at.a.event.call, at.a.event.nth
    return next((k for k in store.snapshots.values() if (k.op.key, k.event.call, k.event.nth) == place), None)


def _return_the_same(a: Results, b: Results) -> bool:
    return len(a) == len(b) and all(
        one.keys() == other.keys() and all(_agree(one[name][0], other[name][0]) for name in one)
        for one, other in zip(a, b, strict=True)
    )


def _agree(one: Tensor, other: Tensor) -> bool:
    """Whether two values are the same but for float64's rounding."""
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return bool((one == other).all())
    one, other = (
        value.to(torch.complex128 if value.is_complex() else torch.float64) for value in (one, other)
    )
    if not torch.equal(one.isnan(), other.isnan()):
        return False
    scale = float(one.abs().nan_to_num(0.0, 0.0, 0.0).max())
    gap = torch.where(one == other, 0.0, (one - other).abs()).nan_to_num(0.0)
    return float(gap.max()) <= _EQUAL * scale
