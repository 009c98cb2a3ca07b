"""The short report: what was found, whether it matters, what to do, and where; the rest is a word away.

The answer is meant for the first 25 lines of a terminal of 80 columns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from forkpoint.report import answer, backward, divergence, ops
from forkpoint.report.document import Document, Fact, Paragraph, Section, line, muted
from forkpoint.report.identity import header
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from forkpoint.result import Result


def brief(
    result: Result, *, every_op: bool = False, matching: str | None = None, more: str = "", lang: str = "en"
) -> Document:
    """What a reader needs first.

    Args:
        result: what `compare` returned.
        every_op, matching: as for `document`.
        more: key of the phrase that says how to get the rest.
        lang: `en` or `zh`.

    Raises:
        InputError: there is no such language.
    """
    words = Words(lang)
    sections = [
        header(result, words),
        backward.beside(answer.verdict(result, words), result, words),
        _impact(answer.impact(result, words), words),
        divergence.brief(result, words),
    ]
    gradients = backward.section(result, words, brief=True)
    if gradients is not None:
        sections.append(gradients)
    if every_op:
        sections.append(ops.section(result, words, matching))
    if more:
        sections.append(Section("more", (), (Paragraph(line(muted(words(more)))),)))
    return Document(tuple(sections))


def _impact(section: Section, words: Words) -> Section:
    """One line a figure, of flipped predictions their number alone; how many tokens there are stands above."""
    facts = [
        replace(block, body=block.body[:1])
        if isinstance(block, Fact) and isinstance(block.body, tuple)
        else block
        for block in section.blocks
        if not (isinstance(block, Fact) and block.label == words("compared") and len(section.blocks) > 1)
    ]
    return replace(section, blocks=tuple(facts))
