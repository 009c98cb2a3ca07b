"""Digests use the threads of torch, and do without where they can't."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import warnings

import pytest
import torch

from forkpoint.capture import digest
from forkpoint.capture.digest import threads, torch_impl

LARGE = torch.randn(1000, 600, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def two_threads(monkeypatch):
    """Two threads for small work too."""
    monkeypatch.setattr(threads, "_SMALL", 5000)
    monkeypatch.setattr(threads, "_ALONE", 5000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_there_are_some_pieces_for_each_thread(two_threads):
    assert threads.piece(100) == 5000  # at least
    assert threads.piece(80_000) == 10_000
    assert threads.piece(1 << 40) == 1 << 18  # at most


@pytest.mark.skipif(sys.platform != "linux", reason="GCC's entry for parallel regions")
def test_the_team_of_torch_is_found_and_used(two_threads):
    assert threads._team.parallel is not None
    seen = set()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def work(data):
        seen.add(threading.get_ident())
        time.sleep(0.01)

    address = ctypes.cast(work, ctypes.c_void_p).value
    threads.run(address, 0, 1 << 20)
    assert len(seen) == 2
    assert threading.get_ident() in seen
    seen.clear()
    threads.run(address, 0, 100)
    assert seen == {threading.get_ident()}


def test_without_a_team_the_caller_does_it_all(two_threads, monkeypatch):
    monkeypatch.setattr(threads._team, "parallel", None)
    assert torch.equal(digest.rows(LARGE, (0,)), torch_impl.rows(LARGE, (0,)))


def test_without_openmp_no_team_is_found(monkeypatch):
    class Library:
        pass

    monkeypatch.setattr(ctypes, "CDLL", lambda path: Library())
    assert threads._find_team() is None

    def missing(path):
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert threads._find_team() is None


def test_several_threads_give_the_same_digests(two_threads):
    expected = torch_impl.rows(LARGE, (0,))
    assert torch.equal(digest.rows(LARGE, (0,)), expected)
    keys = torch.arange(600, dtype=torch.int32)
    assert torch.equal(digest.grid(LARGE, (0, 1), keys), torch_impl.grid(LARGE, (0, 1), keys))
    batch = digest.DigestBatch()
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_without_the_team(two_threads):
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
