"""A traced pair of runs: what a trace leaves to the garbage collector, and runs in float64 that nobody watches."""

from __future__ import annotations

import gc
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.joined import session
from tests.plain import Model, batch, ids, pair
from torch import Tensor, nn

from forkpoint.capture.boundaries import Boundaries
from forkpoint.capture.recorder import Recorder
from forkpoint.capture.resolver import Resolver
from forkpoint.errors import CaptureError
from forkpoint.explain.locate import fetch_ops
from forkpoint.explain.session import trace_faithfully, trace_run
from forkpoint.probes.watchers import Store
from forkpoint.promotion import Promotion
from forkpoint.runs.run import Run


@pytest.fixture
def collected() -> Generator[list[int]]:
    """The generations that Python looks for garbage in."""
    generations: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            generations.append(info["generation"])

    gc.collect()
    gc.callbacks.append(note)
    try:
        yield generations
    finally:
        gc.callbacks.remove(note)


def test_what_a_trace_makes_is_not_searched_for_garbage(collected):
    run = pair(Model(), batch(ids()), batch(ids()))[0]
    trace_run(run)
    collected.clear()
    before = gc.get_freeze_count()
    traced = trace_run(run)
    made = gc.get_count()[0]
    assert collected == []
    assert traced.trace.rows
    assert made < 100  # of the objects that were made since the last search
    assert gc.isenabled()
    assert gc.get_freeze_count() in (0, before)


def test_what_somebody_froze_stays_frozen():
    run = pair(Model(), batch(ids()), batch(ids()))[0]
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        assert frozen > 2000
        trace_run(run)
        assert gc.get_freeze_count() >= 0.9 * frozen
    finally:
        gc.unfreeze()


def test_collection_that_was_off_stays_off():
    gc.disable()
    try:
        trace_run(pair(Model(), batch(ids()), batch(ids()))[0])
        assert not gc.isenabled()
    finally:
        gc.enable()


class Varied(Model):
    """Also returns what has other tokens, none, or another shape in float64."""

    def forward(self, **inputs: Any) -> dict[str, Tensor]:
        logits = super().forward(**inputs)["logits"]
        long = logits.new_zeros(logits.shape[1] + (logits.dtype == torch.float64))
        return {"logits": logits, "last": logits[:, -1], "mean": logits.mean((0, 1)), "long": long}


def test_a_run_in_float64_that_nobody_watches_is_the_one_that_is_watched():
    both = session(*pair(Varied(), batch(ids()), batch(ids(), left=1)))
    for traced in (both.a, both.b):
        unwatched, watched = traced.in_float64(Promotion()), traced.again(promotion=Promotion())
        assert [*map(list, unwatched)] == [*map(list, watched)]
        for name, (value, label) in unwatched[0].items():
            assert value.dtype == torch.float64
            assert torch.equal(value, watched[0][name][0])
            if name != "long":
                assert label is watched[0][name][1]


def test_the_random_generators_are_as_they_were_after_it():
    class Drawing(Model):
        def mix(self, hidden: Tensor, **inputs: Any) -> Tensor:
            return F.dropout(hidden, 0.5)

    traced = session(*pair(Drawing(), batch(ids()), batch(ids()))).a
    before = torch.get_rng_state()
    first, second = (traced.in_float64(Promotion())[0]["logits"][0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_tells_how_far_it_is():
    class Curious:
        def begin(self, stage: str) -> None:
            """Nobody asks."""

        def count(self, done: Any, total: int | None) -> None:
            counts.append((done, total))

    counts: list[tuple[Any, int | None]] = []
    traced = session(*pair(Model(), batch(ids()), batch(ids()))).a
    traced.progress = Curious()
    traced.in_float64(Promotion())
    ((done, total),) = counts
    assert total is not None
    assert total / 2 <= done() <= total


def test_functions_that_cannot_be_looked_at_leave_the_modules(monkeypatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise AttributeError("deliberate")

    run = Run(nn.Sequential(nn.Linear(3, 3)), {"input": torch.ones(1, 2, 3)})
    monkeypatch.setattr(Resolver, "treat", fail)
    traced = trace_faithfully(run)
    assert not traced.functions
    assert traced.remarks == (
        "single functions of this model could not be looked at; only its modules were watched",
    )
    monkeypatch.setattr(Boundaries, "boundary", fail)
    with pytest.raises(CaptureError, match="could not be traced: AttributeError: deliberate"):
        trace_faithfully(run)


# --- what nobody wants to know ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs", [batch(ids()), [batch(ids()), batch(ids())]], ids=["one call", "two calls"]
)
def test_a_run_is_no_longer_recorded_when_all_is_kept_that_is_wanted(inputs, monkeypatch):
    model = Model()
    traced = session(*pair(model, inputs, inputs)).a
    event = next(e for e in traced.trace.events if traced.trace.ops[e.op].function == "tanh")
    rows: list[int] = []
    held = Recorder.hold_weights
    monkeypatch.setattr(
        Recorder, "hold_weights", lambda self: rows.append(len(self.trace.rows)) or held(self)
    )
    ran: list[Any] = []
    model.head.register_forward_hook(lambda *_: ran.append(1))
    op = traced.trace.ops[event.op]
    kept = []
    for watcher in (None, Store(1 << 20)):  # who watches wants to see all of it
        kept += fetch_ops(traced, [(op, event)], promotion=Promotion(), watcher=watcher)
    some, every = rows
    assert some < every
    assert len(ran) == 2 * len(traced.run.calls)  # the model itself runs on
    mine, expected = kept
    assert torch.equal(mine.outputs[0], expected.outputs[0])
    assert mine.outputs[0].dtype == torch.float64
    assert mine.output_labels == expected.output_labels


def test_a_run_in_which_what_is_wanted_does_not_come_is_recorded_to_its_end(monkeypatch):
    traced = session(*pair(Model(), batch(ids()), batch(ids()))).a
    event = next(e for e in traced.trace.events if traced.trace.ops[e.op].function == "tanh")
    rows: list[int] = []
    held = Recorder.hold_weights
    monkeypatch.setattr(
        Recorder, "hold_weights", lambda self: rows.append(len(self.trace.rows)) or held(self)
    )
    op = traced.trace.ops[event.op]
    assert fetch_ops(traced, [(op, replace(event, nth=7))], promotion=Promotion()) == [None]
    assert rows == [len(traced.trace.rows)]
