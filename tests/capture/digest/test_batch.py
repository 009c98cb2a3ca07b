"""Batches: the digests of `rows`, in the order of the slots, whatever is queued."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.capture.digest.tensors import filled, rows_of, tensors_and_dims

from forkpoint.capture import digest
from forkpoint.capture.digest import batch as batch_module
from forkpoint.capture.digest import definition, torch_impl
from forkpoint.support.memory import Memory


@settings(max_examples=100)
@given(
    queued=st.lists(tensors_and_dims(most=120), max_size=12),
    flushes=st.sets(st.integers(0, 11)),
    fast=st.booleans(),
    limit=st.none() | st.integers(1, 4000),
)
def test_a_batch_gives_the_digests_of_rows(queued, flushes, fast, limit):
    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(batch_module, "table_implementation", lambda device: None)
        batch = digest.DigestBatch(None if limit is None else Memory(limit).shelf())
        for slot, (x, dims) in enumerate(queued):
            assert batch.add(x, dims) == slot
            if slot in flushes:
                batch.flush()
        results = batch.results()
    assert len(results) == len(queued)
    for slot, (x, dims) in enumerate(queued):
        assert results[slot].tolist() == definition.rows(x, dims)
        assert results.rows[slot] == rows_of(x, dims)


@pytest.mark.parametrize("limit", [1, 200, 10**6])
def test_digests_of_several_devices_lie_in_parts_of_their_own(monkeypatch, limit):
    monkeypatch.setattr(batch_module, "table_implementation", lambda device: None)
    room = Memory(limit)
    batch = digest.DigestBatch(room.shelf())
    tensors = [filled((rows, 3), torch.float32, seed) for seed, rows in enumerate((4, 0, 7, 1, 5, 0, 2))]
    for slot, x in enumerate(tensors):
        known = digest.planned(x, (0,))
        known.device = -1 - slot % 2
        assert batch.push(x, known) == slot
        if slot == 1:
            batch._queues[-2].device = SimpleNamespace(type="elsewhere")  # from where all comes at the end
        elif slot == 4:
            batch.flush()
    results = batch.results()
    assert [results[slot].tolist() for slot in range(len(tensors))] == [
        torch_impl.rows(x, (0,)).tolist() for x in tensors
    ]
    assert room.most_in_memory <= limit / 2


def test_many_tensors_of_all_sizes():
    shapes = [(1, tokens, width) for tokens in (1, 5, 50) for width in (1, 3, 64, 576, 1536)] * 8
    tensors = [filled(shape, torch.float32, seed) for seed, shape in enumerate(shapes)]
    tensors += [x.bfloat16() for x in tensors]
    tensors += [filled((1, 9, 50, 64), torch.float32, 9).transpose(1, 2) for _ in range(5)]
    batch = digest.DigestBatch()
    slots = [batch.add(x, (0, 1)) for x in tensors]
    results = batch.results()
    for slot, x in zip(slots, tensors, strict=True):
        assert results[slot].tolist() == torch_impl.rows(x, (0, 1)).tolist()


def test_results_can_be_asked_for_again_and_go_on():
    batch = digest.DigestBatch()
    assert len(batch.results()) == 0
    batch.add(torch.ones(2, 3), (0,))
    first = batch.results()
    batch.add(torch.zeros(1, 3), (0,))
    second = batch.results()
    assert second[0].tolist() == first[0].tolist()
    assert len(second) == 2


@pytest.mark.usefixtures("few_objects")
def test_tensors_are_kept_until_the_flush_and_not_longer():
    batch = digest.DigestBatch()
    x = torch.ones(4, 8)
    odd = torch.ones(4, 7, dtype=torch.bfloat16)
    alive = [weakref.ref(x), weakref.ref(odd)]
    assert digest.PlanGroup([digest.planned(tensor, (0,)) for tensor in (x, odd)]).n_bytes == 4 * 32 + 4 * 16
    batch.add(x, (0,))
    batch.add(odd, (0,))
    del x, odd
    gc.collect()
    assert all(ref() is not None for ref in alive)
    batch.flush()
    assert all(ref() is None for ref in alive)
    assert batch.results()[0].tolist() == definition.rows(torch.ones(4, 8), (0,))


def test_a_refused_tensor_takes_no_slot():
    batch = digest.DigestBatch()
    with pytest.raises(ValueError, match="ascending"):
        batch.add(torch.ones(2, 3), (1, 0))
    assert batch.add(torch.ones(2, 3), (0, 1)) == 0


def test_a_flush_that_failed_can_be_tried_again(monkeypatch):
    odd = [torch.full((2, 3), value, dtype=torch.bfloat16) for value in (1.0, 2.0, 3.0)]
    batch = digest.DigestBatch()
    for x in odd:
        batch.add(x, (0,))
    pack_rows, calls = torch_impl.pack_rows, []

    def fail_once(*args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return pack_rows(*args)

    monkeypatch.setattr(torch_impl, "pack_rows", fail_once)
    with pytest.raises(RuntimeError, match="no memory"):
        batch.flush()
    results = batch.results()
    assert [results[slot].tolist() for slot in range(3)] == [definition.rows(x, (0,)) for x in odd]


def test_slots_are_integers_in_order():
    batch = digest.DigestBatch()
    assert [batch.add(torch.ones(2), ()) for _ in range(3)] == [0, 1, 2]


def test_many_can_be_queued_at_once():
    tensors = [torch.randn(1, n, 4) for n in (2, 3, 5)]
    plans = [digest.planned(tensor, (0, 1)) for tensor in tensors]
    one, many = digest.DigestBatch(), digest.DigestBatch()
    for tensor, plan in zip(tensors, plans, strict=True):
        one.push(tensor, plan)
    many.extend(tensors[:1], digest.PlanGroup(plans[:1]))
    many.extend(tensors[1:], digest.PlanGroup(plans[1:]))
    many.extend([], digest.PlanGroup([]))
    mine, theirs = one.results(), many.results()
    assert len(mine) == len(theirs) == 3
    assert all((mine[slot] == theirs[slot]).all() for slot in range(3))


def test_what_can_t_be_read_where_it_lies_is_copied():
    odd = torch.arange(9, dtype=torch.uint8)[1:].view(2, 4)
    negated = torch.view_as_complex(torch.randn(3, 4, 2)).conj().imag
    apart = torch.randn(4, 3).t()
    batch = digest.DigestBatch()
    slots = [batch.add(x, (0,)) for x in (odd, negated, apart, odd.clone())]
    digests = batch.results()
    for slot, x in zip(slots, (odd, negated, apart, odd), strict=True):
        assert digests[slot].tolist() == digest.rows(x.contiguous().clone(), (0,)).tolist()


def test_digests_are_those_of_the_values_at_the_flush():
    batch = digest.DigestBatch()
    value = torch.ones(1, 3)
    batch.add(value, (0,))
    wanted = digest.rows(value, (0,)).numpy()
    digests = batch.results()
    value.zero_()
    assert (digests[0] == wanted).all()
