"""The swap probe: do the two runs' models compute the same at the origin, given the same inputs?"""

from __future__ import annotations

import torch

from forkpoint.probes.bench import Bench
from forkpoint.probes.meetings import Meeting
from forkpoint.probes.watchers import Store
from forkpoint.promotion import Promotion
from forkpoint.run import Run

_EQUAL = 1e-9
"""Relative to the largest value: what is rounding."""


def same_function(root: Meeting, a: Bench, b: Bench) -> bool | None:
    """Whether run B's model, given run A's inputs, has run A's value at the origin; None where it can't be asked."""
    if a.traced.run.model is b.traced.run.model:
        return True
    one, kept, key = a.traced.run, root.a, root.b.op.key
    other = Run(b.traced.run.model, one.calls, layout=one.layout, call=b.traced.run.call)
    found = Store(b.store.limit, lambda op: op.key == key, b.store.shelf)
    try:
        b.traced.instead(other, promotion=Promotion(), watcher=found)
    except Exception:  # noqa: BLE001 - another model may not take these inputs
        return None
    where = kept.event.call, kept.event.nth
    again = next((k for k in found.kept.values() if (k.event.call, k.event.nth) == where), None)
    if again is None:
        return None
    value = again.value
    if value.shape != kept.value.shape:
        return False
    if kept.numeric and not torch.equal(value.isnan(), kept.value.isnan()):
        return False
    gap = (value.double() - kept.value.double()).abs() if kept.numeric else (value != kept.value).double()
    scale = float(kept.value.double().abs().max()) if kept.value.numel() and kept.numeric else 0.0
    return not kept.value.numel() or float(gap.nan_to_num(0.0, 0.0, 0.0).max()) <= _EQUAL * scale
