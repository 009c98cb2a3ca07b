"""What is answered by more than one comparison: plain, frozen records that hold no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

from forkpoint.result import Result, RunSummary, VerdictKind
from forkpoint.result.statuses import EXIT_STATUS, worst_status
from forkpoint.support.answers import Answer

TENFOLD = 10.0
"""By how much a setting has to change the gap to be said to matter."""
ALIKE = 0.01
"""Two settings that move the gap by amounts nearer to each other than this share change as much."""
FAILING = (VerdictKind.SEMANTIC, VerdictKind.NONDETERMINISM, VerdictKind.INPUTS)


@dataclass(frozen=True)
class FactorRow:
    """One comparison, with one thing set otherwise than in the first row; or why it could not be made."""

    factor: str
    """`none` (the first row), `quantization`, `attention`, `dtype`, `device`; `question` where other runs are compared."""
    setting: str
    """What it is set to: `int8`, `eager`, `bfloat16`, `cuda`, `batch`; `as it is` in the first row."""
    verdict: VerdictKind | None = None
    """None where the comparison could not be made."""
    mechanism: str | None = None
    loss_gap: float | None = None
    max_abs: float | None = None
    """Largest absolute gap of the results, among elements that are finite in both runs."""
    max_kl: float | None = None
    """Largest KL divergence of the next-token distributions, in nats."""
    top1_flips: int | None = None
    tokens: int = 0
    """Coordinates compared."""
    nonfinite_apart: int = 0
    """Elements of the results that are NaN or infinite in one run and something else in the other."""
    first: str | None = None
    """The first op that differs."""
    origin: str | None = None
    """The op at which something other than rounding enters, if the verdict is `semantic` and it could be located."""
    seconds: float = 0.0
    """What the comparison took, with making another model for it where one was made."""
    reason: str = ""
    """Why it could not be made here."""
    probed: bool = True
    """Whether probes were asked for; without them the verdict proves at most that the results are identical."""

    @property
    def gap(self) -> float | None:
        """`max_abs`; infinite where a result is not finite in one run alone."""
        return inf if self.nonfinite_apart else self.max_abs


@dataclass(frozen=True, repr=False)
class Factors(Answer):
    """One comparison under one setting after the other. `print(factors)` is the table.

    Attributes:
        a, b: the runs of the first row.
        rows: the comparison as the model is, then with one thing set otherwise; then other questions of the model as it is.
        notes: what a reader should know besides.
        versions: version of each package that took part.
        call: how it was asked for.
    """

    _derived: ClassVar[tuple[str, ...]] = ("matters", "as_much", "summary")
    report_module = "factors"

    a: RunSummary
    b: RunSummary
    rows: tuple[FactorRow, ...]
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict[str, str])
    call: str = ""

    @property
    def matters(self) -> FactorRow | None:
        """The setting that changes most; None where none changes the largest gap tenfold.

        One that makes a difference semantic (or takes that away) comes before one that does not, then the one that moves
        the gap farthest.
        """
        return next(iter(self._weighed), None)

    @property
    def as_much(self) -> tuple[FactorRow, ...]:
        """The settings besides `matters` that change as much: what a table of three digits can't tell apart."""
        return self._weighed[1:]

    @property
    def _weighed(self) -> tuple[FactorRow, ...]:
        """The setting that changes most, and those that can't be told from it."""
        base = self.rows[0]
        failing = base.verdict in FAILING
        weights = [
            ((row.verdict in FAILING) is not failing, _moved(base.gap, row.gap), row)
            for row in self.rows
            if row.factor not in ("none", "question")
        ]
        weights = [weight for weight in weights if weight[1] > 0]
        if not weights:
            return ()
        other, most, _ = first = max(weights, key=lambda weight: weight[:2])
        rises = _rises(base, first[2])
        like = [
            row
            for kind, moved, row in weights
            if kind is other and moved >= (1 - ALIKE) * most and _rises(base, row) is rises
        ]
        return (first[2], *(row for row in like if row is not first[2]))

    @property
    def status(self) -> int:
        """That of the worst row that could be made."""
        return worst_status(row.verdict for row in self.rows if row.verdict is not None and row.probed)

    @property
    def summary(self) -> str:
        """What matters most, in one sentence."""
        from forkpoint.report.factors import sentence

        return sentence(self)

    def __repr__(self) -> str:
        made = sum(row.verdict is not None for row in self.rows)
        return f"<Factors: {made} of {len(self.rows)} rows; {self.summary}>"


@dataclass(frozen=True, repr=False)
class Generation(Answer):
    """Greedy generation in two ways, up to the first token that differs. `print(generation)` is the report.

    Attributes:
        name_a, name_b: the two ways.
        prompt: tokens of the prompt.
        tokens_a, tokens_b: ids of the tokens that were generated.
        text_a, text_b: their text.
        first: index, among the generated tokens, of the first that differs; None where none does.
        token_a, token_b: the two candidates there; None where one way has ended.
        margin_a: in run A, the logit of `token_a` minus that of `token_b`.
        margin_b: in run B, the logit of `token_b` minus that of `token_a`.
        exact_a, exact_b: the same two, every operation done in float64.
        label: `tie`, `within rounding` or `confident`; None where that could not be told.
        result: the forward calls of both ways up to that token, compared; None where no token differs.
        call: how it was asked for.
        model: the model's class, and what it was loaded from.
        text: the prompt.
    """

    report_module = "generation"

    name_a: str
    name_b: str
    prompt: int
    tokens_a: tuple[int, ...]
    tokens_b: tuple[int, ...]
    text_a: str
    text_b: str
    first: int | None = None
    token_a: int | None = None
    token_b: int | None = None
    candidate_a: str | None = None
    """Text of `token_a`."""
    candidate_b: str | None = None
    margin_a: float | None = None
    margin_b: float | None = None
    exact_a: float | None = None
    exact_b: float | None = None
    label: str | None = None
    result: Result | None = None
    call: str = ""
    model: str = ""
    text: str = ""

    @property
    def status(self) -> int:
        """That of the verdict on both ways up to that token; 0 where no token differs, or probes were not asked for."""
        verdict = None if self.result is None else self.result.verdict
        return EXIT_STATUS[verdict.kind] if verdict is not None and verdict.probed else 0

    def to_dict(self) -> dict[str, Any]:
        """The whole answer as plain JSON types (docs/json-schema.md)."""
        return {**super().to_dict(), "result": None if self.result is None else self.result.to_dict()}

    def __repr__(self) -> str:
        if self.first is None:
            return f"<Generation: the same {len(self.tokens_a)} tokens>"
        return f"<Generation: token {self.first} differs, {self.label or 'not told why'}>"


def _moved(before: float | None, after: float | None) -> float:
    """How far a setting moves the gap; 0 where it doesn't change it tenfold."""
    if (
        before is None
        or after is None
        or max(before, after) < TENFOLD * min(before, after)
        or before == after
    ):
        return 0.0
    return abs(before - after)


def _rises(base: FactorRow, row: FactorRow) -> bool:
    return (row.gap or 0) > (base.gap or 0)
