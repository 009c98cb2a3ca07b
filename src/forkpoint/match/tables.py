"""Compares values without tokens whose dimensions may be as long as the tokens (rotary tables, masks)."""

from __future__ import annotations

import numpy as np

from forkpoint.match.columns import Columns, Line, along_both
from forkpoint.match.coordinates import Alignment
from forkpoint.match.grids import compare_grids, has_grid
from forkpoint.match.joined import Difference, Pass, Tally
from forkpoint.match.numbering import Ints


class TableComparison:
    """Compares such values as wholes where their shapes allow it, else at the indices where each run's layout has the tokens.

    Args:
        a, b: where the tokens are along dimensions of values of A and B.
        same_layout: whether both runs have the same tokens in the same places.
    """

    def __init__(self, a: Columns, b: Columns, alignment: Alignment, *, same_layout: bool) -> None:
        self.a, self.b, self.alignment, self.same_layout = a, b, alignment, same_layout
        self.shared = alignment.shared

    def compare(self, a: list[Pass], b: list[Pass], tally: Tally) -> None:
        """Compare the passes of an op: those of a call with the same of that call, if there are as many calls."""
        as_many = len(self.a.trace.lengths) == len(self.b.trace.lengths)

        def which(one: Pass) -> tuple[int, int]:
            return one.event.nth, one.call if as_many else 0

        there: dict[tuple[int, int], list[Pass]] = {}
        for pass_b in b:
            there.setdefault(which(pass_b), []).append(pass_b)
        for pass_a in a:
            partners = there.get(which(pass_a), [])
            if not partners:
                tally.skip(1, "a pass that the other run does not make")
            for pass_b in partners:
                self._compare_two(pass_a, pass_b, tally)

    def _compare_two(self, a: Pass, b: Pass, tally: Tally) -> None:
        both_have_cells = len(a.cells.ids) > 0 and len(b.cells.ids) > 0
        one_has_tokens = both_have_cells and a.is_whole != b.is_whole
        if not one_has_tokens and (a.shape == b.shape or self._same_slices(a, b)):
            self._compare_whole_or_lined_up(a, b, tally)
        elif not (has_grid(a) and has_grid(b)):
            shapes = f"shape {list(a.shape)} in A, {list(b.shape)} in B"
            tally.skip(1, f"{shapes}, and no token dimension known")
        elif a.cells.row_dims or b.cells.row_dims:
            compare_grids(a, b, self.a, self.b, self.shared.pairing.pairs, tally)
        else:
            self._compare_lined_up(a, b, tally)

    def _compare_whole_or_lined_up(self, a: Pass, b: Pass, tally: Tally) -> None:
        """Compare whole slices; where these differ, and the layouts do, too, try whether they are equal token by token."""
        whole = Tally()
        self._compare_whole(a, b, whole)
        if whole.differing and not self.same_layout and has_grid(a) and has_grid(b):
            lined_up = Tally()
            if a.cells.row_dims and a.cells.open_dims and b.cells.open_dims:
                compare_grids(a, b, self.a, self.b, self.shared.pairing.pairs, lined_up)
            if lined_up.compared and not lined_up.differing and not lined_up.left_out:
                whole = lined_up
        tally.compared += whole.compared
        tally.differing += whole.differing
        if whole.earliest is not None:
            tally.differ(whole.earliest)

    def _compare_whole(self, a: Pass, b: Pass, tally: Tally) -> None:
        index_a, index_b, numbers = self.alignment.of(a.cells, b.cells)
        wrong = a.flat[index_a] != b.flat[index_b]
        tally.compared += len(numbers)
        if wrong.any():
            at = int(np.argmax(wrong))
            tally.differing += int(np.count_nonzero(wrong))
            tally.differ(self._difference_inside(a, b, int(index_a[at]), int(index_b[at]), int(numbers[at])))

    def _difference_inside(self, a: Pass, b: Pass, cell_a: int, cell_b: int, number: int) -> Difference:
        """The difference of two cells, with the token named to which the first differing index along open dimensions belongs."""
        difference = self.alignment.difference(a, b, number)
        if a.cells.kind != "open" or a.digests.shape != b.digests.shape or difference.position is not None:
            return difference
        wrong = np.argwhere(a.digests[cell_a] != b.digests[cell_b])
        if not len(wrong):
            return difference
        maker, index = (a.op, a.call), [0] * len(a.shape)
        for d, i in zip(a.cells.open_dims, wrong[0].tolist(), strict=True):
            index[d] = i
        token = self.a.token_at(maker, None, a.shape, tuple(index)) or self.a.any_token_at(
            maker, [(a.shape[d], index[d]) for d in a.cells.open_dims]
        )
        if token is not None:
            difference.sample, difference.position = token
        return difference

    # ------------------------------------------------------------------ lined up by size

    def _compare_lined_up(self, a: Pass, b: Pass, tally: Tally) -> None:
        """Compare values of different shapes, at the tokens that both runs have along the dimensions whose sizes differ."""
        other_sizes = [
            d for d in range(max(len(a.shape), len(b.shape)))
            if d >= len(a.shape) or d >= len(b.shape) or a.shape[d] != b.shape[d]
        ]  # fmt: skip
        if len(a.shape) != len(b.shape) or any(
            (d not in a.cells.open_dims and a.shape[d] != 1) or (d not in b.cells.open_dims and b.shape[d] != 1)
            for d in other_sizes
        ):  # fmt: skip
            tally.skip(1, f"shape {list(a.shape)} in A, {list(b.shape)} in B")
            return
        index_a, index_b, numbers = self.alignment.of(a.cells, b.cells)
        dims = sorted({*a.cells.open_dims, *b.cells.open_dims})
        for row, number in enumerate(numbers.tolist()):
            sample, _ = self.shared.coordinate(number)
            digests_a = a.digests[index_a[row]].reshape(_sizes(a, dims))
            digests_b = b.digests[index_b[row]].reshape(_sizes(b, dims))
            for samples in self.shared.pairing.pairs:
                if sample is None or samples[0] == sample:
                    lines = self._lines(a, b, dims, other_sizes, samples)
                    if isinstance(lines, str):
                        tally.skip(1, lines)
                        break
                    _compare_lines(a, b, digests_a, digests_b, lines, number, samples[0], tally)

    def _lines(
        self, a: Pass, b: Pass, dims: list[int], other_sizes: list[int], samples: tuple[int, int]
    ) -> list[Line] | str:
        """The line of a pair of samples along each dimension, or the reason why there is none."""
        sample_a, sample_b = samples
        row_a = self.a.row_if_any(a.call, a.shape[0], sample_a) if len(dims) > 1 else None
        row_b = self.b.row_if_any(b.call, b.shape[0], sample_b) if len(dims) > 1 else None
        lines: list[Line] = []
        for d, size_a, size_b in zip(dims, _sizes(a, dims), _sizes(b, dims), strict=True):
            if d == 0 and row_a is not None and row_b is not None:
                if (size_a, size_b) != (a.shape[0], b.shape[0]):
                    return "the rows are told apart in one run alone"
                lines.append(Line(None, np.asarray([row_a]), np.asarray([row_b])))
            elif d not in other_sizes:
                if size_a != size_b:
                    return f"dimension {d} follows the tokens in one run alone"
                lines.append(Line(None, np.arange(size_a), np.arange(size_b)))
            else:
                columns_a = self.a.of((a.op, a.call), a.shape[d]).get(sample_a, {})
                columns_b = self.b.of((b.op, b.call), b.shape[d]).get(sample_b, {})
                line = along_both(columns_a, columns_b)
                lines.append(line if line.positions or d else self._rows(a, b, samples) or line)
        return lines

    def _same_slices(self, a: Pass, b: Pass) -> bool:
        """Whether both have cells of tokens, share some of these, and have as many elements for each that they share."""
        if a.is_whole or b.is_whole or not len(a.cells.ids) or not len(b.cells.ids):
            return False
        index_a, index_b, _ = self.alignment.of(a.cells, b.cells)
        return len(index_a) > 0 and bool((a.widths[index_a] == b.widths[index_b]).all())

    def _rows(self, a: Pass, b: Pass, samples: tuple[int, int]) -> Line | None:
        """The line of a pair of samples along the first dimension, if that has an entry for each row of the call."""
        row_a = self.a.row_if_any(a.call, a.shape[0], samples[0])
        row_b = self.b.row_if_any(b.call, b.shape[0], samples[1])
        if row_a is None or row_b is None:
            return None
        return Line(None, np.asarray([row_a]), np.asarray([row_b]))


def _compare_lines(
    a: Pass, b: Pass, digests_a: Ints, digests_b: Ints, lines: list[Line], number: int, sample: int, tally: Tally
) -> None:  # fmt: skip
    """Compare the digests of one cell, [size of each of its dimensions], at the indices of a sample along each."""
    left = digests_a[np.ix_(*[line.a for line in lines])]
    right = digests_b[np.ix_(*[line.b for line in lines])]
    if left.shape != right.shape or not left.size:
        return
    wrong = left != right
    axis = next((i for i, line in enumerate(lines) if line.positions is not None), 0)
    by_position = wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis))
    tally.compared += len(by_position)
    if by_position.any():
        tally.differing += int(np.count_nonzero(by_position))
        positions = lines[axis].positions
        position = None if positions is None else positions[int(np.argmax(by_position))]
        tally.differ(Difference(a.index, b.index, number, sample, position))


def _sizes(of: Pass, dims: list[int]) -> list[int]:
    """The size of each dimension in a cell's digests: 1 for a dimension that is inside of each digest."""
    return [of.shape[d] if d in of.cells.open_dims else 1 for d in dims]
