"""Guesses where a run's tokens are in a value without labels: a dimension as long as the call's tokens may follow them."""

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
    """Which indices along one dimension of two values belong to a sample, in the same order for both.

    Attributes:
        positions: the token positions that the indices stand for; None where the indices don't stand for tokens.
        a, b: indices along the dimension, in A's value and in B's.
    """

    positions: list[int] | None
    a: Ints
    b: Ints


def along_both(columns_a: dict[int, int], columns_b: dict[int, int]) -> Line:
    """The line of the tokens that both runs have, given for each run the index of a sample's tokens by position."""
    positions = sorted(columns_a.keys() & columns_b.keys())
    return Line(
        positions,
        np.asarray([columns_a[p] for p in positions], dtype=np.int64),
        np.asarray([columns_b[p] for p in positions], dtype=np.int64),
    )


class Columns:
    """One run's tokens along dimensions of values without labels, guessed from the dimensions' sizes.

    Args:
        trace: of the run.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._columns: dict[tuple[int, int, bool], dict[int, dict[int, int]]] = {}

    def of(self, maker: Maker, size: int) -> dict[int, dict[int, int]]:
        """For each sample, by position, the index of its tokens along a dimension of a size; empty if no stream has that size.

        Where both streams of a call have as many columns, values of the decoder's modules are taken to follow the decoder's.
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
        """The index of a sample along a first dimension of a size; None unless the call has as many rows."""
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
        """As `row`, but 0 where the dimension has size 1, its one row being all samples'."""
        return 0 if size == 1 else self.row(call, size, sample)

    def token_at(
        self, maker: Maker, label: Label | None, shape: tuple[int, ...], index: tuple[int, ...]
    ) -> tuple[int, int] | None:
        """The token (sample, position) that an element of a table belongs to, by the table's sizes; None if they don't tell.

        A table without a label, [rows, columns, ...], is taken to hold each row's tokens; of one whose label has the keys
        alone, [rows, heads, queries, keys], each row of the table is a query's.
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
        """A token (sample, position) at the index along the first of some dimensions that follows tokens.

        Args:
            maker: of the value.
            lines: (size, index) of each dimension.
        """
        for size, index in lines:
            for sample, by_position in self.of(maker, size).items():
                for position, column in by_position.items():
                    if column == index:
                        return sample, position
        return None
