"""What is asked of one call of an attention besides its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Attention:
    """What is asked of one call besides the tensors.

    Attributes:
        scale: factor of the scores.
        softcap: the scores are bounded by this, or None.
        sinks: `[heads]`, scores of a key that has no value; or None.
    """

    scale: float
    softcap: float | None
    sinks: torch.Tensor | None
