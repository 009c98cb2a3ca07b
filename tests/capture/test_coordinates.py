"""The coordinate table: one id for every token, padding column and set of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint import Coordinates, Layout
from forkpoint.capture.coordinates import NONE, CoordinateTable


def table(*masks: list[list[int]]) -> CoordinateTable:
    return CoordinateTable(Layout.steps([torch.tensor(mask) for mask in masks]))


def ids(*numbers: int) -> np.ndarray:
    return np.asarray(numbers, dtype=np.int32)


def test_a_token_has_one_id_in_every_call_and_padding_one_a_column():
    here = table([[0, 1, 1], [1, 1, 1]], [[1], [1]])
    first, second = here.slots(0, "main"), here.slots(1, "main")
    assert first is not None
    assert second is not None
    everything = [*first.reshape(-1).tolist(), *second.reshape(-1).tolist()]
    assert len(set(everything)) == 8
    assert [here.tokens[item] for item in first[0].tolist()] == [None, ("main", 0, 0), ("main", 0, 1)]
    assert [here.tokens[item] for item in second[:, 0].tolist()] == [("main", 0, 2), ("main", 1, 3)]
    assert here.is_padding(int(first[0, 0]))
    assert not here.is_padding(int(first[0, 1]))
    assert not here.is_padding(NONE)


def test_a_token_given_twice_has_one_id():
    here = CoordinateTable(Layout([Coordinates(torch.zeros(1, 2).long(), torch.tensor([[0, 1]]))] * 2))
    assert np.array_equal(here.slots(0, "main"), here.slots(1, "main"))


def test_what_a_cache_holds_are_the_columns_of_all_calls_side_by_side():
    here = table([[0, 1]], [[1]], [[1]])
    so_far = here.slots_so_far(2, "main")
    assert so_far is not None
    assert [here.tokens[item] for item in so_far[0].tolist()] == [
        None, ("main", 0, 0), ("main", 0, 1), ("main", 0, 2),
    ]  # fmt: skip
    assert here.slots(3, "main") is None
    assert here.slots_so_far(0, "decoder") is None


def test_the_set_of_one_token_is_that_token():
    here = table([[0, 1, 1]])
    padding, first, second = here.slots(0, "main")[0].tolist()
    assert here.union(ids(first, first, NONE)) == first
    assert here.union(ids(first, padding)) == first
    assert here.union(ids(padding)) == here.mixed
    assert here.union(ids(NONE)) == NONE
    assert here.union(ids(first, second)) == here.union(ids(second, first, padding))


@given(st.lists(st.lists(st.integers(-1, 6), min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_union_of_unions_is_the_union_of_all(groups):
    here = table([[0, 1, 1], [1, 1, 1]])
    flat = here.union(ids(*[item for group in groups for item in group]))
    nested = here.union(ids(*[here.union(ids(*group)) for group in groups]))
    assert flat == nested or {flat, nested} <= {NONE, here.mixed}


def test_the_later_of_two_columns_of_a_row():
    here = table([[1, 1], [1, 1]], [[1], [1]])
    (a, b), (c, _) = here.slots(0, "main").tolist()
    later = int(here.slots(1, "main")[0, 0])
    assert here.later(ids(a, b, a, a, a), ids(b, a, later, c, NONE)).tolist() == [b, b, later, a, a]


def test_sets_have_the_same_name_in_two_runs_only_if_their_tokens_do():
    one, two = table([[1, 1, 1]]), table([[0, 1, 1, 1], [1, 1, 1, 1]])
    set_one = one.union(one.slots(0, "main")[0])
    row = two.slots(0, "main")[0]
    set_two, smaller = two.union(row), two.union(row[:3])
    keys_one, keys_two = one.keys(), two.keys()
    assert keys_one[set_one] == keys_two[set_two]
    assert keys_two[smaller] not in keys_one
    assert keys_two[int(row[0])] is None
    assert two.keys({1: 0})[set_two] is None


@pytest.mark.parametrize(("rows", "sample"), [((0,), 0), ((1,), 1), ((0, 1), None)])
def test_the_sample_of_a_set(rows, sample):
    here = table([[1, 1], [1, 1]])
    item = here.union(here.slots(0, "main")[list(rows)].reshape(-1))
    assert here.sample_of(item) == sample
