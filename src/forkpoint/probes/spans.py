"""The spans probe: which tokens share a scale: those of one row, those of other rows, or all?

One number in a run of one row may be a scale for the whole tensor or one for each row; its shape does
not tell. So others are made loud, those of the token's own row and those of other rows by turns, and the
token is looked at after it was scaled and rounded. Where the run has one row, it is made with another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.labels import Labels
from forkpoint.errors import reraise_out_of_memory
from forkpoint.probes.bench import Bench
from forkpoint.probes.resampled import LOUD, Resampled
from forkpoint.probes.watchers import Patched, Place, Snapshot, Store
from forkpoint.promotion import Promotion
from forkpoint.runs.layout import MAIN, Coordinates, Layout
from forkpoint.runs.run import Run
from forkpoint.support.arrays import tensor_of

_CALL = frozenset({0})
"""The shared number of what belongs to no token."""


@dataclass(frozen=True)
class Spans:
    """Who moves a token at an op, as loud as they are made: True or False, None where that could not be asked.

    Attributes:
        rows: those of other rows.
        columns: others of its own row.
    """

    rows: bool | None
    columns: bool | None


def spans(bench: Bench, at: int) -> Spans:
    """Whose values move a token at an event behind the origin.

    Args:
        bench: a run at the origin.
        at: its event at which the token is looked at.
    """
    here = bench.at(at)
    places = {
        bench.store.snapshots[event].place
        for event in bench.before & bench.content
        if event in bench.store.snapshots
    }
    token = _a_token(here)
    if token is None and not here.whole:
        return Spans(None, None)
    if token is None:  # tokens can't be told apart there: others of a row would be seen themselves
        rows = here.slots & (here.columns >= 0) & ~here.row_mates(_CALL) & ~here.earlier
        return Spans(_moves(here, rows, places, _CALL) if rows.any() else None, None)
    row = here.row_mates(token) & (here.columns >= 0) & ~here.earlier
    rows = here.slots & (here.columns >= 0) & ~row & ~here.earlier
    columns = row & ~here.is_shared(token)
    by_columns = _moves(here, columns, places, token) if columns.any() else None
    by_rows = _moves(here, rows, places, token) if rows.any() else _another_row_moves(here, places)
    return Spans(by_rows, by_columns)


def _a_token(here: Bench) -> frozenset[int] | None:
    """The first token that both runs have at the op."""
    of = here.session.shared.coordinate
    tokens = [
        number
        for number in here.numbers_of(here.store.snapshots[here.root])
        if number > 0 and of(number)[1] is not None
    ]
    return frozenset(tokens[:1]) or None


def _moves(here: Bench, others: np.ndarray, places: set[Place], token: frozenset[int]) -> bool | None:
    watcher = Resampled(places, others, LOUD)
    again = here.again(watcher)
    if again is None or not watcher.replaced:
        return None
    return bool(here.compare(here.store.snapshots[here.root], again).numbers & token)


def _another_row_moves(here: Bench, places: set[Place]) -> bool | None:
    """Whether a second row, made loud, moves the first at the op; None where the run can't be made with one."""
    run = here.traced.run
    coordinates = run.layout.calls[0].get(MAIN)
    if here.call or coordinates is None or coordinates.sample.dim() != 2 or len(coordinates.sample) != 1:
        return None
    layout = Layout([{MAIN: _twice(coordinates)}])
    other = Run(run.model, [{n: _both(v) for n, v in run.calls[0].items()}], layout=layout, call=run.call)
    table = Labels.of(other.layout).table
    second = np.asarray([row == 1 for row, _, _ in table.places])
    plain = _made(here, other, Resampled(places, np.zeros_like(second), LOUD))
    watcher = Resampled(places, second, LOUD)
    loud = _made(here, other, watcher)
    if plain is None or loud is None or plain.label is None or not watcher.replaced:
        return None
    if plain.value.shape != loud.value.shape:
        return None
    first = np.asarray([row == 0 for row, _, _ in table.places] + [False])
    mine = tensor_of(np.broadcast_to(first[plain.label.q], tuple(plain.value.shape)).copy())
    return bool((plain.value[mine] != loud.value[mine]).any()) if mine.any() else None


def _made(here: Bench, run: Run, watcher: Resampled) -> Snapshot | None:
    before = here.store.snapshots[here.root]
    store = Store(here.store.limit, lambda op: op.key == before.op.key, here.store.shelf)
    try:
        here.traced.instead(run, promotion=Promotion(), watcher=Patched(watcher, store))
    except Exception as error:  # noqa: BLE001 - a model may refuse a second row
        reraise_out_of_memory(error)
        return None
    return next((k for k in store.snapshots.values() if k.place == before.place), None)


def _both(value: Any) -> Any:
    """An input of one row, twice."""
    return (
        torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() and len(value) == 1 else value
    )


def _twice(coordinates: Coordinates) -> Coordinates:
    sample, position = coordinates.sample, coordinates.position
    other = torch.where(sample >= 0, sample + int(sample.max()) + 1, -1)
    return Coordinates(torch.cat([sample, other]), torch.cat([position, position]))
