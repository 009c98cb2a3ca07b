"""What only a GPU shows: atomics, other kernels for other shapes, digests by Triton."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt
from tests.backends import Mistake
from tests.gpu_atomics import ATOMIC, EITHER, FIXED, Calls, given, varies
from tests.test_miscompiled import compared, on
from torch import Tensor

import forkpoint as fp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def repeated(function: Callable[..., Tensor]) -> fp.Verdict:
    """The verdict on two runs of a model that calls a function, on the same inputs."""
    inputs = given("cuda")
    model = Calls(function)
    return fp.compare(fp.Run(model, inputs), fp.Run(model, inputs)).verdict


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", ATOMIC)
def test_sums_by_atomics_are_nondeterminism(name: str) -> None:
    assert varies(ATOMIC[name], given("cuda"))
    verdict = repeated(ATOMIC[name])
    assert (verdict.kind, verdict.mechanism) == (fp.VerdictKind.NONDETERMINISM, "atomics")


@pytest.mark.parametrize("name", FIXED)
def test_sums_in_a_fixed_order_are_identical(name: str) -> None:
    assert not varies(FIXED[name], given("cuda"))
    assert repeated(FIXED[name]).kind is fp.VerdictKind.IDENTICAL


@pytest.mark.parametrize("name", EITHER)
def test_what_varies_is_nondeterminism_and_nothing_else(name: str) -> None:
    expected = (
        fp.VerdictKind.NONDETERMINISM if varies(EITHER[name], given("cuda")) else fp.VerdictKind.IDENTICAL
    )
    assert repeated(EITHER[name]).kind is expected


def test_a_deterministic_algorithm_takes_the_place_of_atomics() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert repeated(ATOMIC["index_add"]).kind is fp.VerdictKind.IDENTICAL
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["plain", "llama"])
def test_what_inductor_compiles_is_sound_and_a_mistake_is_found(name: str) -> None:
    assert compared(*on("cuda", name), None, "inductor").verdict.kind in (
        fp.VerdictKind.IDENTICAL,
        fp.VerdictKind.ROUNDING,
    )
    mistake = Mistake("eps", "norm" if name == "plain" else "input_layernorm")
    result = compared(*on("cuda", name), mistake, "inductor")
    assert mistake.made
    assert result.verdict.kind is fp.VerdictKind.SEMANTIC
    assert result.origin is not None
    assert result.origin.module.endswith("layers.1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bert", "mamba2"])
def test_padding_is_rounding(name: str, dtype: torch.dtype) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build(0, dtype, "sdpa" if "mamba" not in name else "eager").cuda()

    def on_gpu(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value.cuda() for key, value in inputs.items()}

    rows = [prompt(9, 0)]
    a = fp.Run(model, on_gpu(architecture.inputs(rows)))
    b = fp.Run(model, on_gpu(architecture.inputs(rows, 50, "right")))
    result = fp.compare(a, b)
    assert result.verdict.kind in (fp.VerdictKind.IDENTICAL, fp.VerdictKind.ROUNDING), str(result)
