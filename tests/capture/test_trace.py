"""Rows of a trace and the events that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from tests.capture.tracing import left_padded

from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.sites import NOWHERE
from forkpoint.capture.trace import Cells, Form, Op, Trace

CELLS = Cells("rows", np.zeros(2, dtype=np.int32))
DIGEST = Form("digest", (1, 2, 4), "float32", True, CELLS, 4, "")
VIEW = Form("view", (1, 2, 4), "float32", True, CELLS, 4, "")
ADD, MUL = Op("layer", "add", NOWHERE.site), Op("layer", "mul", NOWHERE.site)


@pytest.fixture
def trace() -> Trace:
    made = Trace(CoordinateTable(left_padded(1, 2)))
    made.rows += [
        (ADD, 0, DIGEST, 0, 1),
        (MUL, 0, VIEW, 0, 0),
        (ADD, 0, DIGEST, 0, 2),
        (MUL, 0, DIGEST, 2, 0),
        (ADD, 1, DIGEST, 0, 1),
    ]
    return made


def test_an_op_is_counted_within_its_call(trace):
    assert [trace.event(index).nth for index in (4, 0, 2, 1, 3)] == [0, 0, 1, 0, 1]


def test_an_alias_is_so_many_rows_back(trace):
    assert [event.alias for event in trace.events] == [-1, -1, -1, 1, -1]
    assert trace.events[3].status == "alias"


def test_a_row_has_the_slots_after_those_of_the_rows_before(trace):
    slots: list[int] = []

    def digests(slot: int) -> np.ndarray:
        slots.append(slot)
        return np.full(2, slot)

    trace.digests, trace.completion = digests, lambda: None
    assert [None if event.digests is None else int(event.digests[0]) for event in trace.events] == [
        0, None, 1, None, 3,
    ]  # fmt: skip
    assert slots == [0, 1, 3]


def test_it_is_completed_once_and_when_somebody_asks(trace):
    times: list[str] = []
    trace.completion = lambda: times.append("completed")
    assert trace.event(0).digests is None
    assert not times
    assert len(trace.events) == 5
    trace.complete()
    assert times == ["completed"]


def test_each_row_is_numbered_once_however_often_the_ops_are_asked_for(trace, monkeypatch):
    numbered: list[Op] = []
    number = Trace._number
    monkeypatch.setattr(Trace, "_number", lambda self, op: numbered.append(op) or number(self, op))
    assert trace.ops == [ADD, MUL]
    for _ in range(3):
        assert trace.ops is trace.ops
    assert len(numbered) == len(trace.rows)


def test_ops_of_rows_that_are_added_later_come_too(trace):
    assert trace.ops == [ADD, MUL]
    later = Op("layer", "sub", NOWHERE.site)
    trace.rows.append((later, 1, DIGEST, 0, 1))
    assert trace.ops == [ADD, MUL, later]
