"""What the two runs returned, compared: at shared coordinates where it has them, whole where it has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.labels import Label
from forkpoint.explain.placement import Displaced, PlacedRun, displaced
from forkpoint.explain.session import Results, Session, Traced
from forkpoint.match import Shared
from forkpoint.match.align import Gap, gap, pair_elements
from forkpoint.match.finite import FinitePart, all_finite, finite_part
from forkpoint.match.pairs import Pairs
from forkpoint.runs.layout import Layout

Labelled = tuple[Tensor, Label | None]

_MIXED = "it is of tokens that one run alone has, too"
_OF_OTHERS = "nothing tells whose it is, and no two calls that hold the same samples return it"
_OF_PADDING = "it is of padding in run {run}, as where the first column is taken for the first token"

RETURNED_ALONE = {run: f"only run {run} returns it" for run in "AB"}
"""Why a result is not compared that one run alone returns."""


@dataclass(frozen=True)
class ResultGap:
    """One returned tensor of both runs, compared.

    Attributes:
        name: its name, with the call where there are several.
        coordinates: how many token coordinates (or whole values) were compared.
        over_calls: `mean` or `sum` where it is one number for each call, and these were taken together.
    """

    name: str
    a: Tensor
    b: Tensor
    pairs: Pairs
    gap: Gap
    coordinates: int
    over_calls: str = ""

    @property
    def result(self) -> str:
        """The name without the call."""
        return self.name.split(" (call")[0]

    @property
    def floating(self) -> bool:
        """Whether it is compared as numbers that may lie apart: integers, bools and texts are equal or not."""
        return all(value.is_floating_point() or value.is_complex() for value in (self.a, self.b))


@dataclass(frozen=True)
class ResultComparison:
    """Every returned tensor of both runs, compared; and those that could not be."""

    gaps: tuple[ResultGap, ...]
    left_out: tuple[tuple[str, str], ...]
    displaced: tuple[Displaced, ...] = ()
    """Results in which what both runs have lies elsewhere in one of them."""
    missing: str = ""
    """What was returned, and may be shared, but could not be compared; empty where there is nothing."""
    others: bool = False
    """Whether objects were returned that have no value to compare."""

    @property
    def identical(self) -> bool:
        """Every result that both runs have is the same, bit for bit and in the same place, and there is one."""
        return bool(self.gaps) and not self.missing and not self.displaced and not self.differs

    @property
    def differs(self) -> bool:
        """Whether anything that was compared does."""
        return any(g.gap.differing for g in self.gaps)

    @property
    def floating(self) -> tuple[ResultGap, ...]:
        return tuple(g for g in self.gaps if g.floating)

    @property
    def max_abs(self) -> float:
        """The largest gap of floating-point results."""
        return max((g.gap.max_abs for g in self.floating), default=0.0)

    @property
    def distance(self) -> float:
        """The largest gap; where no floating-point result differs, how many integers and texts do."""
        return self.max_abs or float(self.discrete_differing)

    @property
    def discrete_differing(self) -> int:
        """How many integers, bools and texts differ."""
        return sum(g.gap.differing for g in self.gaps if not g.floating)

    @property
    def discrete_compared(self) -> int:
        return sum(g.gap.compared for g in self.gaps if not g.floating)


def compare_results(
    session: Session, a: Results | None = None, b: Results | None = None, *, own: str | None = None
) -> ResultComparison:
    """Compare what the two runs returned, at shared coordinates where it has them, whole where not.

    Calls meet one to one if the runs have as many; else every call meets every other, where they
    share tokens (a full forward against prefill and decoding steps).

    Args:
        a, b: other results of the runs (in float64); by default those of the traced runs.
        own: `a` or `b` if both results are of that one run.
    """
    shared = session.shared if own is None else session.shared.within(own)
    traced = (session.a if own != "b" else session.b), (session.b if own != "a" else session.a)
    sides = _Sides(
        shared, a or session.a.results, b or session.b.results, *traced, same_layout=session.join.same_layout,
        lost=_without_columns(session),
    )  # fmt: skip
    gaps: list[ResultGap] = []
    moved: list[Displaced] = []
    left_out: dict[str, str] = {}
    missing: list[str] = []
    for name in sides.names:
        compared, reason = sides.compare(name)
        gaps += compared
        if compared and (elsewhere := sides.displaced(name)) is not None:
            moved.append(elsewhere)
        lost = sides.uncompared(name, compared) if compared else 0
        if not lost and (compared or not reason):
            continue
        if lost:
            missing.append(f"{lost} tokens that both runs have could not be compared in {name}")
        elif not sides.is_of_one_run(name):
            padding = sides.of_padding(name)
            reason = _OF_PADDING.format(run=padding) if padding else _MIXED if sides.mixes(name) else reason
            missing.append(f"{name}: {reason}")
        left_out[name] = missing[-1] if lost else reason
    for name, kind in {**traced[1].closed, **traced[0].closed}.items():
        left_out[name] = f"tensors in it could not be reached by name: {kind}"
        missing.append(f"{name}: {left_out[name]}")
    return ResultComparison(
        tuple(gaps), tuple(sorted(left_out.items())), tuple(moved), "; ".join(missing),
        others=bool(traced[0].others or traced[1].others),
    )  # fmt: skip


def _without_columns(session: Session) -> frozenset[str]:
    """Results [rows, columns, ...] that both runs return, of other numbers of columns, whose labels no longer tell columns apart.

    An op that makes something of a whole row and goes back to its columns (a convolution by Fourier transforms) leaves
    them so. They are read by their places.
    """
    columns = [
        {
            name: [_columns(traced, index, call.get(name)) for index, call in enumerate(traced.results)]
            for name in names
        }
        for traced in (session.a, session.b)
        if (names := {name for call in traced.results for name in call})
    ]
    if len(columns) < 2 or len(session.a.results) != len(session.b.results):
        return frozenset()
    return frozenset(
        name
        for name in columns[0].keys() & columns[1].keys()
        if all(
            one and other and one != other
            for one, other in zip(columns[0][name], columns[1][name], strict=True)
        )
    )


def _columns(traced: Traced, index: int, returned: Labelled | None) -> int:
    """Of how many columns a result is whose label has rows alone; 0 for any other."""
    if returned is None or returned[1] is None or returned[0].dim() < 3:
        return 0
    value, label = returned
    assert label is not None
    by_place = traced.recorder.label_by_columns(value, index)
    table = traced.trace.table
    of_rows = all(table.tokens[item] is None for item in np.unique(label.q).tolist() if item >= 0)
    return int(value.shape[1]) if of_rows and by_place is not None else 0


class _Sides:
    """The results of two runs, and how their coordinates belong together."""

    def __init__(
        self, shared: Shared, a: Results, b: Results, run_a: Traced, run_b: Traced, *, same_layout: bool,
        lost: frozenset[str],
    ) -> None:  # fmt: skip
        self.shared = shared
        self.a, self.b = (
            [_by_places(call, traced, index, lost) for index, call in enumerate(results)]
            for results, traced in ((a, run_a), (b, run_b))
        )
        self.tables = run_a.trace.table, run_b.trace.table
        self.one_run = run_a is run_b
        self.same_layout = same_layout
        self.sides = (
            PlacedRun(self.tables[0], shared.a, shared.sample_rows_a, run_a.run.layout.name),
            PlacedRun(self.tables[1], shared.b, shared.sample_rows_b, run_b.run.layout.name),
        )
        self.recorders = run_a.recorder, run_b.recorder
        self.names = list(dict.fromkeys(name for call in (*a, *b) for name in call))
        self.several = len(a) > 1 or len(b) > 1
        self._layouts = run_a.run.layout, run_b.run.layout

    @cached_property
    def _samples(self) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
        """Which samples each call of both runs holds; a paired one has the number that it has in run A."""
        pairs, (a, b) = self.shared.pairing.pairs, self._layouts
        numbers_a, numbers_b = {in_a: in_a for in_a, _ in pairs}, {in_b: in_a for in_a, in_b in pairs}
        return _samples_by_call(a, numbers_a, alone=-1), _samples_by_call(b, numbers_b, alone=-2)

    def compare(self, name: str) -> tuple[list[ResultGap], str]:
        """One result, call by call; and why it could not be compared, where it holds anything and was not."""
        returned = self.calls(name)
        for run, mine in zip("AB", returned, strict=True):
            if not mine:
                return [], RETURNED_ALONE["B" if run == "A" else "A"]
        together = self._over_calls(name, *returned)
        if together is not None:
            return [together], ""
        gaps: list[ResultGap] = []
        reason = "no call returns it in both runs"
        for index_a, (value_a, _) in returned[0].items():
            for index_b in [index_a] if len(self.a) == len(self.b) else returned[1]:
                if index_b not in returned[1]:
                    continue
                value_b, _ = returned[1][index_b]
                rest = self.same_layout and index_a == index_b
                columns = self._by_columns(*returned, index_a, index_b)
                if None in columns and self._are_of_others(index_a, index_b):
                    reason = _OF_OTHERS
                    continue
                pairs = pair_elements(value_a, columns[0], value_b, columns[1], self.shared, rest=rest)
                if columns == (None, None) and (self.one_run or not len(pairs)):
                    pairs = pair_elements(
                        value_a, self.recorders[0].label_by_size(value_a, index_a),
                        value_b, self.recorders[1].label_by_size(value_b, index_b), self.shared,
                    )  # fmt: skip
                if not len(pairs):
                    empty = not value_a.numel() and not value_b.numel()
                    reason = "" if empty else pairs.reason
                    continue
                title = f"{name} (call {index_a} and {index_b})" if self.several else name
                count = len(pairs.distinct)
                gaps.append(ResultGap(title, value_a, value_b, pairs, gap(value_a, value_b, pairs), count))
        if len(self.a) != len(self.b) and not all(result_gap.pairs.by_sample for result_gap in gaps):
            # a call's one token stands for its row only where no call of the other run has that very token
            gaps = [result_gap for result_gap in gaps if not result_gap.pairs.by_sample]
        return gaps, reason

    def _by_columns(
        self, a: dict[int, Labelled], b: dict[int, Labelled], index_a: int, index_b: int
    ) -> tuple[Label | None, Label | None]:
        """The labels of a result in two calls; where it has none, as of NumPy, those of its size if it has columns in both."""
        (value_a, label_a), (value_b, label_b) = a[index_a], b[index_b]
        if label_a is not None or label_b is not None:
            return label_a, label_b
        labels = (
            self.recorders[0].label_by_columns(value_a, index_a),
            self.recorders[1].label_by_columns(value_b, index_b),
        )
        return (None, None) if None in labels else labels

    def _are_of_others(self, index_a: int, index_b: int) -> bool:
        """Whether two calls are known to hold no sample in common, so that values without labels are of different things."""
        if self.one_run or not self.several:
            return False
        a, b = self._samples
        one, other = (
            frozenset().union(*a[index_a : index_a + 1]),
            frozenset().union(*b[index_b : index_b + 1]),
        )
        return bool(one) and bool(other) and one.isdisjoint(other)

    def displaced(self, name: str) -> Displaced | None:
        """Whether what both runs have lies elsewhere in one of them, relative to their layouts."""
        if self.one_run:
            return None
        return displaced(name, *self.calls(name), self.shared, *self.sides)

    def calls(self, name: str) -> tuple[dict[int, Labelled], dict[int, Labelled]]:
        """What each run returned under a name, by call."""
        in_a, in_b = (
            {i: call[name] for i, call in enumerate(run) if name in call} for run in (self.a, self.b)
        )
        return in_a, in_b

    def _over_calls(self, name: str, a: dict[int, Labelled], b: dict[int, Labelled]) -> ResultGap | None:
        """One number a call, of other tokens in each run's calls, taken together: micro-batches of one batch.

        They add up, or are averaged as gradient accumulation does; whichever brings the runs nearer counts.
        None where it is not that.
        """
        if len(a) == len(b) or self.mixes(name):
            return None
        for calls, table in ((a, self.tables[0]), (b, self.tables[1])):
            if not all(value.numel() == 1 and _is_whole(label, table) for value, label in calls.values()):
                return None
        numbers_a, numbers_b = ([value.reshape(()).cpu() for value, _ in run.values()] for run in (a, b))
        pairs = Pairs.whole(1)
        gaps: list[ResultGap] = []
        for how in ("mean", "sum"):
            one, other = _together(numbers_a, how), _together(numbers_b, how)
            if one is not None and other is not None:
                gaps.append(ResultGap(name, one, other, pairs, gap(one, other, pairs), 1, how))
        return min(gaps, key=lambda g: (g.gap.differing, g.gap.max_rel))

    def is_of_one_run(self, name: str) -> bool:
        """Whether a result is only of tokens that one run alone has, so that there is nothing to compare it with."""
        return not any(shared or not members for members, shared in self._members(name))

    def mixes(self, name: str) -> bool:
        """Whether a value in a result is of tokens that both runs have and of some that one alone has."""
        return any(0 < shared < members for members, shared in self._members(name))

    def of_padding(self, name: str) -> str:
        """The run in which all of a result is of padding; empty where there is none."""
        for run, calls, table in zip("AB", self.calls(name), self.tables, strict=True):
            labels = [label for _, label in calls.values() if label is not None]
            ids = (
                np.unique(np.concatenate([label.q.reshape(-1) for label in labels]))
                if labels
                else np.zeros(0)
            )
            if len(ids := ids[ids >= 0]) and table.are_padding(ids).all():
                return run
        return ""

    def _members(self, name: str) -> Iterator[tuple[int, int]]:
        """For each value in a result how many tokens it is of, and how many of them both runs have; (0, 0) for none."""
        runs = zip(self.calls(name), self.tables, (self.shared.a, self.shared.b), strict=True)
        for calls, table, numbers in runs:
            for _, label in calls.values():
                if label is None:
                    yield 0, 0
                    continue
                for item in np.unique(label.q[label.q >= 0]).tolist():
                    tokens = list(table.members[item] or (item,))
                    yield len(tokens), int((numbers[tokens] >= 0).sum())

    def uncompared(self, name: str, gaps: list[ResultGap]) -> int:
        """How many tokens a result holds in both runs without having been compared."""
        if any(g.pairs.by_sample or (len(g.pairs) and not g.pairs.coordinates.any()) for g in gaps):
            return 0  # compared whole, or a vector for each sample
        compared = {int(n) for result in gaps for n in result.pairs.distinct}
        in_a, in_b = self.calls(name)
        tokens_a, tokens_b = _numbers(in_a, self.shared.a), _numbers(in_b, self.shared.b)
        return len((tokens_a & tokens_b) - compared)


def _samples_by_call(layout: Layout, numbers: Mapping[int, int], alone: int) -> list[frozenset[int]]:
    """Which samples each call holds, by the numbers that the paired ones have in run A; `alone` stands for this run's others.

    A call of which the layout says nothing holds none.
    """
    return [
        frozenset(numbers.get(s, alone) for c in call.values() for s in c.sample[c.valid].unique().tolist())
        for call in layout.calls
    ]


def _by_places(
    call: Mapping[str, Labelled], traced: Traced, index: int, names: frozenset[str]
) -> Mapping[str, Labelled]:
    """A call's results, some of them labelled by the columns that they have."""
    if names.isdisjoint(call):
        return call
    labels = {name: traced.recorder.label_by_columns(call[name][0], index) for name in names & call.keys()}
    return {**call, **{name: (call[name][0], label) for name, label in labels.items()}}


