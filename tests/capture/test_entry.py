"""What is known of a forward call's inputs."""

from __future__ import annotations

import pytest
import torch

from forkpoint import Layout
from forkpoint.capture.coordinates import CoordinateTable
from forkpoint.capture.entry import input_label, intake, token_lengths
from forkpoint.capture.labels import Labels

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
INPUTS = [
    {"input_ids": torch.zeros(2, 4, dtype=torch.long)},
    {"input_ids": torch.zeros(2, 4, dtype=torch.long), "attention_mask": MASK, "use_cache": False},
    {"attention_mask": MASK, "input_ids": torch.zeros(2, 4, dtype=torch.long)},
    {"inputs_embeds": torch.zeros(2, 4, 3)},
    {"inputs_embeds": torch.zeros(2, 3, 4)},
    {"input_values": torch.zeros(2, 4)},
    {"input_ids": torch.zeros(2, 4), "labels": torch.zeros(2, 4, dtype=torch.long)},
    {"input_ids": torch.zeros(2, 4, dtype=torch.long), "encoder_outputs": (torch.zeros(2, 4, 3),)},
    {"encoder_outputs": (torch.zeros(2, 4, 3),), "decoder_input_ids": torch.zeros(2, 4, dtype=torch.long)},
]


@pytest.mark.parametrize("call", [0, 1])
def test_it_is_the_same_however_often_it_is_asked(call):
    layout = Layout.from_mask(MASK)
    shared = Labels(CoordinateTable(layout))
    for inputs in INPUTS * 2:
        found = intake(shared, call, inputs)
        assert found.lengths == token_lengths(shared.table, call, inputs)
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        assert found.labels == {
            name: input_label(shared, call, inputs, name, value) for name, value in tensors.items()
        }


def test_one_tensor_under_two_names_is_not_taken_for_two():
    layout = Layout.from_mask(torch.ones(2, 2))
    shared = Labels(CoordinateTable(layout))
    same, other = torch.zeros(2, 4, 2), torch.zeros(2, 4, 2)
    for second in (other, same, other):
        inputs = {"pixel_values": same, "input_features": second}
        expected = {name: input_label(shared, 0, inputs, name, value) for name, value in inputs.items()}
        assert intake(shared, 0, inputs).labels == expected


def test_it_is_worked_out_once():
    labels = Labels(CoordinateTable(Layout.from_mask(MASK)))
    assert intake(labels, 0, INPUTS[1]) is intake(labels, 0, INPUTS[1])
    assert intake(labels, 0, INPUTS[7]) is not intake(
        labels, 0, INPUTS[7]
    )  # what is inside may have other shapes
