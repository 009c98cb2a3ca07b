"""What a history keeps, and when a passage of it is looked for."""

from __future__ import annotations

import torch
from tests.capture.passages import counted, forget
from tests.capture.test_passages import X, run_of

from forkpoint import Run
from forkpoint.capture import history
from forkpoint.capture.labels import Labels
from forkpoint.capture.recorder import Recorder
from forkpoint.capture.taps import Observation
from forkpoint.explain.session import trace_run


def histories(run: Run) -> list[history.History]:
    return list(Labels.of(run.layout).histories.values())


def test_it_does_not_grow_with_what_is_known():
    run = run_of(lambda y, number: y * number)
    forget()
    trace_run(run)
    (first,) = histories(run)
    trace_run(run)
    steps = len(first.steps)
    for _ in range(3):
        trace_run(run)
    assert histories(run) == [first]
    assert len(first.steps) == steps


def test_it_ends_where_there_are_enough_steps(monkeypatch):
    monkeypatch.setattr(history, "MAX_STEPS", 20)
    run = run_of(lambda y, _: y * 2)
    forget()
    traces = [trace_run(run).trace for _ in range(2)]
    assert len(histories(run)[0].steps) == 20
    assert [op.key for op in traces[0].ops] == [op.key for op in traces[1].ops]


def test_short_passages_are_not_taken_from_elsewhere():
    run = run_of(lambda y, _: y)
    forget()
    with counted() as taken:
        trace_run(run)
    assert min(taken) >= history.SHORTEST


def test_it_waits_for_the_rest_of_a_layer(monkeypatch):
    monkeypatch.setattr(history, "SHORTEST", 6)
    left: list[list[str]] = []

    def read(y: torch.Tensor, number: int) -> torch.Tensor:
        if number == 2:
            for whole in (False, True):
                with torch._C.DisableTorchFunction():
                    recorder.tape.read(whole)
                left.append([getattr(what, "name", "module") for what in recorder.tape.whats])
        return y * 2

    forget()
    run = run_of(read)
    recorder = Recorder(run.layout, run.model)
    run.execute(Observation(recorder))
    assert left == [["module", "module", "linear", "module", "tanh", "mul"], []]


def test_each_length_has_its_own():
    run = Run(
        torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(12)]), [{"input": X}, {"input": X[:, :1]}]
    )
    forget()
    trace_run(run)
    assert len(histories(run)) == 2
    starts = [found.n_rows >> 32 for found in histories(run)]
    assert len(set(starts)) == 2


def test_labels_only_have_their_own():
    run = run_of(lambda y, _: y * 2)
    forget()
    traced = trace_run(run)
    traced.again()
    assert len(histories(run)) == 2


def test_one_call_at_a_time_has_it():
    run = run_of(lambda y, _: y * 2)
    forget()
    trace_run(run)
    (held,) = histories(run)
    first, second = Recorder(run.layout, run.model), Recorder(run.layout, run.model)
    for recorder in (first, second):
        recorder.begin_call(0, {"x": X})
    assert first.tape.history is held
    assert second.tape.history is not held
    first.end_call()
    assert histories(run) == [held]
