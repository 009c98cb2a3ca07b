"""What recorded log-probabilities alone tell of two engines: no model is run."""

from __future__ import annotations

from forkpoint.screening.answer import Screening
from forkpoint.screening.screen import logprobs

__all__ = ["Screening", "logprobs"]
