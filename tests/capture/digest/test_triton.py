"""The Triton kernels give the digests of `definition`: on a GPU, or in Triton's interpreter if that is asked for.

The interpreter needs Triton and ``TRITON_INTERPRET=1`` in the environment; it is slow.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.capture.digest.tensors import DTYPES, filled, rows_of, tensors_and_dims

from forkpoint.capture import digest
from forkpoint.capture.digest import definition, torch_impl
from forkpoint.capture.digest.backend import TablePlan, TensorTable

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = (
    [pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")]  # the interpreter's own
    if INTERPRETED
    else [pytest.mark.gpu]
)
EXAMPLES = 25 if INTERPRETED else 300


@pytest.fixture(scope="module", params=["general", "special"])
def triton_impl(request):
    """With the variant of the kernel that can digest all, and with those that are worth their compilation."""
    from forkpoint.capture.digest import triton_impl

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_impl, "WORTHWHILE", 0 if request.param == "special" else 1 << 60)
        yield triton_impl


@settings(max_examples=EXAMPLES)
@given(x_and_dims=tensors_and_dims(), start=st.none() | st.integers(0, 1 << 30))
def test_rows(triton_impl, x_and_dims, start):
    x, dims = x_and_dims
    first = None
    if start is not None:
        first = torch.arange(start, start + 7 * rows_of(x, dims), 7, dtype=torch.int32)
    assert triton_impl.rows(x.to(DEVICE), dims, first).tolist() == definition.rows(x, dims, first)


@settings(max_examples=EXAMPLES)
@given(x_and_dims=tensors_and_dims(), keyed=st.booleans())
def test_grid(triton_impl, x_and_dims, keyed):
    x, dims = x_and_dims
    keys = torch.arange(x.shape[dims[-1]], dtype=torch.int32) - 3 if keyed and dims else None
    assert triton_impl.grid(x.to(DEVICE), dims, keys).tolist() == definition.grid(x, dims, keys)


@pytest.mark.parametrize("dtype", DTYPES[::4] if INTERPRETED else DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((3, 2048), (0,)),
        ((2, 5504), (0,)),  # a tail beside whole steps
        ((21, 576), (0,)),  # several rows per block, and fewer in the last one
        ((1, 8, 5, 64), (0, 2)),  # runs
        ((1, 4, 5, 3, 32), (0, 2)),  # runs of two strides
        ((2, 70_001), (0,)),  # shared by several blocks
    ],
)
def test_long_slices(triton_impl, dtype, shape, dims):
    x = filled(shape, dtype, 1, special=0.05)
    assert torch.equal(triton_impl.rows(x.to(DEVICE), dims).cpu(), torch_impl.rows(x, dims))


@pytest.mark.skipif(INTERPRETED, reason="batches on the CPU are numba's")
def test_batches(triton_impl):
    batch, expected = digest.DigestBatch(), []
    for seed, dtype in enumerate(DTYPES):
        x = filled((1, 8, 37, 64), dtype, seed)
        for view, dims in (
            (x, (0, 2)),
            (x.transpose(1, 2), (0, 1)),
            (x[:, :, 1:, 1:], (0, 2)),
            (x[:, :0], (0, 2)),
        ):
            batch.add(view.to(DEVICE) if dtype.itemsize < 3 else view, dims)  # of two devices in turn
            expected.append(torch_impl.rows(view, dims).tolist())
        if seed % 5 == 0:
            batch.flush()
    results = batch.results()
    assert [results[slot].tolist() for slot in range(len(results))] == expected


def test_a_variant_is_compiled_once_it_is_worthwhile(triton_impl, monkeypatch):
    monkeypatch.setattr(triton_impl, "WORTHWHILE", 100_000)
    monkeypatch.setattr(triton_impl, "_words", Counter())
    x = filled((1, 8, 37, 64), torch.float32, 0)
    expected = torch_impl.rows(x, (0, 2))
    given = x.to(DEVICE)
    table = TensorTable.of_one(given, digest.plan.find(given, (0, 2)).fields, None)
    used = []
    for _ in range(8):
        digests = triton_impl.digest_table(table, given.device)
        assert torch.equal(digests.cpu(), expected)
        ((variant, *_),) = triton_impl._layout_of(table, triton_impl.BLOCK).launches
        used.append(variant == variant.general)
    assert used == [True] * 5 + [False] * 3  # 37 rows of 512 words each: the sixth passes the limit


def test_short_rows_count_as_whole_steps(triton_impl):
    table_plan = TablePlan.of(np.array([digest.plan.find(torch.ones(5, 1), (0,)).fields], dtype=np.int64))
    found = triton_impl._layout(table_plan, b"", b"", triton_impl.BLOCK)
    assert [words for _, words in found.waiting] == (
        [] if not triton_impl.WORTHWHILE else [5 * triton_impl.BLOCK]
    )
