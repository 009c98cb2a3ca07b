"""Compares an op that runs several times: at each coordinate, the k-th pass in A with the k-th pass in B."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forkpoint.capture.series import Series
from forkpoint.capture.trace import Trace
from forkpoint.match.joined import Difference, Pass, Tally
from forkpoint.match.numbering import WHOLE_NUMBER, Ints, Shared
from forkpoint.match.passes import PassTable, meet


def compare_passes(a: list[Pass], b: list[Pass], shared: Shared, tally: Tally) -> None:
    """Compare the passes of an op, pass by pass at each coordinate.

    A value read again later (keys from a cache) meets the one of its token's own call if the other run
    did not read it again.
    """
    _compare_tables(
        _digested(a, shared.a, shared.home_a), _digested(b, shared.b, shared.home_b), shared, tally
    )


def may_meet(a: Series, b: Series) -> bool:
    """Whether `compare_series` can compare two series: several passes of one kind and dtype; or one has none at all."""
    if not (a.passes and b.passes):
        return True
    several = a.passes > 1 or b.passes > 1
    return several and a.kind == b.kind and a.dtypes == b.dtypes and a.whole == b.whole


def compare_series(a: Series, b: Series, shared: Shared, tally: Tally) -> None:
    """`compare_passes`, of passes that are columns already; both have some, and `may_meet`."""
    table_a = _digested_columns(a, shared.a, shared.home_a)
    table_b = _digested_columns(b, shared.b, shared.home_b)
    _compare_tables(table_a, table_b, shared, tally)


def _compare_tables(table_a: _Digested, table_b: _Digested, shared: Shared, tally: Tally) -> None:
    pairs, alone = meet(table_a, table_b)
    tally.skip(sum(map(len, alone)), "a pass that the other run does not make")
    for rows_a, rows_b in pairs:
        _compare_rows(table_a, table_b, rows_a, rows_b, shared, tally)


def compare_loop(
    a: list[Pass], b: list[Pass], trace_a: Trace, trace_b: Trace, shared: Shared, tally: Tally
) -> tuple[list[Pass], list[Pass]]:
    """Compare the passes of a loop over columns, each of which works on one column; returns the other passes of both runs.

    So a dimension of the loop's state that happens to be as long as the tokens isn't taken to follow them.
    """
    (work_a, rest_a), (work_b, rest_b) = _at_columns(a, trace_a), _at_columns(b, trace_b)
    if not work_a or not work_b or not any(p.event.nth for p in (*work_a, *work_b)):
        return a, b
    compare_passes(work_a, work_b, shared, tally)
    return rest_a, rest_b


def _at_columns(passes: list[Pass], trace: Trace) -> tuple[list[Pass], list[Pass]]:
    """The passes that work on one column of each row, where the call has several; and the other passes."""
    work: list[Pass] = []
    rest: list[Pass] = []
    for one in passes:
        (work if trace.table.one_of_many(one.cells.ids) else rest).append(one)
    return work, rest


class _Digested(PassTable):
    """A table of passes with their digests.

    Attributes:
        digests: [rows]; [rows, 2] for attention weights.
        keys_seen: [rows, 4], for attention weights the keys that the query sees (`Cells.keys`); else [rows, 0].
        widths: [rows], elements of each cell.
    """

    def __init__(
        self,
        numbers: Ints,
        again: NDArray[Any],
        events: Ints,
        calls: Ints,
        digests: Ints,
        keys_seen: Ints,
        widths: Ints,
    ) -> None:
        super().__init__(numbers, again.astype(bool), events, calls)
        self.digests, self.keys_seen, self.widths = digests, keys_seen, widths


def _digested(passes: list[Pass], numbers: Ints, homes: Ints) -> _Digested:
    """A row for each coordinate of each pass that the other run may have, too."""
    parts: list[tuple[Ints, NDArray[Any], Ints, Ints, Ints, Ints, Ints]] = []
    for one in passes:
        cells = one.cells
        number = numbers[cells.ids]
        keep = np.flatnonzero(number >= 0)
        again = np.where(number[keep] == WHOLE_NUMBER, one.call > 0, homes[cells.ids[keep]] != one.call)
        events, calls = np.full(len(keep), one.index), np.full(len(keep), one.call)
        keys = cells.keys[keep] if cells.keys is not None else np.zeros((len(keep), 0), dtype=np.int64)
        parts.append((number[keep], again, events, calls, one.flat[keep], keys, one.widths[keep]))
    return _Digested(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _digested_columns(series: Series, numbers: Ints, homes: Ints) -> _Digested:
    """The table of a series."""
    number = numbers[series.ids]
    again = np.where(number == WHOLE_NUMBER, series.calls > 0, homes[series.ids] != series.calls)
    columns = number, again, series.events, series.calls, series.digests, series.keys, series.widths
    if (keep := number >= 0).all():
        return _Digested(*columns)
    return _Digested(*(column[keep] for column in columns))


def _compare_rows(
    a: _Digested, b: _Digested, rows_a: Ints, rows_b: Ints, shared: Shared, tally: Tally
) -> None:
    """Compare row by row: `rows_a[i]` of A's table with `rows_b[i]` of B's."""
    if not len(rows_a):
        return
    same_width = a.widths[rows_a] == b.widths[rows_b]
    if a.digests.ndim == 2:  # attention weights: keys up to the query, keys after it
        keys_a, keys_b = a.keys_seen[rows_a], b.keys_seen[rows_b]
        past = (keys_a[:, :2] == keys_b[:, :2]).all(axis=1) & same_width
        future = (keys_a[:, 2:] == keys_b[:, 2:]).all(axis=1) & same_width
        wrong = past & (a.digests[rows_a, 0] != b.digests[rows_b, 0])
        wrong |= future & (a.digests[rows_a, 1] != b.digests[rows_b, 1])
        usable = past | future
        reason = "the query sees other keys in the other run"
    else:
        usable = same_width
        wrong = usable & (a.digests[rows_a] != b.digests[rows_b])
        reason = "another number of elements a coordinate in the other run"
    tally.skip(int(np.count_nonzero(~usable)), reason)
    tally.compared += int(np.count_nonzero(usable))
    if not wrong.any():
        return
    tally.differing += int(np.count_nonzero(wrong))
    places = np.flatnonzero(wrong)
    best = places[np.lexsort((rows_a[places], a.events[rows_a[places]]))[0]]
    number = int(a.numbers[rows_a[best]])
    event_a, event_b = int(a.events[rows_a[best]]), int(b.events[rows_b[best]])
    tally.differ(Difference(event_a, event_b, number, *shared.coordinate(number)))
