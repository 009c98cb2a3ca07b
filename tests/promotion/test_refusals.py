"""Operations that refuse float64: done another way, or in native precision and named."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forkpoint.promotion import Promotion, Refusal
from forkpoint.promotion.attention import Rules, attend, attend_dense, attend_packed
from forkpoint.promotion.rewrites import REWRITTEN


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


# --- custom operators -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operators() -> Iterator[Any]:
    """Operators of a kind that packages register: some written in Python, some that take one dtype only."""
    with torch.library._scoped_library("forkpoint_test", "DEF") as library:
        library.define("rounding(Tensor x, Tensor weight) -> Tensor")
        library.define("single(Tensor x, Tensor weight) -> Tensor")
        library.define("single_in_place(Tensor(a!) x, Tensor y) -> ()")
        library.define("in_place(Tensor(a!) x, Tensor y) -> Tensor(a!)")
        library.define("narrowing(Tensor x) -> Tensor")
        library.define("broken(Tensor x) -> Tensor")

        def rounding(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return (x.float() @ weight.bfloat16().float().t()).to(x.dtype)

        def single(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            with torch._C.DisableTorchFunction():
                if x.dtype is not torch.float32 or weight.dtype is not torch.float32:
                    raise TypeError(f"expected float32, got {x.dtype}")
                return x @ weight.t()

        def single_in_place(x: torch.Tensor, y: torch.Tensor) -> None:
            with torch._C.DisableTorchFunction():
                if x.dtype is not torch.float32:
                    raise TypeError(f"expected float32, got {x.dtype}")
                x.add_(y)

        def in_place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.add_(y.float(), alpha=1 / 3)

        def narrowing(x: torch.Tensor) -> torch.Tensor:
            with torch._C.DisableTorchFunction():
                return x.float() * 2

        def broken(x: torch.Tensor) -> torch.Tensor:
            raise ValueError(f"never takes {x.shape}")

        for function in (rounding, single, single_in_place, in_place, narrowing, broken):
            library.impl(function.__name__, function, "CPU")
        yield torch.ops.forkpoint_test


def test_an_operator_written_in_python_is_entered(operators: Any) -> None:
    x, weight = numbers(3, 8), numbers(4, 8)
    with torch.no_grad(), Promotion() as promotion:
        results = [operators.rounding(x, weight), operators.rounding.default(x, weight=weight)]
    for result in results:
        assert gap(result, x.double() @ weight.double().t()) < 1e-15
    assert promotion.exact


def test_an_operator_that_refuses_is_done_natively_and_named(operators: Any) -> None:
    class Layer(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return operators.single(x, self.weight)

    layer, x = Layer(8, 4, bias=False), numbers(3, 8)
    with torch.no_grad():
        with Promotion() as promotion:
            result = [layer(x) for _ in range(2)][1]
        assert torch.equal(result, layer(x).double())
    assert not promotion.exact
    (refused,) = promotion.refused
    assert refused == Refusal(
        op="forkpoint_test::single",
        reason="TypeError: expected float32, got torch.float64",
        dtype=torch.float32,
        source=refused.source,
        module="Layer",
    )
    assert str(refused) == (
        f"forkpoint_test::single in Layer ({refused.source}): "
        "TypeError: expected float32, got torch.float64; done in float32"
    )
    assert refused.source is not None
    assert refused.source.startswith("test_refusals.py:")


def test_writes_of_operators_reach_the_twin(operators: Any) -> None:
    buffer, y = numbers(2, 3), numbers(3)
    with torch.no_grad(), Promotion() as promotion:
        operators.in_place(buffer[1], y)
        expected = buffer[1] * 1
        made = torch.zeros(3)
        operators.in_place(made, y=y)
        operators.single_in_place(buffer[0], y)
    assert gap(expected, numbers(2, 3)[1].double() + y.double() / 3) < 1e-15
    assert gap(made, y.double() / 3) < 1e-15
    assert gap(promotion.value(buffer)[0], numbers(2, 3)[0] + y) < 1e-7
    assert torch.equal(buffer, numbers(2, 3))
    assert [refused.op for refused in promotion.refused] == ["forkpoint_test::single_in_place"]


def test_an_operator_that_narrows_is_named(operators: Any) -> None:
    with torch.no_grad(), Promotion() as promotion:
        result = operators.narrowing(numbers(2))
    assert result.dtype == torch.float64
    assert [refused.reason for refused in promotion.refused] == ["returned float32 although given float64"]


def test_an_operator_that_fails_in_any_dtype_fails(operators: Any) -> None:
    with torch.no_grad(), Promotion() as promotion, pytest.raises(ValueError, match="never takes"):
        operators.broken(numbers(2))
    assert promotion.exact


def test_the_callers_hook_can_do_it_instead(operators: Any) -> None:
    def hook(func: Any, args: Any, kwargs: Any) -> Any:
        return args[0] @ args[1].t() if func is operators.single else NotImplemented

    x, weight = numbers(3, 8), numbers(4, 8)
    with torch.no_grad(), Promotion(extra_hook=hook) as promotion:
        result = operators.single(x, weight)
    assert gap(result, x.double() @ weight.double().t()) < 1e-15
    assert promotion.exact


def test_refusals_add_up_over_the_blocks_of_a_run(operators: Any) -> None:
    promotion = Promotion()
    for operator in (operators.single, operators.narrowing, torch.neg):
        with torch.no_grad(), promotion:
            operator(*[numbers(3, 8)] * (2 if operator is operators.single else 1))
    assert [refused.op for refused in promotion.refused] == [
        "forkpoint_test::single",
        "forkpoint_test::narrowing",
    ]


# --- operations of torch ----------------------------------------------------------------------------------

OFFSETS = torch.tensor([3, 3, 8], dtype=torch.int32)
WHOLE = torch.tensor([8, 8, 16], dtype=torch.int32)


@pytest.mark.parametrize(
    ("a", "b", "offsets"),
    [((8, 16), (3, 16, 24), OFFSETS), ((3, 8, 16), (16, 16), WHOLE), ((8, 16), (16, 24), WHOLE),
     ((3, 8, 16), (3, 16, 24), None)],
    ids=["rows", "columns", "inner", "batch"],
)  # fmt: skip
def test_grouped_products(a: tuple[int, ...], b: tuple[int, ...], offsets: torch.Tensor | None) -> None:
    left, right = numbers(*a, dtype=torch.bfloat16), numbers(*b, dtype=torch.bfloat16)
    native = F.grouped_mm(left, right, offs=offsets)
    with torch.no_grad(), Promotion() as promotion:
        results = [F.grouped_mm(left, right, offs=offsets), torch._grouped_mm(left, right, offsets)]
    for result in results:
        assert result.dtype == torch.float64
        assert gap(native, result) < 1e-2
    if offsets is None:
        assert gap(results[0], left.double() @ right.double()) < 1e-15
    assert promotion.exact


@pytest.mark.parametrize("scales", [((), ()), ((16, 1), (1, 48))], ids=["tensor", "rows"])
def test_scaled_products_of_float8(scales: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a = numbers(16, 32).to(torch.float8_e4m3fn)
    b = numbers(48, 32).to(torch.float8_e4m3fn).t()
    scale_a, scale_b = (torch.full(shape, 0.5) for shape in scales)
    with torch.no_grad(), Promotion() as promotion:
        result = torch._scaled_mm(a, b, scale_a, scale_b, out_dtype=torch.bfloat16)
    assert gap(result, a.double() @ b.double() * 0.25) < 1e-15
    assert promotion.exact


def test_weights_in_int8() -> None:
    x = numbers(4, 32, dtype=torch.bfloat16)
    weight = torch.arange(-64, 64, dtype=torch.int8).repeat(4).view(16, 32)
    scales = numbers(16, dtype=torch.bfloat16)
    native = torch._weight_int8pack_mm(x, weight, scales)
    with torch.no_grad(), Promotion() as promotion:
        result = torch._weight_int8pack_mm(x, weight, scales)
    assert gap(result, x.double() @ weight.double().T * scales.double()) < 1e-15
    assert gap(native, result) < 1e-2
    assert promotion.exact


# --- attention kernels ------------------------------------------------------------------------------------


def test_attention_of_half_precision_kernels() -> None:
    query, key, value = (numbers(2, 6, heads, 8).double() for heads in (4, 2, 2))
    by_head = [x.transpose(1, 2) for x in (query, key, value)]
    plain = F.scaled_dot_product_attention(*by_head, enable_gqa=True).transpose(1, 2)
    causal = F.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert gap(attend_dense(query, key, value, Rules())[0], plain) < 1e-14
    assert gap(attend_dense(query, key, value, Rules(causal=True))[0], causal) < 1e-14
    # Alone, a query is at the last key, as in decoding.
    last, _ = attend(query[0, -1:], key[0], value[0], Rules(causal=True))
    assert gap(last, causal[0, -1:]) < 1e-14

    packed = [torch.cat([x[0, :2], x[1]]) for x in (query, key, value)]
    bounds = torch.tensor([0, 2, 8], dtype=torch.int32)
    out, totals = attend_packed(*packed, bounds, bounds, Rules(causal=True))
    assert gap(out, torch.cat([causal[0, :2], causal[1]])) < 1e-14
    _, expected = attend_dense(query, key, value, Rules(causal=True))
    assert gap(totals[:, 2:], expected[1]) < 1e-14


def test_windows_caps_and_slopes() -> None:
    query, key, value = (numbers(5, 2, 8).double() for _ in range(3))
    scores = torch.einsum("qhd,khd->hqk", query, key) * 0.3
    distance = torch.arange(5)[None] - torch.arange(5)[:, None]
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    scores = torch.tanh(scores / 2) * 2 - slopes[:, None, None] * distance.abs()
    scores = scores.masked_fill((distance < -1) | (distance > 0), -torch.inf)
    expected = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
    rules = Rules(scale=0.3, before=1, after=0, softcap=2.0, slopes=slopes)
    assert gap(attend(query, key, value, rules)[0], expected) < 1e-14


def test_variable_length_attention_of_torch() -> None:
    query = numbers(8, 2, 8, dtype=torch.bfloat16)
    bounds = torch.tensor([0, 3, 8], dtype=torch.int32)
    with torch.no_grad(), Promotion() as promotion:
        out, *_ = torch.ops.aten._flash_attention_forward(
            query, query, query, bounds, bounds, 5, 5, 0.0, True, False
        )
    expected, _ = attend_packed(*[query.double()] * 3, bounds, bounds, Rules(causal=True))
    assert torch.equal(out, expected)
    assert promotion.exact


def test_flash_attention_2_by_the_names_of_its_operators() -> None:
    query = numbers(1, 6, 2, 8).double()
    options = {"softmax_scale": 0.3, "causal": True, "window_size_left": 3, "window_size_right": 0}
    out, *_ = REWRITTEN["flash_attn::_flash_attn_forward"](
        q=query, k=query, v=query, dropout_p=0.0, alibi_slopes=None, return_softmax=False, **options
    )
    bounds = torch.tensor([0, 6], dtype=torch.int32)
    packed, *_ = REWRITTEN["flash_attn::_flash_attn_varlen_forward"](
        q=query[0], k=query[0], v=query[0], cu_seqlens_q=bounds, cu_seqlens_k=bounds, max_seqlen_q=6,
        max_seqlen_k=6, dropout_p=0.0, block_table=None, **options,
    )  # fmt: skip
    expected, _ = attend(*[query[0]] * 3, Rules(scale=0.3, causal=True, before=3, after=0))
    assert torch.equal(out[0], expected)
    assert torch.equal(packed, expected)


def test_attention_limited_to_a_kernel_that_refuses() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query = numbers(1, 2, 5, 8)
    with torch.no_grad(), Promotion() as promotion, sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        result = F.scaled_dot_product_attention(query, query, query)
    assert gap(result, F.scaled_dot_product_attention(*[query.double()] * 3)) < 1e-14
    assert promotion.exact


# --- bitsandbytes -----------------------------------------------------------------------------------------


def int8_layer(dtype: torch.dtype, threshold: float) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=threshold)
    layer.weight = bnb.nn.Int8Params(torch.randn(32, 64).half(), has_fp16_weights=False, requires_grad=False)
    layer.bias = nn.Parameter(torch.randn(32).to(dtype), requires_grad=False)
    return layer.to("cpu").eval()


def int8_by_hand(x: torch.Tensor, layer: Any, threshold: float) -> torch.Tensor:
    """LLM.int8() for two-dimensional inputs, written from the paper."""
    x = x.double()
    outlier = ((x.abs() >= threshold) if threshold else torch.zeros_like(x).bool()).any(dim=0)
    rest = x.masked_fill(outlier, 0) if x.shape[0] > 1 else x.masked_fill(x.abs() >= (threshold or 1e9), 0)
    kept = x.masked_fill(x.abs() >= (threshold or 1e9), 0)
    scale = kept.abs().amax(dim=1, keepdim=True)
    weight_scale = layer.state.SCB.double()[:, None]
    weight = layer.state.CB.double()
    quantised = torch.round(rest * 127 / scale)
    product = (quantised @ weight.t()) * scale * weight_scale.t() / 127**2
    return product + x[:, outlier] @ (weight * weight_scale / 127)[:, outlier].t() + layer.bias.double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_keeps_its_decisions_and_loses_its_rounding(dtype: torch.dtype, threshold: float) -> None:
    layer = int8_layer(dtype, threshold)
    x = numbers(3, 5, 64, dtype=dtype)
    loud = x.clone()
    loud[0, 0, 3] = 9.0
    with torch.no_grad():
        with Promotion() as promotion:
            quiet_alone, quiet = layer(x[1:]), layer(x)
            beside_loud = layer(loud)
        native = layer(loud)
    assert promotion.exact
    assert gap(beside_loud.view(-1, 32), int8_by_hand(loud.view(-1, 64), layer, threshold)) < 1e-14
    assert gap(native, beside_loud) < 1e-2
    assert torch.equal(quiet_alone, quiet[1:])
    depends = gap(beside_loud[1:], quiet[1:])
    assert depends > 1e-5 if threshold else depends == 0.0
    assert layer.bias.dtype == dtype
    assert layer.weight.dtype == torch.int8


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True], ids=["once", "twice"])
def test_four_bits(kind: str, double: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(
        64, 33, quant_type=kind, compute_dtype=torch.bfloat16, compress_statistics=double
    )
    layer = layer.to("cpu").eval()
    layer.support_avx512bf16_for_cpu = False
    x = numbers(3, 64)
    with torch.no_grad():
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
        native = layer(x)
        with Promotion() as promotion:
            result = layer(x)
            decoded = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert promotion.exact
    assert gap(weight, decoded) < 1e-6
    assert gap(result, x.double() @ decoded.t() + layer.bias.double()) < 1e-14
    assert gap(native, result) < 2e-2


@pytest.mark.parametrize("threshold", [0.0, 1.5])
def test_a_whole_model_in_int8(threshold: float) -> None:
    """Only outliers make a row depend on the other rows of its batch."""
    bnb = pytest.importorskip("bitsandbytes")
    from tests.architectures import ARCHITECTURES, prompt

    model = ARCHITECTURES["opt"].build(dtype=torch.float16)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                made = bnb.nn.Linear8bitLt(
                    child.in_features, child.out_features, has_fp16_weights=False, threshold=threshold
                )
                made.weight = bnb.nn.Int8Params(
                    child.weight.data, has_fp16_weights=False, requires_grad=False
                )
                made.bias = nn.Parameter(copy.deepcopy(child.bias.data), requires_grad=False)
                setattr(module, name, made.to("cpu").eval())
    inputs = ARCHITECTURES["opt"].inputs([prompt(6), prompt(6, seed=1)])
    with torch.no_grad(), Promotion() as promotion:
        both = model(**inputs).logits
        alone = model(**{name: value[:1] for name, value in inputs.items()}).logits
    assert promotion.exact
    depends = gap(both[:1], alone)
    assert depends > 1e-6 if threshold else depends < 1e-12
