"""What a tape keeps at the place of a call must not outlive what it was true of."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import torch
from tests.capture.tracing import Traced, left_padded, marked
from torch import Tensor

from forkpoint import Layout
from forkpoint.capture import digest, tape
from forkpoint.capture.recorder import Recorder


def test_two_functions_called_from_one_place_are_two_ops():
    def run(x):
        for function in (torch.sin, torch.cos, torch.sin):
            function(x)
        return x + 1

    traced = Traced(run, {"x": marked(left_padded(1, 3), 2)}, left_padded(1, 3))
    names = [(op.name, event.nth) for op, event in traced.events if op.function in ("sin", "cos")]
    assert names == [("(model)/sin", 0), ("(model)/cos", 0), ("(model)/sin", 1)]


def test_two_functions_of_one_name_called_from_one_place_are_one_op():
    layout = left_padded(1, 3)
    kept = []

    def run(x):
        weight = x.new_ones(1, 3, 3)
        for function in (torch.matmul, Tensor.matmul, Tensor.__rmatmul__):
            kept.append(function(x, weight))
        return kept[0]

    traced = Traced(run, {"x": marked(layout, 3)}, layout)
    assert [event.nth for op, event in traced.events if op.function == "matmul"] == [0, 1, 2]
    rows, same, mixed = (traced.ids(value)[0] for value in kept)
    assert np.array_equal(rows, same)
    assert not np.array_equal(rows, mixed), "weight @ x mixes the tokens"


def test_the_condition_of_a_loop_which_is_compiled_twice_is_one_op():
    def run(x):
        while x.sum() > 1.0:
            x = x * 0.5
        return x

    traced = Traced(run, {"x": marked(left_padded(1, 3), 2)}, left_padded(1, 3))
    passes = [event.nth for op, event in traced.events if op.function == "sum"]
    assert len(passes) > 2
    assert passes == list(range(len(passes)))


def test_one_place_with_other_arguments_has_other_labels():
    layout = left_padded(1, 5)
    kept = []

    def run(x):
        for shift in (1, 2, 1, 3, 3):
            kept.append(x.roll(shift, 1))
        return kept[-1]

    traced = Traced(run, {"x": marked(layout, 2)}, layout)
    for value in kept:
        ids, _ = traced.ids(value)
        assert np.array_equal(ids, value.numpy())


def test_one_place_in_runs_of_other_layouts_has_each_its_labels():
    model = torch.nn.ReLU()
    for layout in (left_padded(2, 4), Layout.from_mask(torch.ones(2, 4)), left_padded(2, 4)):
        value = marked(layout, 2)
        traced = Traced(lambda x: model(x * 1), {"x": value}, layout, model)
        ids, _ = traced.ids(traced.output)
        assert np.array_equal(ids, np.broadcast_to(value.numpy(), ids.shape))


def test_digests_of_suspected_dimensions_are_those_of_its_slices():
    layout = left_padded(1, 4)
    tables = []

    def run(x):
        tables.append(torch.arange(4.0) + 0.5)
        return x + tables[0].sum()

    traced = Traced(run, {"x": marked(layout, 2)}, layout)
    event = traced.event("(model)/add")
    assert event.cells.kind == "open"
    assert np.array_equal(event.digests.reshape(-1), digest.rows(tables[0], (0,)).numpy())
    assert np.array_equal(event.flat, digest.rows(tables[0], ()).numpy())


def test_each_output_of_a_function_is_digested():
    layout = left_padded(1, 4)
    traced = Traced(lambda x: torch.topk(x, 2, dim=-1).values, {"x": marked(layout, 3)}, layout)
    found = [event for op, event in traced.events if op.function == "topk"]
    assert [event.status for event in found] == ["digest", "digest"]
    assert traced.trace.skipped == {}


def test_a_value_that_nobody_was_seen_to_write_to_is_skipped():
    def run(x):
        value = x + 1
        other = value * 2
        with torch._C.DisableTorchFunction():
            value.add_(1)
        return other

    layout = left_padded(1, 3)
    traced = Traced(run, {"x": marked(layout, 2)}, layout)
    assert traced.event("(model)/add").status == "skipped"
    assert traced.event("(model)/mul").status == "digest"


def test_a_gpu_is_asked_for_what_it_has_left_once_a_second(monkeypatch):
    now, asked = [100.0], []

    def left(device):
        asked.append(device)
        return 4 << 30, 80 << 30

    monkeypatch.setattr(tape, "monotonic", lambda: now[0])
    monkeypatch.setattr(tape, "_left", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", left)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1 << 30)
    device = torch.device("cuda", 0)
    for now[0] in (100.0, 100.9, 101.1):
        assert tape._room_on(device) == int(tape.MOST_OF_FREE * (6 << 30))
    assert len(asked) == 2
    assert tape._room_on(torch.device("cpu")) == tape.PENDING_BYTES["cpu"]


def test_a_recorder_and_its_tape_go_without_a_collection():
    gc.disable()
    try:
        recorder = Recorder(left_padded(1, 3), torch.nn.Linear(2, 2))
        gone = weakref.ref(recorder.tape), weakref.ref(recorder)
        del recorder
        assert [seen() for seen in gone] == [None, None]
    finally:
        gc.enable()
