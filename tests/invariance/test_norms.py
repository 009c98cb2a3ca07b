"""Which norms are torch's one kernel: a trial tells, not the name."""

import pytest
import torch
import transformers as tf
from torch import Tensor, nn

from forkpoint.invariance import norms

X = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))


class ShiftedRMSNorm(nn.Module):
    """One whose weight is a distance from one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(64))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


class CenteredRMSNorm(ShiftedRMSNorm):
    """One that takes the mean away."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (64,), self.weight, None, self.eps)


def llama(dtype: torch.dtype) -> nn.Module:
    made = tf.models.llama.modeling_llama.LlamaRMSNorm(64, eps=1e-5)
    nn.init.uniform_(made.weight)
    return made.to(dtype)


def is_one(module: nn.Module, epsilon: float, x: Tensor = X) -> bool:
    kind = type(module)
    assert norms.may_be(kind)
    norms._held.clear()
    with torch.no_grad():
        return norms._is(module, kind.forward, module._parameters["weight"], epsilon, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llamas_norm_is_one_and_others_are_not(dtype):
    assert is_one(llama(dtype), 1e-5, X.to(dtype))
    assert not is_one(ShiftedRMSNorm().to(dtype), 1e-6, X.to(dtype))
    assert not is_one(CenteredRMSNorm().to(dtype), 1e-6, X.to(dtype))


def test_another_epsilon_or_another_width_is_not_one():
    assert not is_one(llama(torch.float32), 0.5)
    assert not is_one(llama(torch.float32), 1e-5, X[:, :32])
    assert not is_one(llama(torch.float32), None)


def test_a_kernel_that_follows_the_number_of_rows_is_none(monkeypatch):
    own = norms._made

    def switching(rows: Tensor, weight: Tensor, epsilon: float):
        made, root = own(rows, weight, epsilon)
        return made, root * (1 + 1e-6) if 8 <= len(rows) < 16 else root

    module = llama(torch.bfloat16)
    assert is_one(module, 1e-5, X.bfloat16())
    monkeypatch.setattr(norms, "_made", switching)
    assert not is_one(module, 1e-5, X.bfloat16())


def test_classes_by_other_names_are_not_asked():
    assert not norms.may_be(nn.LayerNorm) and not norms.may_be(nn.Linear)
    assert norms.made(llama(torch.float32), lambda module, x: x, X) is None  # no GPU
