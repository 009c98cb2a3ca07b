"""The join of two traces: op by op, which passes of A and B belong together, and where their digests differ.

An op (a function at a line of the source in a module) makes one *pass* each time it runs. Its digests lie in one of three
ways (`trace.Cells`): `rows`, one for each coordinate; `pair`, one for each query, over the keys of its sample; `open`, where
it is not known yet which dimension the tokens lie in. So passes are compared in several ways, one function each; the first
line that fits is taken:

| digests of the op | compared by |
| --- | --- |
| several passes of rows or pairs in traces of files, all alike (a loop, a generation) | `repeated.compare_series` |
| none | not at all: views of other values, or values that could not be read |
| of tokens that could not be followed, and the layouts differ | not at all |
| dtypes differ | `coordinates.count_all`: that they do |
| some open | `repeated.compare_loop` those of a loop that work on one column each, `tables.TableComparison` the others |
| rows of tokens in one run, of none in the other | `tables.TableComparison`: a table that the length chose |
| one pass of rows in each run, in the same call | `coordinates.compare_once` |
| several passes of rows, or pairs | `repeated.compare_passes`, which meets them by their coordinates |
| pairs in some passes, none in others | `_compare_apart`: each kind among itself |

What these functions work with: a `Pass` is one pass, with `held` the event that has the digests of its value (another one
where it is an alias); they count in a `Tally`, what can't be compared with `skip`; of that comes a `Joined`, the op's row.
`Shared` numbers the coordinates that both runs have: `shared.a` has for each id of run A its number, -1 where run B lacks it.
`Alignment` finds cells of both runs with one number, `Columns` where along a dimension the tokens lie. A `Maker` is the op
that made a value, with the index of the forward call. A *series* is all passes of an op as columns, which traces in files have.
An id below 0 stands for no token: `WHOLE` for the one cell of a value that has no tokens at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from forkpoint.capture.coordinates import CoordinateTable, Ids
from forkpoint.capture.labels import Label
from forkpoint.capture.trace import WHOLE, Event, Op, Trace
from forkpoint.match.columns import Columns, Maker
from forkpoint.match.coordinates import Alignment, compare_once, count_all
from forkpoint.match.elements import pair_open
from forkpoint.match.joined import Joined, Pass, Tally
from forkpoint.match.numbering import Shared
from forkpoint.match.pairs import Pairs
from forkpoint.match.repeated import compare_loop, compare_passes, compare_series, may_meet
from forkpoint.match.tables import TableComparison
from forkpoint.runs.pairing import Pairing
from forkpoint.support.progress import SILENT, Progress

OF_OTHERS = "each run has it of tokens, or of padding, of which the other has none there"
"""Why a value is not compared that stands for other coordinates in each run: a state after the padding, chunks cut elsewhere."""

_NO_IDS = np.zeros(0, dtype=np.int32)


class Join:
    """The joined traces of two runs, op by op: only one op's digests have to be in memory at a time.

    Args:
        a, b: the traces.
        shared: numbers the coordinates that both runs have.
        progress: is told how many ops were joined.

    Attributes:
        rows: what a report lists, one for each op: those of A in the order of execution, then those that B alone has.
        same_layout: whether both runs have the same tokens in the same places.
    """

    def __init__(self, a: Trace, b: Trace, shared: Shared, progress: Progress = SILENT) -> None:
        self.a, self.b, self.shared = a, b, shared
        self.same_layout = _same_layout(a.table, b.table, shared.pairing)
        self._alignment = Alignment(shared)
        self._columns_a, self._columns_b = Columns(a), Columns(b)
        self._tables = TableComparison(
            self._columns_a, self._columns_b, self._alignment, same_layout=self.same_layout
        )
        self._ops_a, self._ops_b = a.ops, b.ops
        by_op_a, by_op_b = _by_key(a, self._ops_a), _by_key(b, self._ops_b)
        self.rows: list[Joined] = []
        progress.count(self.rows.__len__, len(by_op_a.keys() | by_op_b.keys()))
        for key, events in by_op_a.items():
            if key in by_op_b:
                self.rows.append(self._join(events, by_op_b[key]))
            else:
                self.rows.append(_alone(events, "only in a", a, self._ops_a))
        for key, events in by_op_b.items():
            if key not in by_op_a:
                self.rows.append(_alone(events, "only in b", b, self._ops_b))

    def _join(self, events_a: Sequence[int], events_b: Sequence[int]) -> Joined:
        """Compare an op that both runs have, from the indices of its events in each."""
        first_a, first_b = self.a.events[events_a[0]], self.b.events[events_b[0]]
        order, n_passes = int(events_a[0]), len(events_a)
        row = Joined(self._ops_a[first_a.op], "equal", first_a, first_b, order, n_passes)
        if len(events_a) > 1 or len(events_b) > 1:
            series_a, series_b = self.a.series(events_a), self.b.series(events_b)
            if series_a is not None and series_b is not None and may_meet(series_a, series_b):
                tally = Tally()
                if series_a.passes and series_b.passes:
                    compare_series(series_a, series_b, self.shared, tally)
                    return self._with_counts(row, tally, series_a.ids, series_b.ids)
                row.status = "view"  # one run has no digests of it
                return row
        passes_a = _with_digests(self.a, self._ops_a, events_a)
        passes_b = _with_digests(self.b, self._ops_b, events_b)
        if not passes_a or not passes_b:
            row.reason = next((e.reason for e in (first_a, first_b) if e.status == "skipped"), "")
            row.status = "not compared" if row.reason else "view"
            return row
        tally = Tally()
        unread = [_unread(self.a, events_a), _unread(self.b, events_b)]
        for reason in dict.fromkeys((*unread[0], *unread[1])):
            tally.skip(max(reasons.count(reason) for reasons in unread), reason)
        if tally.reasons:  # a pass that one run lost has no counterpart to meet
            passes_a, passes_b = _read_in_both(self.a, self.b, events_a, events_b, passes_a, passes_b)
        if passes_a and passes_b:
            self._compare(passes_a, passes_b, tally)
        ids = (np.concatenate([_NO_IDS, *(p.cells.ids for p in run)]) for run in (passes_a, passes_b))
        return self._with_counts(row, tally, *ids)

    def _with_counts(self, row: Joined, tally: Tally, ids_a: Ids, ids_b: Ids) -> Joined:
        """The row with the counts in it. If nothing was compared because the runs share no coordinate, it says so.

        Args:
            row: of the op.
            tally: what was counted.
            ids_a, ids_b: the coordinates of all its cells in each run.
        """
        _fill_in(row, tally)
        if row.status == "not compared" and self._is_of_others(ids_a, ids_b):
            row.reason = OF_OTHERS
        return row

    def _is_of_others(self, ids_a: Ids, ids_b: Ids) -> bool:
        """Whether both runs have values of known coordinates, but none of the same.

        An id below 0 is of no token, a shared number below 0 of what one run alone has.
        """
        if any(WHOLE in ids or not (ids >= 0).any() for ids in (ids_a, ids_b)):
            return False
        numbers = np.intersect1d(self.shared.a[ids_a], self.shared.b[ids_b])
        return not (numbers >= 0).any()

    def _compare(self, a: list[Pass], b: list[Pass], tally: Tally) -> None:
        """Compare the passes of an op, in the way of the table above that fits how their digests lie."""
        # A value with digests and a reason all the same: its tokens could not be followed.
        lost = next((p.held.reason for p in (*a, *b) if p.held.reason), "")
        if lost and not self.same_layout:
            tally.skip(len(a), lost)
            return
        if {p.event.dtype for p in a} != {p.event.dtype for p in b}:
            count_all(a, b, self._alignment, tally)
            return
        kinds = {p.cells.kind for p in (*a, *b)}
        if kinds in ({"rows", "open"}, {"open"}):
            a, b = compare_loop(a, b, self.a, self.b, self.shared, tally)
            if not a or not b:
                tally.skip(len(a) + len(b), "a pass that the other run does not make")
                return
        one_has_tokens = {p.is_whole for p in a} != {p.is_whole for p in b}
        if kinds == {"rows"} and one_has_tokens:
            self._tables.compare(a, b, tally)
        elif kinds == {"rows"} and len(a) == len(b) == 1 and a[0].call == b[0].call:
            compare_once(a[0], b[0], self._alignment, tally)
        elif kinds in ({"rows"}, {"pair"}):
            compare_passes(a, b, self.shared, tally)
        elif "pair" not in kinds:
            self._tables.compare(a, b, tally)
        else:
            self._compare_apart(a, b, tally)

    def _compare_apart(self, a: list[Pass], b: list[Pass], tally: Tally) -> None:
        """Compare the attention weights among the passes of an op with each other, and the other values with each other."""
        weights_a, weights_b = ([p for p in run if p.cells.kind == "pair"] for run in (a, b))
        others_a, others_b = ([p for p in run if p.cells.kind != "pair"] for run in (a, b))
        if not (weights_a and weights_b) and not (others_a and others_b):
            tally.skip(len(a), "attention weights of another form in the other run")
            return
        for one, other in ((weights_a, weights_b), (others_a, others_b)):
            if one and other:
                self._compare(one, other, tally)
            else:
                tally.skip(len(one) + len(other), "a pass that the other run does not make")

    # ------------------------------------------------------------------ elements

    def token_at(
        self, maker: Maker, label: Label | None, shape: tuple[int, ...], index: tuple[int, ...]
    ) -> tuple[int, int] | None:
        """The token (sample, position) of run A that an element of a table belongs to; see `Columns.token_at`."""
        return self._columns_a.token_at(maker, label, shape, index)

    def pair_open(
        self,
        sample: int | None,
        maker_a: Maker,
        maker_b: Maker,
        shape_a: tuple[int, ...],
        shape_b: tuple[int, ...],
    ) -> Pairs:
        """Pair the elements of two values whose token dimensions only the join could line up.

        Args:
            maker_a, maker_b: the op that made each value, and the call.
            shape_a, shape_b: shapes of the values.
            sample: the sample (of run A) by whose columns they are lined up; None for all, one after the other.
        """
        pairs = self.shared.pairing.pairs
        samples = [(in_a, in_b) for in_a, in_b in pairs if sample is None or in_a == sample]
        columns = (self._columns_a, self._columns_b)
        return pair_open(samples, *columns, (maker_a, maker_b), (shape_a, shape_b))


def _fill_in(row: Joined, tally: Tally) -> None:
    """Put what was counted into the row of an op."""
    row.compared, row.differing, row.left_out = tally.compared, tally.differing, tally.left_out
    row.reason = "; ".join(tally.reasons)
    row.difference = tally.earliest
    if tally.differing:
        row.status = "differs"
    elif not tally.compared:
        row.status = "not compared"
        row.reason = row.reason or "the runs share no coordinate of it"


def _by_key(trace: Trace, ops: list[Op]) -> dict[Hashable, Sequence[int]]:
    """By the key of each op, the indices of its events in the order of execution; ops in the order of their first events.

    Several ops of one key are one here.
    """
    by_key: dict[Hashable, list[Sequence[int]]] = {}
    for op, events in zip(ops, trace.by_op(), strict=True):
        if len(events):
            by_key.setdefault(trace.key(op), []).append(events)
    events_by_key = {
        key: parts[0] if len(parts) == 1 else sorted(int(i) for part in parts for i in part)
        for key, parts in by_key.items()
    }
    in_order = sorted(events_by_key, key=lambda key: events_by_key[key][0])
    return {key: events_by_key[key] for key in in_order}


def _alone(events: Sequence[int], status: str, trace: Trace, ops: list[Op]) -> Joined:
    """The row of an op that only one run has."""
    event = trace.events[events[0]]
    first_a, first_b = (event, None) if status == "only in a" else (None, event)
    return Joined(ops[event.op], status, first_a, first_b, int(events[0]), len(events))


def _with_digests(trace: Trace, ops: list[Op], events: Sequence[int]) -> list[Pass]:
    """The passes of an op that have digests; without those of no elements (idle experts), unless all are."""
    passes: list[Pass] = []
    for index in events:
        event, held = trace.events[index], trace.held(index)
        if held.status == "digest" and held.digests is not None:
            passes.append(Pass(int(index), ops[event.op], event, held))
    return [one for one in passes if 0 not in one.event.shape] or passes


def _unread(trace: Trace, events: Sequence[int]) -> list[str]:
    """For each pass of an op whose value could not be read, the reason."""
    held = (trace.held(index) for index in events)
    return [event.reason for event in held if event.status == "skipped"]


def _read_in_both(
    a: Trace,
    b: Trace,
    events_a: Sequence[int],
    events_b: Sequence[int],
    passes_a: list[Pass],
    passes_b: list[Pass],
) -> tuple[list[Pass], list[Pass]]:
    """The passes of an op that were read in both runs: if one run lost a pass, its counterpart in the other is left out, too.

    Passes meet by counting: had only one run left out its first, its second would meet the other's first. Which pass is a
    lost one's counterpart depends on how often the op ran:

    - as often in each call of A as in that call of B: the one of the same call and number;
    - equally often in all calls of both, which are not the same calls: all passes of the same number;
    - otherwise nobody knows, and nothing is left.

    Args:
        a, b: both traces.
        events_a, events_b: all passes of the op, as indices of events.
        passes_a, passes_b: those with digests.
    """
    counts_a, counts_b = (
        Counter(trace.events[index].call for index in events)
        for trace, events in ((a, events_a), (b, events_b))
    )
    by_call = counts_a == counts_b
    if not by_call and len({*counts_a.values(), *counts_b.values()}) > 1:
        return [], []

    def which(event: Event) -> tuple[int, int]:  # equal for counterparts
        return event.call if by_call else 0, event.nth

    unread = {
        which(trace.events[index])
        for trace, events in ((a, events_a), (b, events_b))
        for index in events
        if trace.held(index).status == "skipped"
    }
    return (
        [one for one in passes_a if which(one.event) not in unread],
        [one for one in passes_b if which(one.event) not in unread],
    )


def _same_layout(a: CoordinateTable, b: CoordinateTable, pairing: Pairing) -> bool:
    """Whether both runs have the same tokens in the same places."""
    if any(x != y for x, y in pairing.pairs) or pairing.only_a or pairing.only_b:
        return False
    if len(a.layout.calls) != len(b.layout.calls):
        return False
    for entry_a, entry_b in zip(a.layout.calls, b.layout.calls, strict=True):
        if entry_a.keys() != entry_b.keys():
            return False
        for stream, mine in entry_a.items():
            theirs = entry_b[stream]
            if mine.shape != theirs.shape or not bool((mine.sample == theirs.sample).all()):
                return False
            if not bool((mine.position == theirs.position).all()):
                return False
    return True
