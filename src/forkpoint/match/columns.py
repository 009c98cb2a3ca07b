"""Where a run's tokens are in a value without labels, by the sizes of its dimensions alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from forkpoint.capture.labels import Label
from forkpoint.capture.trace import Op, Trace
from forkpoint.match.numbering import Ints
from forkpoint.runs.layout import DECODER, MAIN

Maker = tuple[Op, int]
"""The op that made a value, and the forward call in which it did."""


class Line(NamedTuple):
    """Where a sample lies along one dimension of two values.

    Attributes:
        positions: of its tokens, for which there are indices; None where the dimension holds one row for the sample.
        a, b: [positions], indices along the dimension.
    """

    positions: list[int] | None
    a: Ints
    b: Ints


def along_both(columns_a: dict[int, int], columns_b: dict[int, int]) -> Line:
    """Where the tokens of a sample are that both runs have, from where each run has them by position."""
    positions = sorted(columns_a.keys() & columns_b.keys())
    return Line(
        positions,
        np.asarray([columns_a[p] for p in positions], dtype=np.int64),
        np.asarray([columns_b[p] for p in positions], dtype=np.int64),
    )


class Columns:
    """Where one run's tokens are along a dimension of a value: what is as long as the call's tokens may follow them."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._columns: dict[tuple[int, int, bool], dict[int, dict[int, int]]] = {}

    def of(self, maker: Maker, size: int) -> dict[int, dict[int, int]]:
        """For each sample, by position, the index of its tokens along a dimension of that size.

        Where both streams of a call have as many columns, the decoder's own modules speak of its own.
        """
        op, call = maker
        decoder = "decoder" in op.module
        key = (call, size, decoder)
        if key not in self._columns:
            self._columns[key] = self._look(call, size, decoder=decoder)
        return self._columns[key]

    def _look(self, call: int, size: int, *, decoder: bool) -> dict[int, dict[int, int]]:
        table = self.trace.table
        columns: dict[int, dict[int, int]] = {}
        for stream in (DECODER, MAIN) if decoder else (MAIN, DECODER):
            for grid in (table.slots(call, stream), table.slots_so_far(call, stream)):
                if not columns and grid is not None and grid.ndim == 2 and grid.shape[-1] == size:
                    for row, column in np.ndindex(*grid.shape):
                        token = table.tokens[int(grid[row, column])]
                        if token is not None:
                            columns.setdefault(token[1], {})[token[2]] = column
        return columns

    def row(self, call: int, size: int, sample: int) -> int | None:
        """The sample's row, in a first dimension that is as long as the call has rows."""
        grid = self.trace.table.slots(call, MAIN)
        if grid is None or grid.shape[0] != size or (grid.ndim != 2 and not self.trace.table.are_rows(grid)):
            return None
        tokens = self.trace.table.tokens
        for row in range(size):
            if any(
                (t := tokens[item]) is not None and t[1] == sample for item in grid[row].reshape(-1).tolist()
            ):
                return row
        return None

    def row_if_any(self, call: int, size: int, sample: int) -> int | None:
        """The same; the one row that there is for all samples, where the dimension has no other."""
        return 0 if size == 1 else self.row(call, size, sample)

    def token_at(
        self, maker: Maker, label: Label | None, shape: tuple[int, ...], index: tuple[int, ...]
    ) -> tuple[int, int] | None:
        """The token (sample, position) that an element of a table belongs to, by the table's sizes.

        A table without labels, [rows, columns, ...], holds each row's tokens. One whose keys alone are known, [rows,
        heads, queries, keys], belongs to the queries.
        """
        op, call = maker
        if label is not None and (
            label.k is not None or len(shape) < 4 or label.q.shape[-1] == 1 or label.q.shape[-2] > 1
        ):
            return None
        table = self.trace.table
        for stream in (DECODER, MAIN) if "decoder" in op.module else (MAIN, DECODER):
            grid = table.slots(call, stream)
            if grid is None or grid.ndim != 2 or not shape or shape[0] not in (grid.shape[0], 1):
                continue
            dims = range(1, len(shape)) if label is None else [len(shape) - 2]
            d = next((d for d in dims if shape[d] == grid.shape[1]), None)
            if d is not None and (shape[0] > 1 or grid.shape[0] == 1):
                token = table.tokens[int(grid[index[0], index[d]])]
                return None if token is None else token[1:]
        return None

    def any_token_at(self, maker: Maker, lines: list[tuple[int, int]]) -> tuple[int, int] | None:
        """A token in the column at an index along the first of some dimensions (size, index) that has tokens."""
        for size, index in lines:
            for sample, by_position in self.of(maker, size).items():
                for position, column in by_position.items():
                    if column == index:
                        return sample, position
        return None
