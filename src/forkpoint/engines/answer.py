"""What a comparison of an engine with a reference found: plain, frozen records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from forkpoint.result import VerdictKind
from forkpoint.result.statuses import EXIT_STATUS
from forkpoint.screening import Screening
from forkpoint.support.answers import Answer


@dataclass(frozen=True)
class Check:
    """One part of the question whether both were asked the same."""

    name: str
    """`token_ids`, `positions`, `sampling`, `weights`, `prefix_cache`, `warm_up`, `reported`, `reported_elsewhere`."""
    outcome: str
    """`same`, `differs` or `unknown`."""
    text: str


@dataclass(frozen=True)
class EngineOp:
    """One op of the engine, held against the reference on the same inputs: those that the engine's op was given."""

    op: str
    """The engine's op whose result it is: `model.layers.0.input_layernorm/mul`."""
    source: str
    """Where the engine calls it, `file.py:line`; empty for what a module returns."""
    reference: str
    """What it is in the reference: `model.layers.0.input_layernorm/output`."""
    reference_source: str
    """Where that module's forward begins, `file.py:line`."""
    found: str
    """How the two were brought together: `path`, `renamed`, `fused`, `residual`, `sum`, `attention`."""
    status: str
    """`identical`, `rounding` (neither is farther from float64 than rounding takes it), `differs`, `mislabelled` (the value of
    another op was recorded), or `not compared`."""
    error: float | None = None
    """The engine's largest distance from the reference in float64, given the engine's inputs."""
    reference_error: float | None = None
    """The same of the reference in its own dtype."""
    times: float | None = None
    """How many times as far from float64 as rounding takes it the engine is, at the worst token."""
    reference_times: float | None = None
    """The same of the reference in its own dtype: where it is the one that is far, the engine is not to blame."""
    sample: int | None = None
    """Of the first token that is farther than rounding, or the worst one."""
    position: int | None = None
    differing: int = 0
    """Tokens at which it is farther than rounding."""
    compared: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Cost:
    """What the difference costs, token by token, both computing freely from the same token ids."""

    tokens: int
    mean_abs: float
    """Mean |log p of the engine - log p of the reference| of the token that came next, in nats."""
    max_abs: float
    mean_kl: float
    """Of the next-token distributions, in nats, the reference's relative to the engine's."""
    max_kl: float
    ratio: float
    """Mean of p of the engine over p of the reference."""
    top1_flips: int
    """Positions at which another token is the likeliest."""


@dataclass(frozen=True)
class Listed:
    """An op of the engine, and where its result is compared, or why not."""

    op: str
    source: str
    status: str
    """`compared`, `within` (its result goes into that of `part_of`), or `listed`."""
    part_of: str = ""
    reason: str = ""


@dataclass(frozen=True, repr=False)
class EngineComparison(Answer):
    """An engine against a reference. `print(comparison)` is the report."""

    _derived: ClassVar[tuple[str, ...]] = ("agrees",)
    report_module = "engines"

    engine: str
    version: str
    reference: str
    verdict: VerdictKind
    mechanism: str | None
    """What kind of difference: `token_ids`, `position_ids`, `parameters`, `cache_state`, `temperature`, `top_p`, `top_k`, or None."""
    summary: str
    """One sentence."""
    question: tuple[Check, ...]
    ops: tuple[EngineOp, ...]
    """In the order in which the reference computes them."""
    first: EngineOp | None
    """The first op that is farther from float64 than rounding takes it."""
    cost: Cost | None
    reported: Screening | None
    """What the log-probabilities that the engine returned say, held against the reference's; None where they are those of its
    own logits, or where it returned none."""
    listed: tuple[Listed, ...] = ()
    """Every op of the engine."""
    switch: str = ""
    """What makes the difference go away, where that is known."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict[str, str])
    call: str = ""

    @property
    def agrees(self) -> bool:
        """Whether nothing but rounding was seen."""
        return self.verdict in (VerdictKind.IDENTICAL, VerdictKind.ROUNDING)

    @property
    def status(self) -> int:
        """That of the verdict."""
        return EXIT_STATUS[self.verdict]

    def __bool__(self) -> bool:
        raise TypeError("a comparison is neither true nor false: ask comparison.agrees or comparison.verdict")

    def __repr__(self) -> str:
        return f"<EngineComparison: {self.engine} against {self.reference}: {self.verdict}>"
