"""Which pass of an op meets which."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.match.passes import PassTable, meet


def passes(*rows: tuple[int, int]) -> PassTable:
    """Rows of (number, call), each a pass of its own; the own call of a coordinate is call 0."""
    numbers = np.asarray([number for number, _ in rows], dtype=np.int64)
    calls = np.asarray([call for _, call in rows], dtype=np.int64)
    return PassTable(numbers, calls > 0, np.arange(len(rows)), calls)


def met(a: PassTable, b: PassTable) -> tuple[set[tuple[int, int]], list[list[int]]]:
    parts, alone = meet(a, b)
    found = {pair for left, right in parts for pair in zip(left.tolist(), right.tolist(), strict=True)}
    return found, [rows.tolist() for rows in alone]


ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=8).map(
    lambda rows: sorted(rows, key=lambda row: row[1])
)


@given(ROWS, ROWS)
def test_the_kth_pass_at_a_coordinate_meets_the_kth(a, b):
    def slowly(rows: list[Any]) -> dict[Any, int]:
        """By coordinate, whether it is read again and how often before: the row."""
        found: dict[Any, int] = {}
        for index, (number, call) in enumerate(rows):
            before = sum(other == number and (then > 0) == (call > 0) for other, then in rows[:index])
            found[number, call > 0, before] = index
        return found

    at_a, at_b = slowly(a), slowly(b)
    wanted = {(at_a[key], at_b[key]) for key in at_a.keys() & at_b.keys()}
    alone = [
        set(at_a.values()) - {left for left, _ in wanted},
        set(at_b.values()) - {right for _, right in wanted},
    ]
    for rows, mine, theirs, lonely in ((a, at_a, at_b, alone[0]), (b, at_b, at_a, alone[1])):
        for key, index in mine.items():
            number, call = rows[index]
            if not call or key in theirs:
                continue
            rank = sum(row == (number, call) for row in rows[:index])
            single = (number, False, 1) not in theirs
            partner = theirs.get((number, False, 0 if single else rank))
            if partner is not None:
                wanted.add((index, partner) if mine is at_a else (partner, index))
                lonely.discard(index)
    found, left_over = met(passes(*a), passes(*b))
    assert found == wanted
    assert [set(rows) for rows in left_over] == alone


def test_keys_and_values_that_pass_one_line_and_are_read_again_stay_keys_and_values():
    once, again = passes((1, 0), (1, 0)), passes((1, 0), (1, 0), (1, 1), (1, 1), (1, 2), (1, 2))
    assert met(once, again) == ({(0, 0), (1, 1), (0, 2), (1, 3), (0, 4), (1, 5)}, [[], []])


def test_a_value_read_again_meets_the_one_of_its_own_call():
    assert met(passes((1, 0), (2, 0)), passes((1, 0), (1, 1), (2, 0))) == (
        {(0, 0), (0, 1), (1, 2)},
        [[], []],
    )


def test_what_one_run_alone_passes_meets_nothing():
    assert met(passes((1, False), (2, False)), passes((2, False), (2, False))) == ({(1, 0)}, [[0], [1]])
    assert met(passes(), passes((2, False))) == (set(), [[], [0]])
