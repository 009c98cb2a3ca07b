"""What a comparison takes of a GPU's memory goes with its result."""

from __future__ import annotations

import gc

import pytest
import torch
from tests.trust.wrapping import Between

import forkpoint as fp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("by_length", [0.0, 0.25], ids=["rounding", "semantic"])
def test_no_memory_of_a_gpu_outlives_its_result(by_length: float) -> None:
    torch.manual_seed(0)
    model = Between(torch.tanh, by_length=by_length).cuda()
    x = torch.randn(4, 64, 8, device="cuda")

    def compared() -> fp.Result:
        masks = [(torch.arange(n) < 50).long().expand(4, n) for n in (50, 64)]
        runs = [fp.Run(model, {"x": x[:, : m.shape[1]]}, layout=fp.Layout.from_mask(m)) for m in masks]
        return fp.compare(*runs)

    def allocated() -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    for _ in range(3):  # workspaces of libraries and tables of forkpoint's own, which stay
        compared()
    before = allocated()
    for _ in range(3):
        result = compared()
        assert str(result)
        del result
        assert allocated() == before
