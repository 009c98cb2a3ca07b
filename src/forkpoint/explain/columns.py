"""What goes into a run, column by column: which token stands where, and where there is padding."""

from __future__ import annotations

from collections.abc import Callable

from forkpoint.result import InputRow
from forkpoint.runs.layout import MAIN
from forkpoint.runs.run import Run

MAX_COLUMNS = 4096
"""Columns of a run that are written down: the first."""


def input_rows(run: Run, text: Callable[[int, int], str | None]) -> tuple[InputRow, ...]:
    """The rows of each forward call, until there are enough columns.

    Args:
        run: its layout says what stands where.
        text: the text of the token at (sample, position), if known.
    """
    rows: list[InputRow] = []
    room = MAX_COLUMNS
    for call, entry in enumerate(run.layout.calls):
        coordinates = entry.get(MAIN)
        if coordinates is None or not coordinates.sample.numel():
            continue
        width = coordinates.shape[-1] if coordinates.shape else 1
        samples, positions = (t.reshape(-1, width) for t in (coordinates.sample, coordinates.position))
        for row, (sample, position) in enumerate(zip(samples, positions, strict=True)):
            if room <= 0:
                return tuple(rows)
            cells = zip(sample[:room].tolist(), position[:room].tolist(), strict=True)
            columns = tuple(
                (run.layout.name(s), p, text(s, p)) if s >= 0 and p >= 0 else (None, None, None)
                for s, p in cells
            )
            rows.append(InputRow(call, row, width, columns))
            room -= len(columns)
    return tuple(rows)
