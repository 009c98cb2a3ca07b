"""Small modules that apply one torch function, and two runs in which its values differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forkpoint.runs.run import Run

Op = Callable[[Tensor, Tensor], Any]


class One(nn.Module):
    """One torch function of the input `[1, tokens, 8]` and a weight."""

    def __init__(self, op: Op, weight: Tensor) -> None:
        super().__init__()
        self.op = op
        self.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())

    def forward(self, input: Tensor) -> Any:  # noqa: A002
        return self.op(input, self.weight)


def _set(x: Tensor, w: Tensor) -> Tensor:
    x[:, 0, :2] = w[0, :2]
    return x


OPS: dict[str, tuple[tuple[int, ...], Op]] = {
    "linear": ((8, 8), F.linear),
    "linear with bias": ((8, 8), lambda x, w: F.linear(x, w, w[0])),
    "matmul": ((8, 8), torch.matmul),
    "@": ((8, 8), lambda x, w: x @ w),
    "addmm": ((8, 8), lambda x, w: torch.addmm(w[0], x[0], w)),
    "bmm": ((1, 8, 8), torch.bmm),
    "baddbmm": ((1, 8, 8), lambda x, w: torch.baddbmm(w[:, :1], x, w, beta=0.5, alpha=2)),
    "+": ((8,), lambda x, w: x + w),
    "reflected -": ((8,), lambda x, w: 1.5 - (x * w)),
    "+= in place": ((8,), lambda x, w: x.add_(w, alpha=2)),
    "** in place": ((8,), lambda x, w: x.abs_().add_(1).pow_(w)),
    "setitem": ((8, 8), _set),
    "getitem of a product": ((8,), lambda x, w: (x * w)[:, 1:, ::2]),
    "where": ((8,), lambda x, w: torch.where(x > 0, w, x)),
    "masked_fill": ((), lambda x, w: x.masked_fill(x > 0, w)),
    "lerp": ((8,), lambda x, w: torch.lerp(x, w, 0.25)),
    "addcmul": ((8,), lambda x, w: torch.addcmul(x, x, w, value=-0.5)),
    "clamp": ((8,), lambda x, w: torch.clamp(x, min=w)),
    "atan2": ((8,), torch.atan2),
    "prelu": ((1,), F.prelu),
    "einsum": ((8, 8), lambda x, w: torch.einsum("bth,hk->btk", x, w)),
    "layer_norm": ((8,), lambda x, w: F.layer_norm(x, (8,), w, w)),
    "rms_norm": ((8,), lambda x, w: F.rms_norm(x, (8,), w, eps=1e-6)),
    "batch_norm": ((8,), lambda x, w: F.batch_norm(x[0], w, w.abs() + 1, w, w, False)),
    "conv1d": ((8, 8, 3), lambda x, w: F.conv1d(x.transpose(1, 2), w, padding=1)),
    "softmax to float64": ((8,), lambda x, w: torch.softmax(x + w, dim=-1, dtype=torch.float64)),
    "gelu": ((8,), lambda x, w: F.gelu(x + w, approximate="tanh")),
    "cumsum": ((8,), lambda x, w: torch.cumsum(x - w, dim=1)),
    "sum over strides": ((8,), lambda x, w: (x * w)[:, ::2].sum(-1, keepdim=True)),
    "embedding": ((16, 8), lambda x, w: F.embedding((x[..., 0].abs() * 3).long().clamp(max=15), w)),
    "topk": ((8,), lambda x, w: torch.topk(x * w, 3, dim=-1)),
    "fft": ((8,), lambda x, w: torch.fft.rfft(x * w, dim=-1)),
    "T of a product": ((8,), lambda x, w: (x * w)[0].T.contiguous()),
    "aten overload": ((8,), torch.ops.aten.mul.Tensor),
    "to another dtype": ((8,), lambda x, w: (x * w).to(torch.float16)),
}  # fmt: skip
"""By a name: the shape of the weight, and what is computed."""


def other_weights(name: str, dtype: torch.dtype = torch.float32) -> tuple[Run, Run]:
    """Two runs of one op whose weights differ, so that its values surely do, on any machine."""
    shape, op = OPS[name]
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, 5, 8, generator=generator).to(dtype)
    weights = [torch.randn(shape, generator=generator).to(dtype) for _ in "ab"]
    return Run(One(op, weights[0]), {"input": x}, name="a"), Run(One(op, weights[1]), {"input": x}, name="b")


class Attention(nn.Module):
    """Attention over the input's heads `[1, heads, tokens, 8]`, with a mask of its own."""

    def __init__(self, *, causal: bool, window: int | None = None) -> None:
        super().__init__()
        self.causal = causal
        self.window = window

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        if self.causal:
            return F.scaled_dot_product_attention(input, input, input, is_causal=True)
        length = input.shape[-2]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        if self.window is not None:
            mask &= torch.ones(length, length, dtype=torch.bool).triu(1 - self.window)
        return F.scaled_dot_product_attention(input, input, input, attn_mask=mask)
