"""Inputs that say where tokens are: other numbers in other layouts, for the same tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from forkpoint.explain.session import Session
from forkpoint.runs.layout import MAIN, Coordinates
from forkpoint.runs.run import Run

Places = dict[int, list[int]]
"""By sample, the positions of the tokens whose columns are given."""


def name_the_same_tokens(session: Session, name: str) -> bool:
    """Whether an input of whole numbers, read as columns, names the same tokens of each sample in both runs.

    Each row may have columns of its own (`[rows]` or `[rows, columns]`), or all have the same.
    """
    a, b = session.a.run, session.b.run
    if len(a.calls) != len(b.calls):
        return False
    return any(
        all(
            _same(session, _places(a, call, name, read), _places(b, call, name, read))
            for call in range(len(a.calls))
        )
        for read in (_of_each_row, _of_all_rows)
    )


def _same(session: Session, a: Places | None, b: Places | None) -> bool:
    if not a or not b:
        return False
    return all(
        a.get(mine) is not None and a.get(mine) == b.get(theirs) for mine, theirs in session.pairing.pairs
    )


def _places(run: Run, call: int, name: str, read: Callable[[Tensor, int], Tensor | None]) -> Places | None:
    """The tokens that one call's columns name; None where they are none, or padding's."""
    value, coordinates = run.calls[call].get(name), run.layout.calls[call].get(MAIN)
    if (
        not isinstance(value, Tensor)
        or not _are_columns(value)
        or coordinates is None
        or coordinates.sample.dim() != 2
    ):
        return None
    rows, columns = coordinates.sample.shape
    given = read(value.cpu(), rows)
    if given is None or bool(((given < -columns) | (given >= columns)).any()):
        return None
    return _named(given % columns, coordinates)


def _named(given: Tensor, coordinates: Coordinates) -> Places | None:
    sample, position = (numbers.gather(1, given) for numbers in (coordinates.sample, coordinates.position))
    if bool((sample < 0).any()) or bool((sample != sample[:, :1]).any()):
        return None
    return {int(of[0]): at.tolist() for of, at in zip(sample, position, strict=True)}


def _are_columns(value: Tensor) -> bool:
    whole = not (value.is_floating_point() or value.is_complex())
    return whole and value.dtype != torch.bool and 0 < value.dim() <= 2 and value.numel() > 0


def _of_each_row(value: Tensor, rows: int) -> Tensor | None:
    return value.long().reshape(rows, -1) if len(value) == rows else None


def _of_all_rows(value: Tensor, rows: int) -> Tensor | None:
    return value.long().expand(rows, -1) if value.dim() == 1 else None
