"""Sequences of a padded batch, told from the tokens' mask alone, are those that the whole mask tells."""

import pytest
import torch

from forkpoint.invariance import sequences


@pytest.mark.parametrize(("q_offset", "queries", "more"), [(0, 9, 0), (4, 5, 0), (8, 1, 0), (4, 3, 6)])
def test_a_causal_mask_needs_no_look(q_offset, queries, more):
    width = q_offset + queries
    generator = torch.Generator().manual_seed(q_offset)
    rows = []
    for begin in range(width):
        end = int(torch.randint(begin + 1, width + 1, (1,), generator=generator))
        rows.append([begin <= column < end for column in range(width)])
    valid = torch.tensor(rows)
    keys = width + more
    causal = torch.arange(keys)[None] <= torch.arange(queries)[:, None] + q_offset
    seen = causal[None] & torch.nn.functional.pad(valid, (0, more))[:, None]
    told = sequences.of_mask(seen[:, None], valid, q_offset, 0, True)
    made = sequences.of_causal_padding(valid, queries, keys, q_offset, 0, torch.device("cpu"))
    assert made is not None
    told = [one for one in told if one.allowed.numel()]
    made = [one for one in made if one.allowed.numel()]
    for one, other in zip(told, made, strict=True):
        assert (one.row, one.queries, one.keys) == (other.row, other.queries, other.keys)
        assert (one.before, one.position, one.allowed.shape) == (
            other.before,
            other.position,
            other.allowed.shape,
        )
        count, length = other.allowed.shape
        position = torch.arange(count)[:, None] + other.position
        assert torch.equal(one.allowed, torch.arange(length)[None] + other.before <= position)


def test_tokens_with_padding_between_them_need_one():
    valid = torch.tensor([[True, False, True]])
    assert sequences.of_causal_padding(valid, 3, 3, 0, 0, torch.device("cpu")) is None
