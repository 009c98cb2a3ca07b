"""From a result to the document that says it: the sections of a report, most urgent first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkpoint.report import (
    answer,
    backward,
    changes,
    counts,
    divergence,
    drift,
    identity,
    ops,
    runs,
    unfinite,
)
from forkpoint.report.document import Document
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from forkpoint.result import Result


def document(
    result: Result, *, every_op: bool = False, matching: str | None = None, lang: str = "en"
) -> Document:
    """What the report says of a result.

    Args:
        result: what `compare` returned.
        every_op: add the table of every captured op.
        matching: of that table only the ops whose name, variable or source this pattern fits.
        lang: `en` or `zh`.

    Raises:
        InputError: there is no such language.
    """
    words = Words(lang)
    sections = (
        identity.header(result, words),
        backward.beside(answer.verdict(result, words), result, words),
        answer.impact(result, words),
        answer.evidence(result, words),
        unfinite.section(result, words),
        divergence.first(result, words),
        divergence.origin(result, words),
        divergence.sources(result, words),
        backward.section(result, words),
        runs.summary(result, words),
        runs.replaced(result, words),
        drift.section(result, words),
        changes.section(result, words),
        counts.integers(result, words),
        counts.section(result, words),
        counts.notes(result, words),
        ops.section(result, words, matching) if every_op else None,
    )
    return Document(tuple(section for section in sections if section is not None))
