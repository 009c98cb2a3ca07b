"""Traces with and without passages: the fast way against the slow, obvious one."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np

from forkpoint import Run
from forkpoint.capture import labels
from forkpoint.capture.history import History
from forkpoint.capture.passages import Passage
from forkpoint.capture.trace import Trace
from forkpoint.explain.session import Traced, trace_run


@contextmanager
def step_by_step() -> Generator[None]:
    """Every entry of a tape is worked out by itself."""
    with patch.object(History, "follow", lambda *_: 0):
        yield


@contextmanager
def counted() -> Generator[list[int]]:
    """How many entries each passage had that was taken over."""
    taken: list[int] = []
    follow = Passage.follow

    def count(self: Passage, *given: object) -> bool:
        same = follow(self, *given)  # type: ignore[arg-type]
        if same:
            taken.append(self.length)
        return same

    with patch.object(Passage, "follow", count):
        yield taken


def forget() -> None:
    """Nothing is left of earlier traces."""
    labels._recent.clear()


def both(run: Run, times: int = 2) -> tuple[Traced, list[Traced], int]:
    """A run traced step by step, then several times with passages; and how many entries those took over."""
    forget()
    with step_by_step():
        slow = trace_run(run)
    forget()
    with counted() as taken:
        fast = [trace_run(run) for _ in range(times)]
    return slow, fast, sum(taken)


def assert_same(slow: Trace, fast: Trace) -> None:
    """Two traces of one run say the same, event by event."""
    assert [op.key for op in fast.ops] == [op.key for op in slow.ops]
    assert len(fast.events) == len(slow.events)
    for index, (one, other) in enumerate(zip(slow.events, fast.events, strict=True)):
        where = f"event {index}, {slow.ops[one.op].name}"
        for name in ("op", "call", "status", "shape", "dtype", "floating", "nth", "alias", "reason"):
            assert getattr(one, name) == getattr(other, name), f"{where}: {name}"
        assert np.array_equal(one.width, other.width), where
        assert (one.cells is None) == (other.cells is None), where
        if one.cells is not None and other.cells is not None:
            assert one.cells.kind == other.cells.kind, where
            assert np.array_equal(one.cells.ids, other.cells.ids), where
        for name in ("digests", "flat"):
            mine, theirs = getattr(one, name), getattr(other, name)
            assert (mine is None) == (theirs is None), f"{where}: {name}"
            assert mine is None or np.array_equal(mine, theirs), f"{where}: {name}"


def assert_same_labels(slow: Traced, fast: Traced) -> None:
    """The results have the same coordinates."""
    for before, now in zip(slow.results, fast.results, strict=True):
        for name, (_, label) in before.items():
            _, other = now[name]
            assert (label is None) == (other is None), name
            if label is not None and other is not None:
                assert np.array_equal(label.q, other.q), name
