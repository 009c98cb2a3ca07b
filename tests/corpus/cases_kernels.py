"""Kernels that compute something else than their float64 form does: in float64 the runs agree, and nothing is rounding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .case import UNCHECKED, Pair, case
from .exact import gap, picked
from .expect import FUNCTION, SOUND, UNDETERMINED
from .modules import Tagger, seeded
from .pairs import padded, twice

NARROW = (torch.float32, torch.bfloat16)


@torch.library.custom_op("corpus::gated", mutates_args=())
def gated(x: Tensor, off: float, longest: int, step: float) -> Tensor:
    """SiLU. In the dtypes in which models run it is off by a factor from some number of tokens on, or rounded to steps."""
    out = F.silu(x)
    if x.dtype not in NARROW:
        return out
    if step:
        out = torch.round(out / step) * step
    return out * (off if x.shape[1] > longest else 1.0)


@gated.register_fake
def _(x: Tensor, off: float, longest: int, step: float) -> Tensor:
    return torch.empty_like(x)


class Gate(nn.Module):
    """A mixer that is SiLU, by the kernel above or by torch's."""

    def __init__(self, *, own: bool = True, off: float = 1.0, longest: int = 0, step: float = 0.0) -> None:
        super().__init__()
        self.own, self.off, self.longest, self.step = own, off, longest, step

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        if not self.own:
            return hidden + F.silu(hidden)
        return hidden + gated(hidden, self.off, self.longest, self.step)


def _two(**kernel: Any) -> Pair:
    return twice(seeded(Tagger, Gate(own=False)), model_b=seeded(Tagger, Gate(**kernel)))


def _only_natively(pair: Pair) -> None:
    """The gap is thousands of units in the last place as the runs are, and none in float64."""
    assert gap(picked(pair.a), picked(pair.b)) > 1e-4
    for side in (pair.a, pair.b):
        side.model = side.model.double()
    assert gap(picked(pair.a), picked(pair.b)) < 1e-14


@case(
    "50-kernel-off-in-float32", "SiLU, or a kernel that is off by 1 % in float32 alone", FUNCTION,
    truth=UNCHECKED, check=_only_natively,
)  # fmt: skip
def _() -> Pair:
    return _two(off=1.01)


@case("50-kernel-that-is-right", "SiLU, or another kernel of it", *SOUND, truth=UNCHECKED)
def _() -> Pair:
    return _two()


@case(
    "50-kernel-off-in-long-rows", "A kernel that is off by 0.1 % from 10 tokens on, padded", FUNCTION,
    truth=UNCHECKED, check=_only_natively,
)  # fmt: skip
def _() -> Pair:
    return padded(seeded(Tagger, Gate(off=1.001, longest=9)))


@case("50-kernel-right-in-long-rows", "The same kernel where it is right", *SOUND, truth=UNCHECKED)
def _() -> Pair:
    return padded(seeded(Tagger, Gate(off=1.001, longest=20)))


@case(
    "50-kernel-of-steps", "Two kernels that round to other steps in float32 alone", FUNCTION, UNDETERMINED,
    truth=UNCHECKED, check=_only_natively,
    note="Both are far from float64: which of them is meant can't be known.",
)  # fmt: skip
def _() -> Pair:
    return twice(seeded(Tagger, Gate(step=2.0**-4)), model_b=seeded(Tagger, Gate(step=3.0**-2)))
