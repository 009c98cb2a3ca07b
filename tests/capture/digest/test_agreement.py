"""Every implementation gives the digests of `definition`, bit for bit."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.capture.digest.tensors import DTYPES, filled, tensors_and_dims

from forkpoint.capture import digest
from forkpoint.capture.digest import definition

NAMES = ["torch_impl", "numba_impl"]


@pytest.fixture(params=NAMES, scope="module")
def implementation(request):
    return importlib.import_module(f"forkpoint.capture.digest.{request.param}")


@settings(max_examples=300)
@given(x_and_dims=tensors_and_dims(), start=st.integers(0, 1 << 32), data=st.data())
def test_rows(implementation, x_and_dims, start, data):
    x, dims = x_and_dims
    expected = definition.rows(x, dims)
    found = implementation.rows(x, dims)
    assert found.dtype is torch.int64
    assert found.tolist() == expected
    first = torch.tensor([start + 7 * row for row in range(len(expected))], dtype=torch.int64)
    assert implementation.rows(x, dims, first).tolist() == definition.rows(x, dims, first)


@settings(max_examples=300)
@given(x_and_dims=tensors_and_dims(), keyed=st.booleans(), seed=st.integers(0, 99))
def test_grid(implementation, x_and_dims, keyed, seed):
    x, dims = x_and_dims
    keys = None
    if keyed:
        sizes = [x.shape[dim] if dim % 2 == seed % 2 else 1 for dim in dims]
        generator = torch.Generator().manual_seed(seed)
        keys = torch.randint(-(1 << 31), 1 << 31, sizes, generator=generator).to(torch.int32)
    assert implementation.grid(x, dims, keys).tolist() == definition.grid(x, dims, keys)


@given(count=st.integers(0, 50), size=st.integers(1, 9), seed=st.integers(0, 99))
def test_accumulate(implementation, count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    digests = torch.randint(-(1 << 63), (1 << 63) - 1, (count,), generator=generator)
    index = torch.randint(-1, size, (count,), generator=generator)
    expected = definition.accumulate(digests.tolist(), index.tolist(), size)
    assert implementation.accumulate(digests, index, size).tolist() == expected
    assert implementation.accumulate(digests, index.int(), size).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "dims"),
    [
        ((3, 4099), (0,)),  # longer than any SIMD loop's unrolled part, and odd
        ((1, 7, 11, 64), (0, 2)),  # runs of heads
        ((1, 3, 4, 600), (0, 2)),  # runs long enough to be read where they lie
        ((2, 3, 5, 2, 32), (0, 3)),
        ((70_001,), ()),  # longer than the cache blocks of torch_impl
    ],
)
def test_long_slices(dtype, shape, dims):
    x = filled(shape, dtype, 1, special=0.05)
    plain = importlib.import_module("forkpoint.capture.digest.torch_impl").rows(x, dims)
    assert torch.equal(importlib.import_module("forkpoint.capture.digest.numba_impl").rows(x, dims), plain)
    assert torch.equal(digest.rows(x, dims), plain)
    if x.numel() < 5000:
        assert plain.tolist() == definition.rows(x, dims)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_grids(dtype):
    weights = filled((2, 3, 80, 300), dtype, 2, special=0.05)
    keys = torch.arange(300, dtype=torch.int32)
    plain = importlib.import_module("forkpoint.capture.digest.torch_impl").grid(weights, (0, 2, 3), keys)
    assert torch.equal(digest.grid(weights, (0, 2, 3), keys), plain)
    transposed = weights.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(digest.grid(transposed, (0, 2, 3), keys), plain)
    few = (slice(0, 1), slice(None), slice(3, 5), slice(0, 20))
    expected = definition.grid(weights[few], (0, 2, 3), keys[:20])
    assert plain.view(2, 80, 300)[0, 3:5, :20].flatten().tolist() == expected


def test_the_four_byte_boundary_in_memory_does_not_matter():
    raw = filled((4001,), torch.uint8, 3)
    for start in range(8):
        x = raw[start : start + 3992].view(torch.bfloat16) if start % 2 == 0 else None
        piece = raw[start : start + 3992]
        assert digest.rows(piece, ()).tolist() == definition.rows(piece.clone(), ())
        if x is not None:
            assert digest.rows(x.view(-1, 4), (0,)).tolist() == definition.rows(x.clone().view(-1, 4), (0,))


def test_odd_strides_of_single_elements():
    """A dimension of size 1 may have any stride; views as another dtype look at it all the same."""
    x = filled((5, 7), torch.bfloat16, 4)
    for view in (x[:1, :6], x[:, :1], x[2:3, 3:4], x[:, 2:4], x[1:2, 1:3].expand(3, 2)):
        for dims in ((), (0,), (1,), (0, 1)):
            for name in NAMES:
                found = importlib.import_module(f"forkpoint.capture.digest.{name}").rows(view, dims)
                assert found.tolist() == definition.rows(view, dims)


def test_lazy_negation_is_seen():
    z = torch.tensor([1 + 2j, 3 - 4j])
    x = z.conj().imag
    assert x.is_neg()
    for name in NAMES:
        module = importlib.import_module(f"forkpoint.capture.digest.{name}")
        assert module.rows(x, ()).tolist() == definition.rows(x.resolve_neg().clone(), ())
        assert module.grid(x, (0,)).tolist() == definition.grid(x.resolve_neg().clone(), (0,))
    contiguous = torch._neg_view(torch.arange(8.0).reshape(2, 4))
    batch = digest.DigestBatch()
    batch.add(contiguous, (0,))
    expected = definition.rows(-torch.arange(8.0).reshape(2, 4), (0,))
    assert batch.results()[0].tolist() == digest.rows(contiguous, (0,)).tolist() == expected


def test_tensors_that_require_grad_and_inference_tensors():
    x = torch.randn(3, 5, requires_grad=True)
    with torch.inference_mode():
        y = torch.randn(3, 5)
    for z in (x, y, x.exp()):
        assert digest.rows(z, (0,)).tolist() == definition.rows(z, (0,))
        assert digest.grid(z, (0,)).tolist() == definition.grid(z, (0,))


@pytest.mark.parametrize("name", ["rows", "grid"])
@pytest.mark.parametrize(
    ("x", "dims", "error", "text"),
    [
        (
            torch.ones(2, 3),
            (1, 0),
            ValueError,
            r"dimensions \(1, 0\) of a tensor of shape \(2, 3\): expected ascending",
        ),
        (torch.ones(2, 3), (2,), ValueError, r"dimensions \(2,\)"),
        (torch.ones(2, 3), (-1,), ValueError, r"dimensions \(-1,\)"),
        (torch.ones(2, 3).to_sparse(), (0,), TypeError, "sparse"),
        (torch.ones(2, device="meta"), (0,), TypeError, "on meta has no plain values"),
    ],
)
def test_refusals(name, x, dims, error, text):
    for module in (digest, *(importlib.import_module(f"forkpoint.capture.digest.{impl}") for impl in NAMES)):
        with pytest.raises(error, match=text):
            getattr(module, name)(x, dims)
    with pytest.raises(error, match=text):
        digest.DigestBatch().add(x, dims)


def test_an_index_beyond_the_cells_is_refused(implementation):
    with pytest.raises(IndexError):
        implementation.accumulate(torch.ones(3, dtype=torch.int64), torch.tensor([0, 5, 1]), 5)
