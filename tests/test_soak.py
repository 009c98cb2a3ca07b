"""What comparisons leave behind, counted in live objects."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from forkpoint.capture.history import MAX_TIMES, SPARE, History
from forkpoint.capture.steps import HistoryStep

from .capture.passages import forget
from .soak import compare, small


def live() -> Counter[type]:
    """Live objects of forkpoint's own classes."""
    gc.collect()
    kinds = Counter(map(type, gc.get_objects()))
    return Counter({kind: n for kind, n in kinds.items() if str(kind).startswith("<class 'forkpoint.")})


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("new", [False, True], ids=["one model", "new models"])
def test_comparisons_leave_nothing_behind_that_grows(new, monkeypatch):
    monkeypatch.setattr(
        "forkpoint.capture.history.MAX_TIMES", 1
    )  # so that few comparisons are enough to see it
    monkeypatch.setattr("forkpoint.capture.history.SPARE", 0)
    forget()  # what other tests noted, with other limits
    model = small()
    compare(model, probes=False)
    seen: list[Counter[type]] = []
    for _ in range(8):
        model = small() if new else model
        compare(model, probes=False)
        seen.append(live())
    used = [o for o in gc.get_objects() if type(o) is History]
    assert used
    assert all(len(history.steps) <= history.most_entries for history in used)
    grown = {kind.__name__: (seen[2][kind], seen[-1][kind]) for kind in seen[-1] if seen[-1][kind] > max(c[kind] for c in seen[:5])}  # fmt: skip
    assert grown == {}
    assert seen[-1][HistoryStep] > 0


def test_a_history_is_overgrown_where_most_of_it_repeats():
    history = History()
    history.most_entries = 10
    history.steps = [None] * (MAX_TIMES * 10 + SPARE)
    assert not history.overgrown
    history.steps.append(None)
    assert history.overgrown
