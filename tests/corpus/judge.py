"""Asks forkpoint about a case and compares its verdict with the truth."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from functools import cache
from typing import Any

from .case import CASES, Case
from .truth import same_bits


@dataclass(frozen=True)
class Outcome:
    """What forkpoint said about a case.

    Attributes:
        right: kind, mechanism and by_design are among those expected.
        complaint: what is wrong with them; empty where nothing is.
        origin_right: the origin's op is where the case has its cause; None where the verdict has none to give.
    """

    case: Case
    kind: str
    mechanism: str | None
    by_design: bool | None
    origin: str | None
    first: str | None
    summary: str
    seconds: float
    right: bool
    complaint: str
    origin_right: bool | None
    origin_complaint: str
    chinese: tuple[str, ...] = ()
    """What the verdict and its evidence say in Chinese, statement by statement."""


def judge(case: Case) -> Outcome:
    """The outcome of a case, computed once."""
    return _judge(case.id)


@cache
def _judge(name: str) -> Outcome:
    import forkpoint as fp

    case = CASES[name]
    began = time.perf_counter()
    try:
        a, b, how, patches = case.build()
        with patches:
            began = time.perf_counter()
            result = fp.compare(a, b, **how)
    except Exception as error:  # noqa: BLE001 — a case that raises is one wrong verdict, not the end of the scoreboard
        text = "".join(traceback.format_exception(error)[-4:])
        return Outcome(
            case,
            "raised",
            type(error).__name__,
            None,
            None,
            None,
            str(error),
            time.perf_counter() - began,
            False,
            text,
            None,
            text,
        )
    seconds = time.perf_counter() - began
    verdict = result.verdict
    kind = str(getattr(verdict.kind, "value", verdict.kind))
    origin = result.origin.op if result.origin is not None else None
    complaint = ""
    if not case.accepts(kind, verdict.mechanism, verdict.by_design):
        wanted = " or ".join(str(expect) for expect in case.expected)
        complaint = f"said {kind} ({verdict.mechanism}, by design {verdict.by_design}), wanted {wanted}"
    elif kind == "identical" and same_bits(case) is False:
        complaint = "said identical, but bits differ"
    elif verdict.by_design and not any(
        p.name == "coupling" and p.outcome == "coupled" for p in verdict.evidence
    ):
        complaint = "said that it is meant, but showed no coupling"
    elif kind == "rounding" and case.truth == "bits":
        complaint = "said rounding, but not one bit differs"
    if complaint:
        evidence = "\n".join(
            f"  {probe.name}: {probe.outcome} {probe.figure} {probe.text}" for probe in verdict.evidence
        )
        complaint = f"{case.id}: {complaint}\n  {verdict.summary}\n{evidence}"
    origin_right = None
    if case.origin and kind == "semantic":
        origin_right = origin is not None and any(part in origin for part in case.origin)
    first = result.first.op if result.first is not None else None
    return Outcome(
        case,
        kind,
        verdict.mechanism,
        verdict.by_design,
        origin,
        first,
        verdict.summary,
        seconds,
        not complaint,
        complaint,
        origin_right,
        ""
        if origin_right is not False
        else f"{case.id}: origin {origin}, wanted one with {' or '.join(case.origin)}",
        _statements(result),
    )


def _statements(result: Any) -> tuple[str, ...]:
    from forkpoint.report.build import document
    from forkpoint.report.document import plain_text

    sections = map(document(result, lang="zh").section, ("verdict", "evidence"))
    return tuple(plain_text(block) for section in sections if section is not None for block in section.blocks)
