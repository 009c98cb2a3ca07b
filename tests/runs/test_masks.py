"""Masks of any dtype and form, and lengths, say where the tokens are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forkpoint import InputError, Layout

IDS = torch.tensor([[1, 2, 3, 0, 0]])
NEVER = float("-inf")


def positions(**inputs: Any) -> list[list[int]]:
    return Layout.read([inputs]).calls[0]["main"].position.tolist()


REAL, LEFT, ALL = [[0, 1, 2, -1, -1]], [[-1, -1, -1, 0, 1]], [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("name", ["padding_mask", "key_padding_mask", "src_key_padding_mask"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_a_mask_of_padding(name, dtype):
    mask = torch.tensor([[0, 0, 0, 1, 1]]).to(dtype)
    assert positions(input_ids=IDS, **{name: mask}) == REAL
    assert positions(input_ids=IDS, **{name: torch.zeros_like(mask)}) == ALL
    assert positions(input_ids=IDS, **{name: torch.ones_like(mask)}) == ALL, (
        "it names no token, so it is no mask"
    )


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_a_padding_mask_of_real_tokens_shows_it(dtype):
    mask = torch.tensor([[1, 1, 1, 0, 0]]).to(dtype)
    assert positions(input_ids=IDS, padding_mask=mask) == REAL
    two, full = torch.cat([IDS + 1, IDS + 5]), torch.ones(1, 5, dtype=dtype)
    assert positions(input_ids=two, padding_mask=torch.cat([mask, full])) == [*REAL, *ALL]
    assert positions(input_ids=IDS, key_padding_mask=mask) == LEFT, "by torch's convention True is padding"


def test_a_padding_mask_that_can_be_read_both_ways_is_refused_and_the_choice_named():
    with pytest.raises(
        InputError, match=r"padding_mask can be read both ways.*from_mask\(mask\).*from_mask\(~mask\)"
    ):
        positions(
            input_ids=IDS + torch.arange(5), padding_mask=torch.tensor([[True, True, True, False, False]])
        )


def test_a_padding_mask_with_holes_is_refused():
    with pytest.raises(InputError, match="not at an end"):
        positions(input_ids=IDS, padding_mask=torch.tensor([[True, False, True, False, True]]))


def test_masks_that_are_added_to_scores():
    assert positions(input_ids=IDS, key_padding_mask=torch.tensor([[0, 0, 0, NEVER, NEVER]])) == REAL
    assert positions(input_ids=IDS, attention_mask=torch.tensor([[0, 0, 0, -1e9, -1e9]])) == REAL


def test_masks_of_queries_and_keys():
    sees = torch.ones(5, 5).tril().bool() & torch.tensor([1, 1, 1, 0, 0]).bool()
    assert positions(input_ids=IDS, attention_mask=sees[None, None]) == REAL
    added = torch.where(sees, 0.0, torch.finfo(torch.float16).min)
    assert positions(input_ids=IDS, attention_mask=added[None, None]) == REAL
    biased = torch.where(sees, -torch.arange(5.0), -1e9)
    assert positions(input_ids=IDS, attention_mask=biased[None, None]) == REAL, "biases hide nothing"
    assert positions(input_ids=IDS[:, 2:], attention_mask=sees[None, None, 2:]) == [[0, -1, -1]], (
        "after a cache of two"
    )


@pytest.mark.parametrize("name", ["lengths", "input_lengths", "seq_lens", "length"])
def test_lengths(name):
    assert positions(input_ids=IDS, **{name: torch.tensor([3])}) == REAL
    features = torch.randn(1, 5, 7)
    assert positions(x=features, **{name: torch.tensor([3])}) == REAL
    assert positions(x=features, **{name: torch.tensor([7])}) == [list(range(7))], "the last dimension"


def test_lengths_of_something_else_are_no_layout():
    for name in ("target_lengths", "lengths"):
        assert positions(input_ids=IDS, **{name: torch.tensor([9])}) == ALL


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_features_before_columns(channels):
    x, mask = torch.randn(2, channels, 5), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    assert positions(x=x, attention_mask=mask) == [*REAL, *ALL]
    assert positions(input_values=x, padding_mask=mask[:, None].expand(2, channels, 5)) == [*REAL, *ALL]


def test_audio_of_one_or_two_channels_has_its_samples_last():
    assert positions(input_values=torch.randn(1, 2, 5)) == ALL
    assert positions(input_values=torch.randn(1, 5, 80)) == ALL, "frames of features"
