"""What has no token of its own but belongs to a row: states, queries, images and what stands beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.joined import joined, noise, padded, row
from torch import Tensor

from forkpoint import Layout
from forkpoint.match.join import OF_OTHERS

WIDE = noise(7, 7, seed=3)


# --- Made as often as there are rows ------------------------------------------------------------------------


@pytest.mark.parametrize(("spoilt", "differing"), [(None, 0), (2, 0), (1, 1)])
def test_a_state_without_tokens_is_that_of_its_row(spoilt, differing):
    def program(x: Tensor, spoilt: int | None = None) -> Tensor:
        state = torch.ones(x.shape[0], 5) * 2
        if spoilt is not None:
            state[spoilt] += 1
        return x + (state * 3).sum(1)[:, None, None]

    x = noise(3, 4, 7)
    found = joined(program, {"x": x[1:2]}, {"x": x, "spoilt": spoilt})
    state = row(found, "(model)/mul", 1)
    assert (state.compared, state.differing, state.reason) == (1, differing, "")


def test_what_is_as_long_as_the_tokens_is_lined_up_by_them_first():
    def program(x: Tensor) -> Tensor:
        table = torch.arange(x.shape[1]).float()[:, None] * torch.ones(7)
        return x + table

    b, layout = padded(noise(1, 4, 7), right=2)
    table = row(joined(program, {"x": noise(1, 4, 7)}, {"x": b}, None, layout), "(model)/mul")
    assert (table.compared, table.differing) == (4, 0)


# --- Images -------------------------------------------------------------------------------------------------


def classified(pixel_values: Tensor, spoilt: int | None = None) -> Tensor:
    rows = len(pixel_values)
    patches = F.conv2d(pixel_values, noise(7, 3, 2, 2, seed=1).sign(), stride=2).flatten(2).transpose(1, 2)
    beside = torch.ones(rows, 1, 7)
    if spoilt is not None:
        beside = beside + F.one_hot(torch.tensor(spoilt), rows)[:, None, None]
    return torch.cat([beside, patches], 1)[:, 0] * 2


@pytest.mark.parametrize(("spoilt", "differing"), [(None, 0), (0, 0), (2, 1)])
def test_what_is_put_beside_the_patches_of_an_image_is_the_image_s(spoilt, differing):
    pixels = noise(3, 3, 4, 4).sign()
    found = joined(classified, {"pixel_values": pixels[2:]}, {"pixel_values": pixels, "spoilt": spoilt})
    together = row(found, "(model)/cat")
    assert (together.compared, together.differing, together.left_out) == (1, differing, 0)
    assert row(found, "(model)/mul").differing == differing


def shown(input_ids: Tensor, pixel_values: Tensor, spoilt: int | None = None) -> dict[str, Tensor]:
    text = F.one_hot(input_ids, 7).float()
    seen = (pixel_values * 2).mean((1, 2, 3))
    if spoilt is not None:
        seen = seen + F.one_hot(torch.tensor(spoilt), len(seen))
    image = F.one_hot(seen.round().long().clamp(0, 6), 7).float() + 1
    return {"scores": text[:, -1] @ image.T, "image": image}


@pytest.mark.parametrize(("spoilt", "status"), [(None, "equal"), (0, "equal"), (1, "differs")])
def test_an_image_beside_a_text_is_that_of_its_row(spoilt, status):
    ids, pixels = torch.arange(12).reshape(3, 4) % 7, noise(3, 3, 4, 4).sign()
    alone = {"input_ids": ids[1:2], "pixel_values": pixels[1:2]}
    found = joined(shown, alone, {"input_ids": ids, "pixel_values": pixels, "spoilt": spoilt})
    assert not [r for r in found.join.rows if r.status == "not compared" and r.floating]
    assert row(found, "(model)/mul").status == "equal"
    assert row(found, "(model)/add").status == status
    scores = row(found, "(model)/matmul")
    assert (scores.compared, scores.status) == (1, status)  # the score of its own image, no other


# --- What stands for other tokens in each run ---------------------------------------------------------------


@pytest.mark.parametrize(("left", "right", "status"), [(0, 3, "not compared"), (3, 0, "equal")])
def test_a_state_after_the_padding_has_no_partner(left, right, status):
    def program(x: Tensor) -> Tensor:
        return x[:, -2:] * 2

    b, layout = padded(noise(1, 5, 7), left, right)
    state = row(joined(program, {"x": noise(1, 5, 7)}, {"x": b}, None, layout), "(model)/mul")
    assert (state.status, state.reason) == (status, OF_OTHERS if status == "not compared" else "")


def test_a_value_of_no_token_in_one_run_is_not_said_to_be_of_others():
    def program(x: Tensor, shift: bool = False) -> Any:
        return torch.sqrt(torch.full((9, 3), 4.0) if shift else x[:, -1:, :1])

    found = joined(program, {"x": noise(1, 5, 7).abs()}, {"x": noise(1, 5, 7).abs(), "shift": True})
    lost = row(found, "(model)/sqrt")
    assert lost.status == "not compared"
    assert lost.reason != OF_OTHERS


# --- Several kinds of passes --------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [0.0, 1.0])
def test_passes_with_attention_weights_are_compared_among_themselves(spoil):
    def program(x: Tensor, spoil: float = 0.0) -> Tensor:
        products: list[Tensor] = []
        for other in (x.mT, WIDE.sign()):
            products.append(torch.matmul(x, other) + spoil * (other.dim() == 2))
        return products[0].softmax(-1) @ x + products[1]

    x = noise(1, 4, 7).sign()
    b, layout = padded(x, left=2)
    found = joined(program, {"x": x}, {"x": b, "spoil": spoil}, None, layout)
    assert row(found, "(model)/matmul").reason == ""
    assert row(found, "(model)/matmul").compared == 8
    assert row(found, "(model)/add").differing == (4 if spoil else 0)


def test_tokens_are_known_though_their_features_are_as_many():
    def program(x: Tensor) -> Tensor:
        return x[:, :2].flip(1).contiguous().flip(1) * 2

    a, b = noise(1, 7, 7), noise(2, 9, 7)
    b[0, :7] = a[0]
    layout = Layout.from_mask(torch.tensor([[1] * 7 + [0] * 2, [1] * 9]))
    product = row(joined(program, {"x": a}, {"x": b}, None, layout), "(model)/mul")
    assert (product.compared, product.differing, product.reason) == (2, 0, "")
