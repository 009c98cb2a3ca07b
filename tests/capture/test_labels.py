"""Labels: the compressed coordinates of a tensor's elements, against arrays written out in full."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from forkpoint import Layout
from forkpoint.capture.coordinates import NONE, CoordinateTable
from forkpoint.capture.labels import Label, Labels, compress, reshape, spread

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4)


def full_array(draw, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Ids that do not depend on some of their dimensions: compressed by hand, and in full."""
    small = tuple(1 if draw(st.booleans()) else size for size in shape)
    ids = np.arange(math.prod(small), dtype=np.int32).reshape(small)
    return ids, np.broadcast_to(ids, shape)


@given(st.data())
def test_compression_loses_nothing(data):
    shape = data.draw(SHAPES)
    _, full = full_array(data.draw, shape)
    small = compress(full)
    assert small.ndim == full.ndim
    assert np.array_equal(spread(small, shape), full)
    assert all(n == 1 or np.unique(full, axis=d).shape[d] > 1 for d, n in enumerate(small.shape))


def test_an_empty_tensor_belongs_to_nothing():
    assert compress(np.zeros((2, 0, 3), dtype=np.int32)).tolist() == [[[NONE]]]


def factorised(total: int, draw) -> tuple[int, ...]:
    shape: list[int] = []
    while total > 1 and len(shape) < 4:
        factor = draw(st.sampled_from([n for n in range(1, total + 1) if total % n == 0]))
        shape.append(factor)
        total //= factor
    return (*shape, total)


@given(st.data())
def test_a_reshape_of_ids_is_the_reshape_of_the_full_array(data):
    shape = data.draw(SHAPES)
    ids, full = full_array(data.draw, shape)
    new = factorised(math.prod(shape), data.draw)
    moved = reshape(ids, shape, new)
    assert moved.ndim == len(new)
    assert np.array_equal(spread(moved, new), full.reshape(new))


@given(SHAPES, st.data())
def test_only_groups_of_dimensions_that_mix_are_written_out(shape, data):
    ids = np.full((1,) * len(shape), 7, dtype=np.int32)
    new = factorised(math.prod(shape), data.draw)
    assert reshape(ids, shape, new).shape == (1,) * len(new)


# --- Merging and reducing ---------------------------------------------------------------------------


@pytest.fixture
def labels() -> Labels:
    return Labels(CoordinateTable(Layout.from_mask(torch.tensor([[0, 1, 1], [1, 1, 1]]))))


def slots(labels: Labels) -> np.ndarray:
    found = labels.table.slots(0, "main")
    assert found is not None
    return found


def test_equal_labels_are_one_object(labels):
    ids = slots(labels)[:, :, None]
    one, two = labels.make(ids), labels.make(np.broadcast_to(ids, (2, 3, 5)))
    assert one is two
    assert one is not None
    assert one.uid > 0
    assert labels.make(np.full((2, 3), NONE)) is None


def test_a_value_without_tokens_takes_the_coordinates_of_the_other(labels):
    label = labels.make(slots(labels)[:, :, None])
    merged = labels.merge([None, label, None], 4)
    assert merged is not None
    assert merged.q.shape == (1, 2, 3, 1)


def test_a_token_and_a_shifted_one_make_a_value_of_the_one_in_its_place(labels):
    ids = slots(labels)
    here, shifted = labels.make(ids), labels.make(np.roll(ids, 1, axis=1))
    assert labels.merge([here, shifted], 2) is here
    assert labels.merge([shifted, here], 2) is here


def test_two_tokens_of_a_row_neither_in_its_place_make_a_value_of_the_later(labels):
    ids = slots(labels)
    merged = labels.merge([labels.make(np.roll(ids, 1, axis=1)), labels.make(np.roll(ids, 2, axis=1))], 2)
    assert merged is not None
    assert merged.q[1].tolist() == [ids[1, 2], ids[1, 2], ids[1, 1]]


def test_a_token_is_more_specific_than_a_set(labels):
    ids = slots(labels)
    label = labels.make(ids)
    pooled = labels.reduce(label, [1], keepdim=True)
    for order in ([label, pooled], [pooled, label]):
        assert labels.merge(order, 2) is label


