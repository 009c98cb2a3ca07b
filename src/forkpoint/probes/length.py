"""The length probe: does what no token's content enters change with a longer row?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.session import Session
from forkpoint.match.align import gap
from forkpoint.match.distance import compare
from forkpoint.probes.bench import Bench
from forkpoint.probes.meetings import Meeting, pair_values
from forkpoint.probes.watchers import Snapshot, Store
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult
from forkpoint.runs.layout import MAIN, Coordinates, Layout
from forkpoint.runs.run import Run

_UNCHANGED = 1e-9
"""Relative to the largest value: change that is rounding."""


def changes_with_length(
    session: Session, root: Meeting, a: Bench, b: Bench, *, real: bool
) -> ProbeResult | None:
    """Show that the origin's value changes where rows are as long as the other run's; None where it does not.

    Args:
        real: the further columns hold tokens; else padding.
    """
    lengths = a.columns_so_far, b.columns_so_far
    if lengths[0] == lengths[1]:
        return None
    short = shorter(a, b)
    before = short.store.snapshots[short.root]
    after = with_columns(short, max(lengths), real=real)
    if after is None:
        return None
    by = changed(before.value, after.value)
    if not by:
        return None
    if a.traced.run.model is not b.traced.run.model and not _explains(session, root, short, after):
        return None
    text = (
        f"with rows of {max(lengths)} columns in place of {min(lengths)}, the value at the origin of run "
        f"{short.side.upper()} changes by {by:.2g}"
    )
    return ProbeResult("length", "changes", by, text)


def shorter(a: Bench, b: Bench) -> Bench:
    """The run whose rows have fewer columns, up to the call of the origin."""
    return a if a.columns_so_far < b.columns_so_far else b


def _explains(session: Session, root: Meeting, short: Bench, after: Snapshot) -> bool:
    """Whether with the other run's length the value is the other run's."""
    one, other = (after, root.b) if short.side == "a" else (root.a, after)
    if one.value.shape != root.a.value.shape and other.value.shape != root.b.value.shape:
        return True
    pairs = pair_values(session, one, other)
    if not len(pairs):
        return True
    return gap(one.value, other.value, pairs).max_abs <= max(root.noise, _UNCHANGED * root.gap.max_abs)


def changed(before: Tensor, after: Tensor) -> float:
    """How far two values are apart where both have elements, or 0 where that is rounding."""
    if before.dim() != after.dim():
        return 0.0
    for d in range(before.dim()):
        size = min(before.shape[d], after.shape[d])
        before, after = before.narrow(d, 0, size), after.narrow(d, 0, size)
    if not before.numel():
        return 0.0
    by = float(compare(before, after).apart.max())
    largest = float((before if before.is_complex() else before.double()).abs().max())
    return by if by > _UNCHANGED * largest else 0.0


def with_columns(bench: Bench, columns: int, *, real: bool) -> Snapshot | None:
    """The origin's value where the rows of its call have so many columns; None if that can't be told.

    It can't where origins before this one come to it: they may change with the length as well, and what is right there has
    another form.
    """
    if not bench.earlier_origins.isdisjoint(bench.store.behind([bench.root])):
        return None
    run, call = bench.traced.run, bench.call
    coordinates = run.layout.calls[call].get(MAIN)
    if coordinates is None or len(coordinates.shape) != 2:
        return None
    more = columns - bench.columns_so_far
    longer = {
        name: _longer(name, value, coordinates.shape, more, real=real)
        for name, value in run.calls[call].items()
    }
    if not real and "attention_mask" not in longer:
        real = True  # nothing says which columns are padding
    entries: list[Mapping[str, Coordinates]] = [
        *run.layout.calls[:call],
        {MAIN: _extended(coordinates, more, real)},
    ]
    other = Run(run.model, [*run.calls[:call], longer], layout=Layout(entries), call=run.call)
    before = bench.store.snapshots[bench.root]
    store = Store(bench.store.limit, lambda op: op.key == before.op.key, bench.store.shelf)
    try:
        bench.traced.instead(other, promotion=Promotion(), watcher=store)
    except Exception as error:  # noqa: BLE001 - a model may refuse rows of this length
        reraise_out_of_memory(error)
        return None
    return next((k for k in store.snapshots.values() if k.place == before.place), None)


def _longer(name: str, value: Any, shape: tuple[int, ...], more: int, *, real: bool) -> Any:
    """An input with so many more columns on the right."""
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    mask = "mask" in name
    if tuple(value.shape[:2]) != shape and not (mask and value.dim() == 2 and value.shape[0] == shape[0]):
        return value
    last = value[:, -1:]
    further = last.expand(-1, more, *[-1] * (value.dim() - 2)).clone()
    if mask:
        further = torch.full_like(further, real)
    elif "position" in name:
        further += torch.arange(1, more + 1, device=value.device).reshape(1, -1, *[1] * (value.dim() - 2))
    return torch.cat([value, further], 1)


def _extended(coordinates: Coordinates, more: int, real: bool) -> Coordinates:
    sample, position = coordinates.sample, coordinates.position
    if not real:
        nothing = torch.full((sample.shape[0], more), -1)
        return Coordinates(torch.cat([sample, nothing], 1), torch.cat([position, nothing], 1))
    last = position.amax(1, keepdim=True)
    of = sample.gather(1, position.argmax(1, keepdim=True)).expand(-1, more)
    further = last + torch.arange(1, more + 1)
    return Coordinates(
        torch.cat([sample, of], 1), torch.cat([position, torch.where(of >= 0, further, -1)], 1)
    )
