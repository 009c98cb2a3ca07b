"""What an audit found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forkpoint.errors import DifferenceError
from forkpoint.support.answers import Answer


@dataclass(frozen=True)
class Break:
    """Two layouts in which the same tokens, or rows, have other bits.

    Attributes:
        kind: what was varied: `rows`, `right padding`, `left padding`, `batch`, `steps`, `chunks`, `order`, `again`.
        size: the smallest size that breaks: rows, tokens, or prompts of a call.
        other: the size that it was held against: its neighbour, where one was found.
        words: the two layouts in a sentence.
        differing, compared: how many values differ, of how many.
        gap: the largest distance.
        op: the first operation that differs, with its source, where the model's operations could be seen.
        kernels: what ran for `size` and for `other`, where a profiler could tell.
    """

    kind: str
    size: int
    other: int
    words: str
    differing: int
    compared: int
    gap: float
    op: str | None = None
    kernels: tuple[tuple[str, ...], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Accuracy:
    """Distances from float64, relative to the mean size of what is exact.

    Attributes:
        mean, largest: of what was audited.
        reference_mean, reference_largest: of the reference; None without one.
    """

    mean: float
    largest: float
    reference_mean: float | None = None
    reference_largest: float | None = None

    @property
    def worse(self) -> bool:
        """Whether it is less exact than the reference, on the mean by more than a tenth."""
        return self.reference_mean is not None and self.mean > 1.1 * self.reference_mean


@dataclass(frozen=True)
class Audit(Answer):
    """Whether a claim of invariance holds in what was tried.

    Attributes:
        subject: what was audited.
        tried: how many layouts were compared.
        breaks: the smallest layouts that break it, one of each kind.
        breaking: of functions, all sizes that were tried and have other bits than the largest.
        precision: how exact it is; None where float64 could not be had.
        unfinished: what was not tried, and why; empty if all was.
        largest: the largest size that was tried: rows, tokens, or prompts of a call.
    """

    _derived: ClassVar[tuple[str, ...]] = ("holds",)
    report_module = "audit"

    subject: str
    tried: int
    breaks: tuple[Break, ...]
    breaking: tuple[int, ...] = ()
    precision: Accuracy | None = None
    unfinished: str = ""
    largest: int = 0

    @property
    def holds(self) -> bool:
        """Whether something was compared, nothing of it broke, and nothing is less exact than its reference."""
        return (
            self.tried > 0 and not self.breaks and not (self.precision is not None and self.precision.worse)
        )

    @property
    def status(self) -> int:
        """0 if it holds, else 1."""
        return 0 if self.holds else 1

    def check(self) -> None:
        """Raise unless it holds.

        Raises:
            DifferenceError: it does not; the message says where.
        """
        if not self.holds:
            raise DifferenceError(str(self))
