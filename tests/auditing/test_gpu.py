"""Audits on a GPU: known leaks of torch's own kernels are found with their sizes, and what holds raises no alarm."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import forkpoint as fp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
CAUSAL = {0: 2, 1: 2, 2: 2}


def randn(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


def attention(backend: SDPBackend):
    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(backend), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in float64 there is none
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    return call


def blocks(x: Tensor, weight: Tensor) -> Tensor:
    """A product in blocks of 256 rows."""
    rows = F.pad(x, (0, 0, 0, -len(x) % 256))
    return torch.cat([F.linear(block, weight) for block in rows.split(256)])[: len(x)]


def coarse(x: Tensor, weight: Tensor) -> Tensor:
    """The same, with sums that are rounded half-way."""
    half = x.shape[1] // 2
    return blocks(x[:, :half].contiguous(), weight[:, :half].contiguous()) + blocks(
        x[:, half:].contiguous(), weight[:, half:].contiguous()
    )


def switching_norm(x: Tensor) -> Tensor:
    """A norm of rows whose sums are made in another order from 256 rows on."""
    if len(x) < 256:
        return F.rms_norm(x, x.shape[1:])
    return F.rms_norm(x.flip(-1), x.shape[1:]).flip(-1)


def test_products_of_few_rows_are_found_where_the_library_splits_them():
    found = fp.audit(F.linear, randn(1024, 4096), randn(4096, 4096, seed=1))
    print(found)
    assert found.breaks[0].kind == "rows" and found.breaking
    assert found.breaks[0].kernels is not None
    assert found.breaks[0].kernels[0] != found.breaks[0].kernels[1]


def test_prefixes_of_flash_attention_are_found_and_those_of_the_efficient_one_hold():
    query, key, value = (randn(1, 8, 1024, 128, seed=seed) for seed in range(3))
    found = fp.audit(attention(SDPBackend.FLASH_ATTENTION), query, key, value, cut=CAUSAL)
    print(found)
    assert found.breaking
    held = fp.audit(attention(SDPBackend.EFFICIENT_ATTENTION), query, key, value, cut=CAUSAL)
    print(held)
    assert held.holds and held.tried > 60


def test_a_norm_that_switches_is_found_at_its_size():
    (one,) = fp.audit(switching_norm, randn(600, 1024, dtype=torch.float32)).breaks
    assert (one.kind, one.other, one.size) == ("rows", 255, 256)


def test_an_invariant_product_that_is_less_exact_is_a_finding_and_fixed_blocks_hold():
    x, weight = randn(1024, 4096), randn(4096, 4096, seed=1)
    found = fp.audit(coarse, x, weight, reference=F.linear)
    print(found)
    assert not found.breaks and found.precision is not None and found.precision.worse
    held = fp.audit(blocks, x, weight, reference=F.linear)
    print(held)
    assert held.holds


def test_sizes_that_are_not_split_hold():
    found = fp.audit(F.linear, randn(2048, 4096), randn(11008, 4096, seed=1))
    print(found)
    assert found.holds


def test_products_within_a_block_hold():
    layer = torch.nn.Linear(4096, 4096, bias=False, device="cuda", dtype=torch.bfloat16).eval()
    with fp.invariant(layer):
        found = fp.audit(layer, randn(1024, 4096))
    print(found)
    assert found.holds