def test_queries_and_keys_make_a_table(labels):
    ids = slots(labels)
    query, key = labels.make(ids[:, None, :, None]), labels.make(ids[:, None, None, :])
    table = labels.merge([query, key], 4)
    assert table is not None
    assert table.k is not None
    assert np.array_equal(table.q, ids[:, None, :, None])
    assert np.array_equal(table.k, ids[:, None, None, :])
    assert labels.merge([table, key], 4) is table
    assert labels.merge([key, table], 4) is table
    assert labels.merge([table, query], 4) is table
    summed = labels.reduce(table, [3], keepdim=False)
    assert summed is not None
    assert summed.k is None
    assert np.array_equal(summed.q, ids[:, None, :])
    by_key = labels.reduce(table, [2], keepdim=False)
    assert by_key is not None
    assert np.array_equal(by_key.q, ids[:, None, :])


def test_a_reduction_over_tokens_belongs_to_their_set(labels):
    ids = slots(labels)
    label = labels.make(ids[:, :, None])
    pooled = labels.reduce(label, [1], keepdim=False)
    assert pooled is not None
    assert pooled.q.shape == (2, 1)
    assert labels.table.members[pooled.q[0, 0]] == frozenset(ids[0, 1:].tolist())
    assert labels.table.members[pooled.q[1, 0]] == frozenset(ids[1].tolist())
    assert labels.reduce(label, [2], keepdim=True) is label
    assert labels.reduce(None, [0], keepdim=True) is None


def test_a_part_of_a_buffer_without_tokens_takes_none_from_the_values_it_is_added_to(labels):
    """Only a dimension that columns follow has places without a token, such as the end of a padded chunk."""
    values = labels.make(slots(labels)[:, :, None])
    everything = labels.table.union(slots(labels))
    for written in (everything, int(slots(labels)[0, 0])):
        buffer = labels.make(np.asarray([[[written, written, -1, -1]]], dtype=np.int32))
        for operands in ([values, buffer], [buffer, values]):
            assert (labels.merge(operands, 3).q != -1).all()
    chunks = np.asarray([[[0, 1], [2, -1]]], dtype=np.int32)
    of_chunks = labels.make(np.asarray([[[everything], [everything]]], dtype=np.int32) - [[[0], [1]]])
    assert labels.merge([labels.make(chunks), of_chunks], 3).q[0, 1, 1] == -1


# --- Loops over columns -------------------------------------------------------------------------------


def column(labels: Labels, t: int) -> Label:
    found = labels.apply(labels.make(slots(labels)[:, :, None]), lambda ids: ids[:, t])
    assert found is not None
    return found


def worked(labels: Labels, *operands: Label) -> Label:
    found = labels.merge(operands, 2)
    assert found is not None
    return found


@pytest.mark.parametrize("order", [range(3), reversed(range(3))])
def test_a_pass_of_a_loop_belongs_to_the_column_that_it_takes_up(labels, order):
    state = None
    for t in order:
        step = column(labels, t)
        assert step.depth == 0
        if state is None:
            state = worked(labels, step)  # and a state without tokens
            continue
        decayed = worked(labels, state)
        for operands in ([decayed, step], [step, decayed]):
            state = worked(labels, *operands)
            assert state.q[:, 0].tolist() == slots(labels)[:, t].tolist()
            assert 0 < state.depth < decayed.depth


def test_what_a_gate_is_computed_of_is_nearer_to_its_column_than_the_state(labels):
    gate = worked(labels, worked(labels, column(labels, 0)))
    state = worked(labels, worked(labels, gate, column(labels, 0)))
    earlier = worked(labels, worked(labels, gate, column(labels, 2)))
    assert worked(labels, gate, worked(labels, earlier)).q.tolist() == gate.q.tolist()
    assert state.depth > gate.depth


def test_only_one_column_of_several_has_a_depth(labels):
    whole = labels.make(slots(labels)[:, :, None])
    assert labels.merge([whole], 3) is whole
    step = Labels(CoordinateTable(Layout.from_mask(torch.ones(2, 1))))
    only = step.make(slots(step))
    assert step.merge([only], 2) is only
