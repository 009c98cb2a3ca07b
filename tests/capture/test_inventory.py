"""What a trace knows of a model is looked up anew where the model is not what it was, and only there."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
from torch import nn

from forkpoint import Layout
from forkpoint.capture.inventory import inventory_of
from forkpoint.capture.recorder import Recorder


def model() -> nn.Sequential:
    inner = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    return nn.Sequential(inner, nn.ReLU(), nn.Linear(3, 2, bias=False))


def test_it_names_all_weights_and_modules():
    held = model()
    found = inventory_of(held)
    assert {frame.path for frame in found.frames.values()} == {path for path, _ in held.named_modules()}
    tensors = [*held.named_parameters(), *held.named_buffers()]
    assert found.names == {id(tensor): name for name, tensor in tensors}


def test_it_is_kept_while_nothing_changes():
    held = model()
    assert inventory_of(held) is inventory_of(held)


def replace_a_child(held):
    held[1] = nn.ReLU()


def swap_children(held):
    held[1], held[2] = held[2], held[1]


def rename_a_child(held):
    held._modules["last"] = held._modules.pop("2")


def take_a_child_away(held):
    del held[2]


def replace_a_weight(held):
    held[2].weight = nn.Parameter(torch.zeros(2, 3))


def give_a_bias(held):
    held[2].bias = nn.Parameter(torch.zeros(2))


def drop_a_buffer(held):
    held[0][1].running_mean = None


def convert(held):
    held.half()


def put_on_another_device(held):
    held.to_empty(device="meta")


def change_a_class(held):
    held[1].__class__ = nn.GELU


@pytest.mark.parametrize(
    "change",
    [replace_a_child, swap_children, rename_a_child, take_a_child_away, replace_a_weight, give_a_bias,
     drop_a_buffer, convert, put_on_another_device, change_a_class],
)  # fmt: skip
def test_it_is_made_anew_for_a_model_that_changed(change):
    held = model()
    before = inventory_of(held)
    change(held)
    now = inventory_of(held)
    assert now is not before
    assert {frame.path for frame in now.frames.values()} == {path for path, _ in held.named_modules()}
    assert set(now.names.values()) == {name for name, _ in [*held.named_parameters(), *held.named_buffers()]}


def test_marks_of_weights_say_what_they_are_now():
    held = model()
    layout = Layout.from_mask(torch.ones(1, 3))
    for dtype in (torch.float32, torch.float16):
        recorder = Recorder(layout, held.to(dtype))
        assert recorder.resolver.mark_of(held[2].weight).dtype is dtype


def test_a_module_keeps_its_frame_while_it_keeps_its_path():
    held = model()
    before = inventory_of(held).frames
    held[1] = nn.ReLU()
    now = inventory_of(held).frames
    assert now[id(held[0])] is before[id(held[0])]


@pytest.mark.usefixtures("few_objects")
def test_it_keeps_neither_model_nor_weights_alive():
    held = model()
    Recorder(Layout.from_mask(torch.ones(1, 3)), held)
    weight = weakref.ref(held[2].weight)
    held[2].weight = nn.Parameter(torch.zeros(2, 3))
    gc.collect()
    assert weight() is None
    gone = weakref.ref(held)
    del held
    gc.collect()
    assert gone() is None


def test_it_needs_nothing_else_to_be_imported():
    code = """
        from torch import nn
        from forkpoint.capture.inventory import inventory_of
        model = nn.Linear(2, 2)
        assert inventory_of(model) is inventory_of(model)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
