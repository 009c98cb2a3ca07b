"""What the block does to dtypes, and that nothing of it is left afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from forkpoint.promotion import Promotion
from forkpoint.promotion.values import cast_tensor

NARROW = [torch.float32, torch.bfloat16, torch.float16]
THIRD = 1 / 3


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: torch.zeros(2, dtype=dtype),
        lambda dtype: torch.full((2,), THIRD, dtype=dtype),
        lambda dtype: torch.tensor([THIRD], dtype=dtype),
        lambda dtype: torch.as_tensor([THIRD], dtype=dtype),
        lambda dtype: torch.asarray(np.array([THIRD]), dtype=dtype),
        lambda dtype: torch.arange(3, dtype=dtype),
        lambda dtype: torch.linspace(0, 1, 4, dtype=dtype),
        lambda dtype: torch.empty(2, dtype=dtype),
        lambda dtype: torch.zeros_like(torch.zeros(2, dtype=torch.long), dtype=dtype),
        lambda dtype: torch.zeros(1).new_zeros(2, dtype=dtype),
        lambda dtype: torch.ones(3, dtype=torch.long).sum(dtype=dtype),
        lambda dtype: F.softmax(torch.ones(3), dim=-1, dtype=dtype),
        lambda dtype: torch.ones(3, dtype=torch.long).to(dtype),
        lambda dtype: torch.ones(3, dtype=torch.bool).type(dtype),
        lambda dtype: torch.ones(3).to("cpu", dtype, copy=True),
        lambda dtype: torch.ones(3).to(dtype=dtype, memory_format=torch.preserve_format),
        lambda dtype: torch.ones(3).to(torch.ones(1, dtype=dtype)),
        lambda dtype: torch.ones(3).type_as(torch.ones(1, dtype=dtype)),
        lambda dtype: torch.randn(3, dtype=dtype),
        lambda dtype: torch.ops.aten.zeros.default([2], dtype=dtype),
    ],
)
def test_a_narrower_dtype_asked_for_is_float64(
    dtype: torch.dtype, make: Callable[[torch.dtype], torch.Tensor]
) -> None:
    with torch.no_grad(), Promotion():
        made = make(dtype)
    assert made.dtype == torch.float64
    if made.numel() == 1:
        assert made.item() in (THIRD, 3.0)


@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.float(),
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: x.type(torch.FloatTensor),
        lambda x: x.type("torch.HalfTensor"),
        lambda x: x.to(torch.bfloat16).to(torch.float16),
        lambda x: x.cfloat().real,
        lambda x: torch.view_as_complex(x.float().expand(2).contiguous()).abs() / 2**0.5,
        lambda x: x.to(torch.complex64).real,
    ],
)
def test_no_cast_rounds(cast: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with torch.no_grad(), Promotion():
        result = cast(torch.tensor([THIRD]))
    assert result.dtype == torch.float64
    assert result.item() == pytest.approx(THIRD, rel=1e-15)


def test_every_floating_tensor_says_that_it_is_float64() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    wave = torch.ones(2, dtype=torch.complex64)
    stored = torch.ones(2).to(torch.float8_e4m3fn)
    with torch.no_grad(), Promotion():
        said = (weight.dtype, wave.dtype, stored.dtype, torch.arange(2).dtype, (weight * 1).dtype)
        legacy = weight.type()
    assert said == (torch.float64, torch.complex128, torch.float8_e4m3fn, torch.int64, torch.float64)
    assert legacy == "torch.DoubleTensor"
    assert weight.dtype == torch.bfloat16


def test_integers_keep_their_rounding() -> None:
    with torch.no_grad(), Promotion():
        quantised = (torch.tensor([1.7, -1.7, 0.2]) * 10).round().to(torch.int8)
        shifted = torch.arange(4, dtype=torch.int32) // 2
    assert quantised.dtype == torch.int8
    assert quantised.tolist() == [17, -17, 2]
    assert shifted.dtype == torch.int32


def test_a_cast_to_float8_stays() -> None:
    """Its scale depends on the whole tensor: without the rounding that dependence would be gone too."""
    x = torch.tensor([0.3, 1.0, 2.0])

    def quantised(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax().float() / 448
        return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale

    with torch.no_grad(), Promotion() as promotion:
        alone, batched = quantised(x[:1]), quantised(x)[:1]
    assert batched.dtype == torch.float64
    assert alone.item() == pytest.approx(x[0].item())
    assert abs(batched.item() - alone.item()) > 1e-3
    assert promotion.exact


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("lowest", [torch.float32, torch.float16, None], ids=["float32", "float16", "own"])
def test_the_smallest_number_of_any_dtype_is_a_mask(attention: str, lowest: torch.dtype | None) -> None:
    """Rows that see no key (padding on the left) stay finite, as they do natively."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 1, 4, 8, generator=generator) for _ in range(3))
    visible = torch.ones(4, 4).tril().bool()
    visible[:, :2] = False

    def attend(visible: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(4, 4, dtype=query.dtype).masked_fill(
            ~visible, torch.finfo(lowest or query.dtype).min
        )
        if attention == "sdpa":
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[None, None])
        scores = query @ key.transpose(-1, -2) + mask
        return F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value

    with torch.no_grad(), Promotion():
        result = attend(visible)
        alone = attend(torch.eye(4).bool())
    assert result.isfinite().all()
    torch.testing.assert_close(result[0, 0, 2], alone[0, 0, 2], rtol=1e-15, atol=1e-15)


