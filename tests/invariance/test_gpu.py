"""Kernels of our own on a GPU: no bit depends on the tile, on the number of rows, of queries or of keys."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import forkpoint as fp
from forkpoint.invariance import gpu, wide
from forkpoint.invariance.asked import Attention
from forkpoint.invariance.sequences import Sequence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() or not gpu.available(), reason="needs CUDA and Triton"),
]

NARROW = (torch.bfloat16, torch.float16)
DTYPES = (*NARROW, torch.float32)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("columns", "inner"), [(4096, 4096), (1024, 4096), (96, 200)])
def test_a_product_has_the_same_bits_in_every_tile(dtype, columns, inner):
    x, weight = randn(700, inner, dtype=dtype), randn(columns, inner, dtype=dtype, seed=1)
    whole = gpu.product(x, weight, 1, None)
    for rows in (1, 7, 16, 17, 32, 33, 64, 100, 256, 257, 513):
        assert torch.equal(gpu.product(x[:rows], weight, 1, None), whole[:rows]), rows
    exact = x.double() @ weight.double().t()
    assert (whole.double() - exact).abs().max() <= 2 * (F.linear(x, weight).double() - exact).abs().max()


@pytest.mark.parametrize("call", ["linear", "addmm", "matmul"])
def test_products_in_float32_are_no_less_exact_than_stock_and_have_the_same_bits_for_any_rows(call):
    if not wide.is_quick(torch.cuda.get_device_capability()):
        pytest.skip("is slow in float64")
    layer = torch.nn.Linear(4096, 4096, bias=call != "matmul", device="cuda").eval()
    layer.by_column = torch.nn.Parameter(layer.weight.detach().t().contiguous())
    x = randn(300, 4096)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if call != "matmul" else None)

    def product(rows: Tensor) -> Tensor:
        if call == "linear":
            return layer(rows)
        return rows @ layer.by_column if call == "matmul" else torch.addmm(layer.bias, rows, layer.by_column)

    with torch.inference_mode():
        with fp.invariant(layer):
            whole = product(x)
            for rows in (1, 2, 7, 8, 33, 257):
                assert torch.equal(product(x[:rows]), whole[:rows]), rows
        for rows in (1, 8, 300):
            own, stock = (
                (one[:rows].double() - exact[:rows]).abs().mean() for one in (whole, product(x[:rows]))
            )
            assert own <= stock, rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", ["strided", "one", "shifted"])
def test_a_bias_is_added_whatever_its_form(dtype, bias):
    layer = torch.nn.Linear(200, 96, bias=False, device="cuda", dtype=dtype).eval()
    room = randn(400, dtype=dtype)
    added = {"strided": room[::2][:96], "one": room[:1], "shifted": room[3:99]}[bias]
    x = randn(300, 200, dtype=dtype)
    with torch.inference_mode(), fp.invariant(layer):
        F.linear(x[:5], layer.weight, room[:96])
        whole = F.linear(x, layer.weight, added)
        for rows in (1, 5, 5, 33):
            assert torch.equal(F.linear(x[:rows], layer.weight, added), whole[:rows]), rows
    assert torch.allclose(whole.float(), F.linear(x, layer.weight, added).float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1024, 4096, 5000])
def test_the_mean_of_a_row_depends_on_no_other(dtype, columns):
    x = randn(600, columns, dtype=dtype)
    with fp.invariant(torch.nn.Identity().eval()):
        whole = x.float().pow(2).mean(-1, keepdim=True)
        for rows in (1, 2, 7, 8, 9, 15, 16, 33, 257):
            assert torch.equal(x[:rows].float().pow(2).mean(-1, keepdim=True), whole[:rows]), rows
    assert torch.allclose(whole, x.double().pow(2).mean(-1, keepdim=True).float(), rtol=1e-5)


def attended(
    query: Tensor, key: Tensor, value: Tensor, first: int, asked: Attention, window: int = 0, before: int = 0
) -> Tensor:
    """Attention of queries from position `first` on to keys from position `before` on: `[batch, queries, heads, size]`."""
    at = torch.arange(key.shape[2], device="cuda")[None] + before
    position = torch.arange(query.shape[2], device="cuda")[:, None] + first
    allowed = at <= position
    if window:
        allowed = allowed & (at > position - window)
    rows = range(query.shape[0])
    whole, every = slice(0, query.shape[2]), slice(0, key.shape[2])
    batch = [Sequence(row, whole, every, before, first, allowed) for row in rows]
    return gpu.attend(query, key, value, None, batch, asked)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [128, 64])
@pytest.mark.parametrize("kind", ["plain", "softcap", "window", "sinks"])
def test_attention_depends_on_no_layout(dtype, size, kind):
    heads, length = 4, 1300
    query, key, value = (
        randn(2, count, length, size, dtype=dtype, seed=seed) for seed, count in enumerate((heads, 2, 2))
    )
    asked = Attention(
        size**-0.5, 20.0 if kind == "softcap" else None, randn(heads) if kind == "sinks" else None
    )
    window = 300 if kind == "window" else 0
    whole = attended(query, key, value, 0, asked, window)
    for start, end in ((0, 1), (0, 16), (0, 50), (0, 129), (40, 300), (511, 513), (700, 1300), (1299, 1300)):
        keys = slice(0, end)
        part = attended(query[:, :, start:end], key[:, :, keys], value[:, :, keys], start, asked, window)
        assert torch.equal(part, whole[:, start:end]), (start, end)
    if window:
        keys = slice(900, 1300)
        part = attended(query[:, :, 1290:], key[:, :, keys], value[:, :, keys], 1290, asked, window, 900)
        assert torch.equal(part, whole[:, 1290:])
    if kind == "plain":
        k, v = (one.repeat_interleave(2, 1) for one in (key, value))
        wide = F.scaled_dot_product_attention(query.double(), k.double(), v.double(), is_causal=True)
        stock = F.scaled_dot_product_attention(query, k, v, is_causal=True).double()
        mine = whole.transpose(1, 2).double()
        assert (mine - wide).abs().mean() <= 1.1 * (stock - wide).abs().mean()


def test_attention_in_float64_is_refused():
    model = torch.nn.Linear(4, 4, device="cuda", dtype=torch.float64).eval()
    query, key, value = (randn(1, 4, 20, 64, dtype=torch.float64, seed=seed) for seed in range(3))
    with fp.invariant(model), pytest.raises(fp.InvarianceError, match="float64 on a GPU"):
        F.scaled_dot_product_attention(query, key, value, is_causal=True)


@pytest.mark.parametrize("rows", [3, 700])
def test_gradients_pass_products_and_are_refused_in_attention(rows):
    layer = torch.nn.Linear(11008, 4096, device="cuda", dtype=torch.bfloat16).eval()
    x = randn(rows, 11008, dtype=torch.bfloat16).requires_grad_()
    made: list[list[Tensor]] = []
    for block in (contextlib.nullcontext(), fp.invariant(layer)):
        with block:
            out = layer(x)
            again = layer(x)
            assert torch.equal(out, again)
        made.append(list(torch.autograd.grad(again.float().sum(), (x, layer.weight, layer.bias))))
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other, rtol=1e-2, atol=1e-2)
    query, key, value = (randn(1, 4, 20, 64, dtype=torch.bfloat16, seed=seed) for seed in range(3))
    asked = Attention(64**-0.5, None, None)
    out = attended(query.requires_grad_(), key, value, 0, asked)
    with pytest.raises(fp.InvarianceError, match="gradient"):
        out.sum().backward()
