"""Which pass of an op meets which."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.match.passes import Passes, meet


def passes(*rows: tuple[int, bool]) -> Passes:
    """Rows of (number, again), each a pass of its own."""
    numbers = np.asarray([number for number, _ in rows], dtype=np.int64)
    again = np.asarray([later for _, later in rows], dtype=bool)
    return Passes(numbers, again, np.arange(len(rows)))


def met(a: Passes, b: Passes) -> tuple[set[tuple[int, int]], list[list[int]]]:
    parts, alone = meet(a, b)
    found = {pair for left, right in parts for pair in zip(left.tolist(), right.tolist(), strict=True)}
    return found, [rows.tolist() for rows in alone]


ROWS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8)


@given(ROWS, ROWS)
def test_the_kth_pass_at_a_coordinate_meets_the_kth(a, b):
    def slowly(rows: list[Any]) -> dict[Any, int]:
        found: dict[Any, int] = {}
        for index, row in enumerate(rows):
            found[row, sum(other == row for other in rows[:index])] = index
        return found

    at_a, at_b = slowly(a), slowly(b)
    wanted = {(at_a[key], at_b[key]) for key in at_a.keys() & at_b.keys()}
    alone = [
        set(at_a.values()) - {left for left, _ in wanted},
        set(at_b.values()) - {right for _, right in wanted},
    ]
    for rows, mine, theirs, lonely in ((a, at_a, at_b, alone[0]), (b, at_b, at_a, alone[1])):
        for key, index in mine.items():
            first = theirs.get(((rows[index][0], False), 0))
            if rows[index][1] and key not in theirs and first is not None:
                wanted.add((index, first) if mine is at_a else (first, index))
                lonely.discard(index)
    found, left_over = met(passes(*a), passes(*b))
    assert found == wanted
    assert [set(rows) for rows in left_over] == alone


def test_a_value_read_again_meets_the_one_of_its_own_call():
    assert met(passes((1, False), (2, False)), passes((1, False), (1, True), (2, False))) == (
        {(0, 0), (0, 1), (1, 2)},
        [[], []],
    )


def test_what_one_run_alone_passes_meets_nothing():
    assert met(passes((1, False), (2, False)), passes((2, False), (2, False))) == ({(1, 0)}, [[0], [1]])
    assert met(passes(), passes((2, False))) == (set(), [[], [0]])