def test_autocast_rounds_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Softmax(-1))
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Promotion(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.cat([model(x), torch.einsum("ij,kj->ik", x, x)], dim=-1)
    with torch.no_grad(), Promotion():
        outside = torch.cat([model(x), torch.einsum("ij,kj->ik", x, x)], dim=-1)
    assert torch.equal(inside, outside)


def test_a_default_dtype_that_the_model_sets_is_float64() -> None:
    before = torch.get_default_dtype()
    with torch.no_grad(), Promotion():
        torch.set_default_dtype(torch.bfloat16)
        made = torch.tensor([THIRD]) + torch.ones(1) / 3
    assert made.item() == 2 * THIRD
    assert torch.get_default_dtype() is before


def test_complex_numbers_and_fourier_transforms() -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), Promotion():
        back = torch.fft.ifft(torch.fft.fft(x.to(torch.complex64))).real
        short = torch.stft(x, 8, window=torch.hann_window(8), return_complex=True)
    torch.testing.assert_close(back, x.double(), rtol=1e-14, atol=1e-15)
    assert short.dtype == torch.complex128


def test_arrays_and_numbers_pass() -> None:
    x = torch.tensor([0.1, 0.2])
    with torch.no_grad(), Promotion():
        assert (x * 1).numpy().dtype == np.float64
        assert x.numpy().dtype == np.float32
        assert (x[0] * 3).item() == np.float32(0.1).astype(np.float64) * 3
        assert torch.from_numpy(np.ones(2, dtype=np.float32)).add(THIRD)[0].item() == 1 + THIRD
        assert [round(value, 4) for value in x.tolist()] == [0.1, 0.2]


def test_results_that_are_the_models_own_tensors_have_a_value() -> None:
    buffer = torch.zeros(2)
    with torch.no_grad(), Promotion() as promotion:
        buffer.add_(THIRD)
        result = {"state": buffer, "ids": torch.arange(2), "rows": [buffer[:1]]}
    values = promotion.values(result)
    assert values["state"].tolist() == [THIRD, THIRD]
    assert values["rows"][0].dtype == torch.float64
    assert values["ids"].dtype == torch.int64


def test_large_weights_are_multiplied_in_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(1024, 1500)
    x = torch.randn(3, 1024, generator=generator)
    with torch.no_grad():
        with Promotion():
            blocks = layer(x)
        with Promotion(cache_weights_up_to=1 << 30):
            whole, again = layer(x), layer(x)
    reference = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    for result in (blocks, whole, again):
        torch.testing.assert_close(result, reference.detach(), rtol=1e-13, atol=1e-13)


def test_kept_casts_follow_the_weight() -> None:
    weight = nn.Parameter(torch.ones(4))
    with torch.no_grad(), Promotion(cache_weights_up_to=100):
        assert (weight * 1).sum().item() == 4
        with torch._C.DisableTorchFunction():
            weight.fill_(2)
        assert (weight * 1).sum().item() == 8


def test_the_callers_own_hook_comes_first() -> None:
    seen: list[torch.dtype] = []

    def hook(func: Any, args: Any, kwargs: Any) -> Any:
        if getattr(func, "__name__", "") != "erfinv":
            return NotImplemented
        seen.append(args[0].dtype)
        return args[0] + 40

    x = torch.full((2,), 0.5)
    with torch.no_grad(), Promotion(hook):
        assert torch.erfinv(x).tolist() == [40.5, 40.5]
        assert torch.erf(x).dtype == torch.float64
    assert seen == [torch.float64]


class Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[torch.dtype], torch.dtype | None]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            given = [value.dtype for value in args if isinstance(value, torch.Tensor)]
            dtype = result.dtype if isinstance(result, torch.Tensor) else None
        self.calls.append((func.__name__, given, dtype))
        return result


def test_a_recorder_entered_after_sees_the_calls_as_made_and_the_results_in_float64() -> None:
    x, weight = torch.ones(2, 3), nn.Parameter(torch.ones(3, 3))
    with torch.no_grad(), Promotion(), Recorder() as recorder:
        F.relu(F.linear(x, weight).float())
    assert recorder.calls == [
        ("linear", [torch.float32, torch.float32], torch.float64),
        ("float", [torch.float64], torch.float64),
        ("relu", [torch.float64], torch.float64),
    ]


def test_a_recorder_entered_before_sees_what_promotion_calls() -> None:
    x, weight = torch.ones(2, 3), nn.Parameter(torch.ones(3, 3))
    with torch.no_grad(), Recorder() as recorder, Promotion():
        F.linear(x, weight)
    assert ("linear", [torch.float64, torch.float64], torch.float64) in recorder.calls


def state() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(),
        len(_get_current_function_mode_stack()),
        torch._C._len_torch_dispatch_stack(),
        torch._C.ScriptFunction.__call__,
        torch._C.ScriptMethod.__call__,
        nn.TransformerEncoder.forward,
        torch._C._get_graph_executor_optimize(),
        torch.is_grad_enabled(),
    )


def test_nothing_is_left_behind() -> None:
    promotion, before = Promotion(), state()
    for _ in range(2):
        with promotion:
            torch.ones(2).float()
        assert state() == before
    with pytest.raises(ZeroDivisionError), promotion:
        F.relu(torch.ones(1 // 0))
    assert state() == before
    with pytest.raises(IndexError), promotion:
        F.embedding(torch.tensor([5]), torch.ones(2, 2))
    assert state() == before


def test_an_active_promotion_cannot_be_entered_again() -> None:
    promotion = Promotion()
    with promotion:
        with pytest.raises(RuntimeError, match="active already"), promotion:
            pass
        assert torch.ones(1).dtype == torch.float64
        with Promotion():
            assert torch.ones(1, dtype=torch.float32).dtype == torch.float64


def test_errors_of_the_model_are_its_own() -> None:
    with torch.no_grad(), Promotion() as promotion, pytest.raises(RuntimeError, match="2x3 and 2x3"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert promotion.exact


def test_other_threads_are_left_alone() -> None:
    dtypes: list[torch.dtype] = []
    with Promotion():
        thread = threading.Thread(target=lambda: dtypes.append(torch.ones(1, dtype=torch.float32).dtype))
        thread.start()
        thread.join()
    assert dtypes == [torch.float32]


def test_under_inference_mode() -> None:
    buffer, layer = torch.zeros(3), nn.Linear(3, 3)
    with torch.inference_mode(), Promotion(cache_weights_up_to=1 << 20) as promotion:
        inner = torch.ones(3)
        inner.add_(THIRD)
        buffer.add_(layer(inner))
        assert layer(inner).dtype == torch.float64
        assert promotion.value(buffer).dtype == torch.float64
    assert torch.equal(buffer, torch.zeros(3))


def test_gradients_flow_to_narrow_leaves() -> None:
    layer = nn.Linear(3, 1)
    with Promotion():
        loss = layer(torch.ones(2, 3)).square().sum()
    loss.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_what_an_expand_repeats_is_cast_once() -> None:
    wide = cast_tensor(torch.full((2, 1, 3), THIRD).expand(2, 1000, 3), torch.float64)
    assert wide.shape == (2, 1000, 3)
    assert wide.untyped_storage().nbytes() == 2 * 3 * 8


def test_the_address_of_a_tensor_is_that_of_float64_values() -> None:
    """A Triton launch takes a tensor's dtype and its address: they must go together."""
    weight = torch.full((2,), 3.0)
    with torch.no_grad(), Promotion() as promotion:
        assert weight.dtype == torch.float64
        pointer = weight.data_ptr()
        with torch._C.DisableTorchFunction():
            kept = promotion.value(weight)
            assert pointer == kept.data_ptr()
    assert kept.tolist() == [3.0, 3.0]
