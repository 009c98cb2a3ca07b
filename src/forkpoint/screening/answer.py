"""What a screening found: a plain, frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forkpoint.support.answers import Answer

CAUSES = (
    "identical", "rounding", "temperature", "top_p", "top_k", "shifted", "tokenisation", "other_weights", "unknown"
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Screening(Answer):
    """How the log-probabilities of two engines differ. `print(screening)` is the report."""

    _derived: ClassVar[tuple[str, ...]] = ("agrees",)
    report_module = "screening"

    cause: str
    """`identical`; `rounding` (no farther apart than rounding makes them); `temperature`, `top_p`, `top_k` (or another cut of
    the vocabulary) applied on one side alone; `shifted` by some positions; `tokenisation` (other tokens); `other_weights` (the
    gap is none of these and larger than rounding makes it: stale or other weights, or another function); `unknown`."""
    summary: str
    """One sentence."""
    sequences: int
    tokens: int
    """Log-probabilities that were compared: those that are finite in both."""
    mean_abs: float
    """Mean of |log p of A - log p of B|, in nats."""
    max_abs: float
    ratio: float
    """Mean of p of B over p of A."""
    side: str | None = None
    """`a` or `b`: the one that was changed, where only one was."""
    temperature: float | None = None
    """Of B, about, where A has 1."""
    top_p: float | None = None
    kept_mass: float | None = None
    """Mean share of the probability that was kept, where it was spread over a part of the vocabulary."""
    shift: int | None = None
    """By how many positions B's list is behind A's."""
    logit_noise: float | None = None
    """Typical size of the gap in units of a logit: |gap| / (1 - p), median over tokens that are in doubt."""
    only_a: int = 0
    """Tokens that B rules out (log-probability minus infinity) and A does not."""
    only_b: int = 0
    first: tuple[int, int] | None = None
    """(sequence, token) of the first difference that `summary` speaks of, from 0."""
    evidence: tuple[str, ...] = ()
    """What was tried, a sentence each."""

    @property
    def agrees(self) -> bool:
        """Whether nothing but rounding was seen."""
        return self.cause in ("identical", "rounding")

    @property
    def status(self) -> int:
        """0 if nothing but rounding was seen, 1 if there is another cause, 3 if it can't be told."""
        return 0 if self.agrees else 3 if self.cause == "unknown" else 1

    def __bool__(self) -> bool:
        raise TypeError("a screening is neither true nor false: ask screening.agrees or screening.cause")

    def __repr__(self) -> str:
        return f"<Screening: {self.cause}, mean gap {self.mean_abs:.3g} nats over {self.tokens} tokens>"
