"""What an audit found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forkpoint.errors import DifferenceError
from forkpoint.report.words import Words
from forkpoint.support.records import JsonRecord


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
class Audit(JsonRecord):
    """Whether a claim of invariance holds in what was tried.

    Attributes:
        subject: what was audited.
        tried: how many layouts were compared.
        breaks: the smallest layouts that break it, one of each kind.
        breaking: of functions, all sizes that were tried and have other bits than the largest.
        precision: how exact it is; None where float64 could not be had.
        unfinished: what was not tried, and why; empty if all was.
    """

    _derived: ClassVar[tuple[str, ...]] = ("holds",)

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

    def to_text(self, *, lang: str = "en") -> str:
        """What was found, in lines.

        Args:
            lang: `en` or `zh`.

        Raises:
            InputError: there is no such language.
        """
        return "\n".join(self._lines(Words(lang)))

    def __str__(self) -> str:
        return self.to_text()

    def _lines(self, words: Words) -> list[str]:
        lines = [words.many("audit.subject", self.tried, subject=self.subject)]
        if not self.breaks:
            lines.append("  " + words("audit.holds" if self.tried else "audit.nothing"))
        for one in self.breaks:
            numbers = {"differing": one.differing, "compared": one.compared, "gap": f"{one.gap:.3g}"}
            lines.append("  " + words("audit.breaks", words=words.phrase(one.words), **numbers))
            if one.op is not None:
                lines.append("    " + words("audit.first", op=words.phrase(one.op)))
            if one.kernels is not None:
                lines += [
                    "    "
                    + words("audit.kernels", size=size, names=", ".join(names) or words("audit.unseen"))
                    for size, names in zip((one.size, one.other), one.kernels, strict=True)
                ]
        if self.breaking:
            lines.append("  " + words("audit.sizes", sizes=_ranges(self.breaking, words)))
        if self.precision is not None:
            lines += ["  " + line for line in _exactness(self.precision, words)]
        if self.unfinished:
            lines.append("  " + words("audit.unfinished", what=words.phrase(self.unfinished)))
        return lines


def _exactness(precision: Precision, words: Words) -> list[str]:
    own = {"mean": f"{precision.mean:.3g}", "largest": f"{precision.largest:.3g}"}
    if precision.reference_mean is None:
        return [words("audit.exact", **own)]
    others = {"other_mean": f"{precision.reference_mean:.3g}", "other": f"{precision.reference_largest:.3g}"}
    said = words("audit.reference", **own, **others)
    return [said, *([words("audit.worse")] if precision.worse else [])]


def _ranges(sizes: tuple[int, ...], words: Words) -> str:
    """Whole numbers with neighbours put together.

    >>> _ranges((1, 2, 3, 7, 9, 10), Words())
    '1 to 3, 7, 9 to 10'
    """
    runs: list[list[int]] = []
    for size in sizes:
        if runs and size == runs[-1][-1] + 1:
            runs[-1].append(size)
        else:
            runs.append([size])
    said = (str(run[0]) if len(run) == 1 else words("audit.range", a=run[0], b=run[-1]) for run in runs)
    return words("comma").join(said)
