"""The probe of earlier calls: does a call on other rows, made before, change what a later one gives?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.session import Session
from forkpoint.match.distance import compare
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.runs.layout import Coordinates, Layout
from forkpoint.runs.returned import results_of
from forkpoint.runs.run import Run

_UNCHANGED = 1e-9
"""Relative to the largest value: change that is float64's rounding."""


def changed_by_earlier_calls(session: Session) -> ProbeResult | None:
    """Show that calls on other rows change a later call, which without them gives what the other run does; else None."""
    sides = (("B", session.b.run, session.a.run), ("A", session.a.run, session.b.run))
    for name, run, other in sides:
        own = {pair["AB".index(name)] for pair in session.shared.pairing.pairs}
        first = _calls_before(run, own)
        if not first:
            continue
        alone = Run(
            run.model,
            run.calls[first:],
            layout=Layout(run.layout.calls[first:], run.layout.names),
            call=run.call,
        )
        try:
            after, without, wanted = _last(run), _last(alone), _last(other)
        except Exception as error:  # noqa: BLE001 - a model may refuse float64
            reraise_out_of_memory(error)
            return None
        by, left = _apart(after, without), _apart(without, wanted)
        if not by or left is None or left > by / 2:
            continue
        text = (
            f"without the calls on other rows before it, the last call of run {name} gives something else, by {by:.2g} in "
            f"float64, and what the other run gives to within {left:.2g}: what they left in the model changes it"
        )
        return ProbeResult("earlier", "change", by, text)
    return None


def _calls_before(run: Run, own: set[int]) -> int:
    """How many calls come first that hold no sample of the later ones, which hold those that both runs have."""
    samples = [_samples(entry) for entry in run.layout.calls]
    first = next((index for index, held in enumerate(samples) if held & own), 0)
    before = set[int]().union(*samples[:first])
    return 0 if before & set[int]().union(*samples[first:]) else first


def _samples(entry: Mapping[str, Coordinates]) -> set[int]:
    return {int(s) for c in entry.values() for s in c.sample[c.valid].unique()}


def _last(run: Run) -> dict[str, Tensor]:
    """What the last call of a run gives, every operation done in float64."""
    promotion = Promotion()
    output = run.execute(around=lambda: promotion)[-1]
    results = {name: promotion.value(value) for name, value in results_of(output).items()}
    return {name: value for name, value in results.items() if value.is_floating_point()}


def _apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float | None:
    """How far two outputs of one form are apart, 0 within float64's rounding; None where they have another form."""
    names = [name for name in a if name in b and a[name].shape == b[name].shape and a[name].numel()]
    if not names:
        return None
    farthest = 0.0
    for name in names:
        by = float(compare(a[name], b[name]).apart.max())
        largest = float(torch.where(a[name].isfinite(), a[name], 0).abs().max())
        farthest = max(farthest, by if by > _UNCHANGED * largest else 0.0)
    return farthest
