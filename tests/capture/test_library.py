"""How operators of libraries move tokens: what is declared, what other sizes answer, what a changed row shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.capture.tracing import Traced, grid
from torch import Tensor

from forkpoint import Layout
from forkpoint.capture.rules import RULES

LAYOUT = Layout.from_mask(torch.ones(2, 3, dtype=torch.long))
WIDTH = 5


@torch.library.custom_op("forkpoint_tests::flat_product", mutates_args=())
def flat_product(x: Tensor, weight: Tensor) -> Tensor:
    """[rows, columns, features] times a weight, as [columns, rows, out]; nothing says so to other sizes."""
    return (x @ weight.t()).transpose(0, 1).contiguous()


@torch.library.custom_op("forkpoint_tests::faked_product", mutates_args=())
def faked_product(x: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight.t()).transpose(0, 1).contiguous()


@faked_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], x.shape[0], weight.shape[0])


@torch.library.custom_op("forkpoint_tests::centred_product", mutates_args=())
def centred_product(x: Tensor, weight: Tensor) -> Tensor:
    """Each token loses a sum of all of them first, in which each has a weight of its place."""
    places = torch.arange(x.shape[0] * x.shape[1], dtype=x.dtype).reshape(*x.shape[:2], 1)
    return (x - (places * x).sum((0, 1))) @ weight.t()


@torch.library.custom_op("forkpoint_tests::refusing", mutates_args=())
def refusing(x: Tensor) -> Tensor:
    if bool((x[:, :, 0] < 0).any()):
        raise ValueError("a line that says why\nand a second one, in /a/path.py")
    return x.sum(-1)


@torch.library.custom_op("forkpoint_tests::noisy", mutates_args=())
def noisy(x: Tensor, weight: Tensor) -> Tensor:
    return (x @ weight.t()) + torch.rand(())


def seen(function: Any, *extra: Tensor) -> Traced:
    x = torch.arange(2 * 3 * WIDTH, dtype=torch.float32).reshape(2, 3, WIDTH) + 1
    return Traced(lambda x: function(x, *extra), {"x": x}, LAYOUT)


WEIGHT = torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)


@pytest.mark.parametrize("function", [flat_product, faked_product])
def test_an_operator_is_asked_or_tried(function):
    traced = seen(function, WEIGHT)
    queries, _ = traced.ids(traced.output)
    expected = grid(LAYOUT).numpy().T[:, :, None]
    assert np.array_equal(queries, np.broadcast_to(expected, queries.shape))


def test_what_mixes_all_tokens_belongs_to_all_of_them():
    traced = seen(centred_product, WEIGHT)
    queries, _ = traced.ids(traced.output)
    assert len(np.unique(queries)) == 1
    assert int(queries.reshape(-1)[0]) not in grid(LAYOUT).numpy()


@torch.library.custom_op("forkpoint_tests::scaled", mutates_args=())
def scaled(x: Tensor) -> Tensor:
    """[rows, columns, features], the first four of them rounded by one scale for all, as [columns, rows, 4]."""
    scale = x.abs().amax() / 127
    return ((x[..., :4] / scale).round() * scale).transpose(0, 1).contiguous()


def test_rows_that_share_a_scale_are_rows_all_the_same():
    traced = seen(scaled)
    queries, _ = traced.ids(traced.output)
    expected = grid(LAYOUT).numpy().T[:, :, None]
    assert np.array_equal(queries, np.broadcast_to(expected, queries.shape))


def test_a_reason_is_one_short_phrase():
    traced = seen(refusing)
    assert traced.lost(traced.output) == "no rule says how forkpoint_tests.refusing moves tokens"


def test_trying_an_operator_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(()), torch.rand(())
    torch.manual_seed(0)
    seen(noisy, WEIGHT)
    assert torch.rand(()) == expected[1]


def int8(rows: Tensor, threshold: float, weight: Tensor) -> tuple[Any, ...]:
    quantised, scales, columns = torch.ops.bitsandbytes.int8_vectorwise_quant(rows, threshold)
    narrow, per_row, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(weight.clone(), 0.0)
    product, kept = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        rows, quantised, narrow, scales, per_row, columns
    )
    return quantised, scales, columns, product, kept


def test_those_of_bitsandbytes():
    pytest.importorskip("bitsandbytes")
    x = torch.ones(2, 3, WIDTH, dtype=torch.float16)
    x[1, 2, 3] = 9
    weight = torch.ones(3, WIDTH, dtype=torch.float16)
    traced = Traced(lambda x: {"rows": int8(x.reshape(6, WIDTH), 6.0, weight)}, {"x": x}, LAYOUT)
    quantised, scales, columns, product, kept = traced.output["rows"]
    tokens = grid(LAYOUT).numpy().reshape(-1)
    assert np.array_equal(traced.ids(quantised)[0], np.broadcast_to(tokens[:, None], (6, WIDTH)))
    assert np.array_equal(traced.ids(scales)[0], tokens)
    assert columns.tolist() == [3]
    assert int(traced.ids(columns)[0][0]) not in tokens  # all of them together
    assert np.array_equal(traced.ids(product)[0], np.broadcast_to(tokens[:, None], (6, 3)))
    assert np.array_equal(traced.ids(kept)[0], tokens[:, None])


def test_what_is_changed_and_put_back_is_read_before():
    pytest.importorskip("bitsandbytes")
    x = torch.ones(2, 3, WIDTH)
    x[1, 2, 3] = 9
    weight = torch.ones(3, WIDTH, dtype=torch.float16)
    traced = Traced(lambda x: int8(x.reshape(6, WIDTH).half(), 6.0, weight), {"x": x}, LAYOUT)
    assert [event.reason for _, event in traced.events if event.reason] == []


def test_declared_operators_exist():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    assert bitsandbytes
    for name in RULES:
        namespace, _, operator = name.partition(".")
        if namespace == "bitsandbytes":
            assert hasattr(torch.ops.bitsandbytes, operator)
