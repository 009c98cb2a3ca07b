"""What goes into a run, column by column: which token stands where, and where there is padding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from forkpoint.result import InputRow
from forkpoint.runs.layout import MAIN
from forkpoint.runs.run import Run
from forkpoint.support.readable import sizes_of

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


def input_digest(run: Run) -> str:
    """The first 12 hex digits of a SHA-256 of every tensor that goes in, with its name and shape; empty if there is none.

    Tensors that don't lie in memory as they look (sparse, nested, meta) count by their name and shape alone.
    """
    digest = hashlib.sha256()
    tensors = [
        (name, value) for call in run.calls for name, value in call.items() if isinstance(value, Tensor)
    ]
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {sizes_of(value)} ".encode())
        if (
            value.layout is torch.strided
            and type(value) in (Tensor, torch.nn.Parameter)
            and not (value.is_meta or value.is_nested)
        ):
            flat = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12] if tensors else ""
