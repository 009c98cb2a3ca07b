"""Digests use several threads, and leave those of others alone."""

from __future__ import annotations

import os
import threading
import warnings

import pytest
import torch

from forkpoint.capture import digest
from forkpoint.capture.digest import threads, torch_impl

LARGE = torch.randn(1000, 600, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads for small work too."""
    monkeypatch.setattr(threads, "_PIECE_WORDS", 5000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_pieces_follow_the_threads_of_torch(two_threads):
    assert threads.pieces(10) == 1
    assert threads.pieces(1 << 24) == 2
    torch.set_num_threads(1)
    assert threads.pieces(1 << 24) == 1


def test_several_threads_give_the_same_digests(two_threads):
    expected = torch_impl.rows(LARGE, (0,))
    assert torch.equal(digest.rows(LARGE, (0,)), expected)
    keys = torch.arange(600, dtype=torch.int32)
    assert torch.equal(digest.grid(LARGE, (0, 1), keys), torch_impl.grid(LARGE, (0, 1), keys))
    batch = digest.Batch()
    sizes = [1, 600, 3, 0, 999, 17, 500]
    for size in sizes:
        batch.add(LARGE[:size], (0,))
    results = batch.results()
    for slot, size in enumerate(sizes):
        assert results[slot].tolist() == expected[:size].tolist()


def test_callers_in_several_threads(two_threads):
    expected = torch_impl.rows(LARGE, (0,))
    wrong = []

    def work():
        wrong.extend(1 for _ in range(20) if not torch.equal(digest.rows(LARGE, (0,)), expected))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_an_error_waits_for_the_other_threads(two_threads):
    done = []

    def piece(number):
        if number == 0:
            raise ValueError("first")
        done.append(number)

    with pytest.raises(ValueError, match="first"):
        threads.run(piece, [(0,), (1,), (2,)])
    assert sorted(done) == [1, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_its_own_threads(two_threads):
    expected = digest.rows(LARGE, (0,)).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        os._exit(0 if digest.rows(LARGE, (0,)).tolist() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_digests_beside_the_threads_of_torch(two_threads):
    """One after the other in one loop, as a traced run does: nothing hangs, nothing changes."""
    a = torch.randn(600, 600, generator=torch.Generator().manual_seed(1))
    product = a @ a
    expected = digest.rows(product, (0,))
    for _ in range(50):
        assert torch.equal(digest.rows(a @ a, (0,)), expected)