def _is_whole(label: Label | None, table: CoordinateTable) -> bool:
    """Whether a value of one element belongs to no one token."""
    return label is None or all(table.tokens[i] is None for i in label.q.reshape(-1).tolist() if i >= 0)


def _together(numbers: list[Tensor], how: str) -> Tensor | None:
    """The numbers of all calls as one; integers have a mean if they are the same in every call."""
    if not all(n.is_floating_point() for n in numbers):
        if how == "sum":
            return torch.stack(numbers).sum()
        return numbers[0] if all(n == numbers[0] for n in numbers) else None
    wide = torch.stack([n.double() for n in numbers])
    return wide.sum() if how == "sum" else wide.mean()


def _numbers(calls: dict[int, Labelled], numbers: np.ndarray) -> set[int]:
    """Shared numbers of what a result holds in all calls."""
    shared: set[int] = set()
    for _, label in calls.values():
        if label is not None:
            shared.update(int(n) for n in np.unique(numbers[label.q]) if n > 0)
    return shared


def finite_parts(compared: ResultComparison) -> FinitePart:
    """The NaN and infinities of all floating-point results, and the gap of their other elements."""
    parts = [
        FinitePart(len(g.pairs), max_abs=g.gap.max_abs, max_rel=g.gap.max_rel)
        if all_finite(g.a) and all_finite(g.b)
        else finite_part(g.a, g.b, g.pairs)
        for g in compared.floating
    ]
    return sum(parts, FinitePart())
