"""What a sweep found: plain, frozen records that hold no model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

from forkpoint.result import VerdictKind
from forkpoint.support.answers import Answer


@dataclass(frozen=True)
class SweepRow:
    """One answer, or why there is none. A question of several prompts and one of factors have a row for each, an audit for each break."""

    cell: str
    """By what the folder knows the question: `results/CELL.json` is what its command wrote."""
    model: str
    question: str
    """Name of the command: `padding`."""
    options: str
    """The other options as JSON."""
    prompt: str = ""
    revision: str | None = None
    setting: str = ""
    """Of `factors`, what is set otherwise; of `audit`, the layout in which bits differ and the length of the row, or what was not tried."""
    status: int | None = None
    """Exit status of the command: 0, 1 or 3; None where there is no answer."""
    verdict: VerdictKind | None = None
    """None where there is no answer, for generated text in which no token differs, and of `audit`, which `status` speaks for."""
    mechanism: str | None = None
    by_design: bool | None = None
    origin: str | None = None
    """The op at which something other than rounding enters, if the verdict is `semantic` and it could be located."""
    first: str | None = None
    """The first op that differs."""
    loss_gap: float | None = None
    max_abs: float | None = None
    """Largest absolute gap of the results, among elements that are finite in both runs; of `engines`, of log-probabilities."""
    max_rel: float | None = None
    max_kl: float | None = None
    """Largest KL divergence of the next-token distributions, in nats."""
    top1_flips: int | None = None
    tokens: int | None = None
    """Coordinates compared."""
    nonfinite_apart: int | None = None
    """Elements of the results that are NaN or infinite in one run and something else in the other."""
    seconds: float = 0.0
    forkpoint: str = ""
    torch: str = ""
    transformers: str = ""
    reason: str = ""
    """Why there is no answer: what the command said, what became of its process, or that its time was over."""


@dataclass(frozen=True, repr=False)
class Sweep(Answer):
    """Many questions and their answers. `print(sweep)` is the table.

    Attributes:
        folder: where the answers are kept; `sweep.parquet` in it has the rows.
        rows: in the order of the questions.
        cells: how many questions there are.
        kept: how many of them had been answered before.
        versions: of forkpoint, torch and transformers.
        call: how it was asked for.
    """

    _derived: ClassVar[tuple[str, ...]] = ("status",)
    report_module = "sweep"

    folder: str
    rows: tuple[SweepRow, ...]
    cells: int
    kept: int = 0
    versions: dict[str, str] = field(default_factory=dict[str, str])
    call: str = ""

    @property
    def status(self) -> int:
        """The worst exit status: 1 before 3 before 0; a question without an answer counts as 3."""
        statuses = {3 if row.status is None else row.status for row in self.rows}
        return 1 if 1 in statuses else 3 if 3 in statuses else 0

    @property
    def unanswered(self) -> tuple[SweepRow, ...]:
        """The rows of questions without an answer."""
        return tuple(row for row in self.rows if row.status is None)

    def counts(self) -> Counter[str]:
        """How many rows have each verdict; those without one are counted as ``."""
        return Counter("" if row.verdict is None else row.verdict.value for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types (docs/json-schema.md)."""
        return {"sweep": self.folder, **super().to_dict()}

    def __bool__(self) -> bool:
        raise TypeError("a sweep is neither true nor false: ask sweep.status or its rows")

    def __repr__(self) -> str:
        return f"<Sweep: {self.cells} questions, {len(self.unanswered)} of them without an answer>"
