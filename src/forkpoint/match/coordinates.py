"""Compares two values that have a digest for each coordinate, where the op ran once in each run."""

from __future__ import annotations

import numpy as np

from forkpoint.capture.trace import Cells
from forkpoint.match.joined import Difference, Pass, Tally
from forkpoint.match.numbering import Ints, Shared


class Alignment:
    """Pairs the cells of A and B that stand for the same coordinate. Values laid out alike share the answer."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self._aligned: dict[tuple[int, int], tuple[Ints, Ints, Ints]] = {}

    def of(self, a: Cells, b: Cells) -> tuple[Ints, Ints, Ints]:
        """Indices of the cells of A and B that stand for the same coordinate, and its number; by index in A."""
        aligned = self._aligned.get((id(a), id(b)))
        if aligned is None:
            numbers_a, numbers_b = self.shared.a[a.ids], self.shared.b[b.ids]
            common, index_a, index_b = np.intersect1d(numbers_a, numbers_b, return_indices=True)
            keep = common >= 0
            order = np.argsort(index_a[keep], kind="stable")
            aligned = (index_a[keep][order], index_b[keep][order], common[keep][order])
            self._aligned[id(a), id(b)] = aligned
        return aligned

    def difference(self, a: Pass, b: Pass, number: int) -> Difference:
        """The record that two passes differ at the coordinate with a shared number."""
        return Difference(a.index, b.index, number, *self.shared.coordinate(number))


def compare_once(a: Pass, b: Pass, alignment: Alignment, tally: Tally) -> None:
    """Compare two values at each coordinate that both have."""
    index_a, index_b, numbers = alignment.of(a.cells, b.cells)
    if not len(numbers):
        _compare_samples(a, b, alignment.shared, tally)
        return
    one_width = isinstance(a.held.width, int) and isinstance(b.held.width, int)
    if not one_width or a.held.width != b.held.width:
        widths_a, widths_b = a.widths[index_a], b.widths[index_b]
        fits = widths_a == widths_b
        if not fits.all():
            at = int(np.argmin(fits))
            sizes = f"{widths_a[at]} elements a coordinate in A, {widths_b[at]} in B"
            tally.skip(int(np.count_nonzero(~fits)), sizes)
            index_a, index_b, numbers = index_a[fits], index_b[fits], numbers[fits]
    wrong = a.digests[index_a] != b.digests[index_b]
    tally.compared += len(numbers)
    differing = int(np.count_nonzero(wrong))
    if differing:
        tally.differing += differing
        tally.differ(alignment.difference(a, b, int(numbers[np.argmax(wrong)])))


def _compare_samples(a: Pass, b: Pass, shared: Shared, tally: Tally) -> None:
    """Compare values that hold one vector for each sample by the samples, whichever column the vector was taken from."""
    if max(len(a.shape), len(b.shape)) > 2:
        return  # a state, which goes on past the sample's tokens, not a vector taken for the sample
    rows_a = shared.stands_for_a[a.cells.ids]
    rows_b = shared.stands_for_b[b.cells.ids]
    once = all(len(np.unique(rows[rows >= 0])) == np.count_nonzero(rows >= 0) for rows in (rows_a, rows_b))
    samples, index_a, index_b = np.intersect1d(rows_a, rows_b, return_indices=True)
    keep = samples >= 0
    if not once or not keep.any():
        return
    keep &= a.widths[index_a] == b.widths[index_b]
    samples, index_a, index_b = samples[keep], index_a[keep], index_b[keep]
    wrong = a.digests[index_a] != b.digests[index_b]
    tally.compared += len(samples)
    if wrong.any():
        tally.differing += int(np.count_nonzero(wrong))
        tally.differ(Difference(a.index, b.index, -1, int(samples[np.argmax(wrong)]), None))


def count_all(a: list[Pass], b: list[Pass], alignment: Alignment, tally: Tally) -> None:
    """Count all coordinates as different: digests of two dtypes can't be compared, and the values aren't at hand."""
    for pass_a, pass_b in zip(a, b, strict=False):
        _, _, numbers = alignment.of(pass_a.cells, pass_b.cells)
        if not len(numbers):
            tally.skip(1, "the runs share no coordinate of it")
            continue
        tally.compared += len(numbers)
        tally.differing += len(numbers)
        tally.differ(alignment.difference(pass_a, pass_b, int(numbers[0])))
