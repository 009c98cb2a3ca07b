"""What an audit found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forkpoint.errors import DifferenceError
from forkpoint.support.files import write_json


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
class Precision:
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
class Audit:
    """Whether a claim of invariance holds in what was tried.

    Attributes:
        subject: what was audited.
        tried: how many layouts were compared.
        breaks: the smallest layouts that break it, one of each kind.
        breaking: of functions, all sizes that were tried and have other bits than the largest.
        precision: how exact it is; None where float64 could not be had.
        unfinished: what was not tried, and why; empty if all was.
    """

    subject: str
    tried: int
    breaks: tuple[Break, ...]
    breaking: tuple[int, ...] = ()
    precision: Precision | None = None
    unfinished: str = ""

    @property
    def holds(self) -> bool:
        """Whether something was compared, nothing of it broke, and nothing is less exact than its reference."""
        return (
            self.tried > 0 and not self.breaks and not (self.precision is not None and self.precision.worse)
        )

    def check(self) -> None:
        """Raise unless it holds.

        Raises:
            DifferenceError: it does not; the message says where.
        """
        if not self.holds:
            raise DifferenceError(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**asdict(self), "holds": self.holds}

    def to_json(self, path: str | Path) -> None:
        """Write it to a file."""
        write_json(Path(path), self.to_dict())

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        lines = [f"Audit of {self.subject}: {self.tried} layouts compared, bit for bit."]
        if not self.breaks:
            lines.append(
                "  No layout that was tried changes a bit." if self.tried else "  Nothing was compared."
            )
        for one in self.breaks:
            lines.append(
                f"  Breaks: {one.words}; {one.differing} of {one.compared} values differ, by at most {one.gap:.3g}."
            )
            if one.op is not None:
                lines.append(f"    first at {one.op}")
            if one.kernels is not None:
                lines += [
                    f"    kernels with {size}: {', '.join(names) or 'none seen'}"
                    for size, names in zip((one.size, one.other), one.kernels, strict=True)
                ]
        if self.breaking:
            lines.append(f"  Sizes with other bits than the largest: {_ranges(self.breaking)}.")
        if self.precision is not None:
            lines += self._exactness(self.precision)
        if self.unfinished:
            lines.append(f"  Not tried: {self.unfinished}.")
        return lines

    @staticmethod
    def _exactness(precision: Precision) -> list[str]:
        line = f"  Distance from float64: {precision.mean:.3g} on the mean, at most {precision.largest:.3g}"
        if precision.reference_mean is None:
            return [f"{line}."]
        beside = f"; the reference's: {precision.reference_mean:.3g}, {precision.reference_largest:.3g}."
        return [line + beside, *(["  It is less exact than the reference."] if precision.worse else [])]


def _ranges(sizes: tuple[int, ...]) -> str:
    """Whole numbers with neighbours put together.

    >>> _ranges((1, 2, 3, 7, 9, 10))
    '1 to 3, 7, 9 to 10'
    """
    runs: list[list[int]] = []
    for size in sizes:
        if runs and size == runs[-1][-1] + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
