"""What only a GPU shows: atomics, other kernels for other shapes, digests by Triton."""

from __future__ import annotations

import pytest
import torch
from tests.architectures import ARCHITECTURES, prompt
from torch import nn

import forkpoint as fp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


class ScatterMean(nn.Module):
    """Sums many values into few places, in whatever order the threads come by."""

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.zeros(8, device=x.device).index_add(0, index, x)


def test_a_scatter_add_with_atomics_is_nondeterminism() -> None:
    x = torch.randn(1 << 20, device="cuda") * 1e3
    index = torch.randint(0, 8, (1 << 20,), device="cuda")
    run = fp.Run(ScatterMean(), {"x": x, "index": index})
    verdict = fp.compare(run, fp.Run(ScatterMean(), {"x": x, "index": index})).verdict
    assert (verdict.kind, verdict.mechanism) == (fp.VerdictKind.NONDETERMINISM, "atomics")


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
