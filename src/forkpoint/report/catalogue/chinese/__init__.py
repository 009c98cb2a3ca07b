"""Chinese: the keys and placeholders of English, and translations of what the program makes in English."""

from __future__ import annotations

from forkpoint.report.catalogue.chinese import (
    backward,
    causes,
    commands,
    engines,
    page,
    reports,
    sentences,
    speech,
)
from forkpoint.report.catalogue.chinese.errors import ERRORS
from forkpoint.report.catalogue.chinese.help import EXAMPLE, HELP

PHRASES: dict[str, str] = (
    reports.PHRASES | backward.PHRASES | page.PHRASES | engines.PHRASES | commands.PHRASES
)

SENTENCES: dict[str, str] = sentences.SENTENCES | backward.SENTENCES | causes.SENTENCES | speech.SENTENCES
"""Sentences that other parts of forkpoint write in English, with placeholders, and their translations.

`{n}` and `{m}` stand for numbers. A sentence is translated by the first template that fits it whole, so that a
longer template stands before one that would swallow it.
"""

__all__ = ["ERRORS", "EXAMPLE", "HELP", "PHRASES", "SENTENCES"]
