"""Values that can't be read, in runs that part elsewhere or nowhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .case import DIFFERS, SAME, Pair, case
from .expect import FUNCTION, SOUND
from .modules import Tagger, seeded
from .pairs import padded

# ---------------------------------------------------------------------- 46: memory that is gone


class _Frees(nn.Module):
    """Gives memory back that it is done with, as offloading does; and may scale by the length of the batch."""

    def __init__(self, by_length: float) -> None:
        super().__init__()
        self.by_length = by_length

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        doubled = hidden * 2
        out = hidden + torch.tanh(doubled)
        doubled.untyped_storage().resize_(0)
        return out * (1 + self.by_length * hidden.shape[1]) if self.by_length else out


@case(
    "46-let-go",
    "Memory let go of before it is read, and a scale by the padded length",
    FUNCTION,
    truth=DIFFERS,
    origin=("mul",),
)
def _() -> Pair:
    return padded(seeded(Tagger, _Frees(0.25)), "right")


@case("46-let-go-sound", "Memory let go of before it is read, padded", *SOUND, truth=SAME)
def _() -> Pair:
    return padded(seeded(Tagger, _Frees(0.0)), "right")
