"""The same on a GPU, where kernels that take half precision only are the rule."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.architectures import ARCHITECTURES, prompt
from torch import nn

from forkpoint.promotion import Promotion

pytestmark = pytest.mark.gpu
GPU = "cuda"


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(GPU, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral", "mamba2", "opt", "t5", "roberta"])
def test_padding_changes_nothing(name: str, dtype: torch.dtype) -> None:
    architecture = ARCHITECTURES[name]
    for attention in architecture.attentions:
        model = architecture.build(dtype=dtype, attention=attention).to(GPU)
        tokens = prompt(7)
        with torch.no_grad(), Promotion() as promotion:
            alone, padded = (
                model(**{key: value.to(GPU) for key, value in architecture.inputs([tokens], width).items()})
                for width in (None, 11)
            )
        a, b = (out.logits if "logits" in out else out.last_hidden_state for out in (alone, padded))
        assert a.dtype == torch.float64
        assert promotion.refused == []
        assert gap(b if architecture.decoder else b[:, :7], a) <= 1e-12


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts(implementation: str) -> None:
    architecture = ARCHITECTURES["qwen2_moe"]
    model = architecture.build(dtype=torch.bfloat16).to(GPU)
    model.set_experts_implementation(implementation)
    inputs = {key: value.to(GPU) for key, value in architecture.inputs([prompt(7)]).items()}
    with torch.no_grad(), Promotion() as promotion:
        promoted = model(**inputs).logits
        on_cpu = model.cpu()(**architecture.inputs([prompt(7)])).logits
    assert promotion.refused == []
    assert gap(promoted.cpu(), on_cpu) <= 1e-12


def test_grouped_and_scaled_products_against_the_kernels() -> None:
    a, b = numbers(64, 128), numbers(4, 128, 256)
    offsets = torch.tensor([16, 16, 40, 64], dtype=torch.int32, device=GPU)
    native = F.grouped_mm(a, b, offs=offsets)
    a8, b8 = a.to(torch.float8_e4m3fn), numbers(256, 128).to(torch.float8_e4m3fn).t()
    rows, columns = torch.rand(64, 1, device=GPU), torch.rand(1, 256, device=GPU)
    native8 = torch._scaled_mm(a8, b8, rows, columns, out_dtype=torch.bfloat16)
    with torch.no_grad(), Promotion() as promotion:
        promoted = F.grouped_mm(a, b, offs=offsets)
        promoted8 = torch._scaled_mm(a8, b8, rows, columns, out_dtype=torch.bfloat16)
    assert promotion.exact
    assert gap(native, promoted) < 1e-2
    assert gap(native8, promoted8) < 1e-2


def test_attention_kernels() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = (numbers(2, 4, 16, 64), numbers(2, 4, 16, 64) * 0.5, numbers(2, 4, 16, 64) + 1)
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with torch.no_grad(), sdpa_kernel(kernel):
            native = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            with Promotion() as promotion:
                promoted = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        assert promotion.exact
        assert gap(native, promoted) < 1e-2
    packed = [x.transpose(1, 2).flatten(0, 1).contiguous() for x in (query, key, value)]
    bounds = torch.tensor([0, 10, 32], dtype=torch.int32, device=GPU)
    with torch.no_grad():
        native = varlen_attn(*packed, bounds, bounds, 22, 22)
        with Promotion() as promotion:
            promoted = varlen_attn(*packed, bounds, bounds, 22, 22)
    assert promotion.exact
    assert gap(native, promoted) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: nn.LSTM(8, 6, 2), lambda: nn.GRU(8, 6), lambda: nn.BatchNorm1d(8)])
def test_layers_of_cudnn(make: Any, dtype: torch.dtype) -> None:
    model, x = make().to(GPU, dtype).train(), numbers(5, 8, 8, dtype=dtype)
    wide = type(model)(8, 6, 2) if isinstance(model, nn.LSTM) else make()
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        with Promotion() as promotion:
            promoted = model(x)
        reference = wide.to(GPU, torch.float64)(x.double())
    if isinstance(promoted, tuple):
        promoted, reference = promoted[0], reference[0]
    assert promotion.exact
    assert gap(promoted, reference) < 1e-13


KERNEL = """
import triton
import triton.language as tl

@triton.jit
def third(x_pointer, weight_pointer, out_pointer, count, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    x = tl.load(x_pointer + offsets, mask=inside)
    weight = tl.load(weight_pointer + offsets, mask=inside)
    tl.store(out_pointer + offsets, x * weight / 3, mask=inside)
"""


def test_a_triton_kernel_reads_the_values_that_it_is_told_of(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    source = tmp_path / "kernel.py"  # Triton reads a kernel's source from its file
    source.write_text(KERNEL)
    spec = importlib.util.spec_from_file_location("kernel", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    x, weight = numbers(1000), numbers(1000, dtype=torch.float32)
    out = torch.zeros(1000, device=GPU)
    with torch.no_grad(), Promotion() as promotion:
        module.third[(4,)](x, weight, out, 1000, BLOCK=256)
        result = out * 1
    assert gap(result, x.double() * weight.double() / 3) < 1e-15
    assert torch.equal(out, torch.zeros_like(out))
    assert torch.equal(promotion.value(out), result)


def test_weights_never_exist_twice() -> None:
    torch.manual_seed(0)
    width = 4096
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(16))).to(GPU, torch.bfloat16)
    weights = sum(weight.nbytes for weight in model.parameters())
    x = numbers(8, width)
    with torch.no_grad(), Promotion():
        model(x)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        model(x)
        assert torch.cuda.max_memory_allocated() - before < weights / 2


def test_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=12,
        num_attention_heads=16, attn_implementation="sdpa",
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(GPU).eval()
    for length in (50, 500, 2000):
        ids = torch.randint(0, 32000, (1, length), device=GPU)

        def seconds(promoted: bool, ids: torch.Tensor = ids) -> float:
            times = []
            for _ in range(4):
                torch.cuda.synchronize()
                start = time.perf_counter()
                with torch.no_grad():
                    if promoted:
                        with Promotion():
                            model(ids)
                    else:
                        model(ids)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            return min(times)

        native, promoted = seconds(promoted=False), seconds(promoted=True)
        with capsys.disabled():
            print(f"\n{length} tokens: float32 {native * 1e3:.1f} ms, promoted {promoted / native:.2f} times")
        assert promoted < 4 * native
