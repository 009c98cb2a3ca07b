"""English: every phrase by its key."""

from __future__ import annotations

from forkpoint.report.catalogue.english import backward, commands, engines, page, reports

PHRASES: dict[str, str] = (
    reports.PHRASES | backward.PHRASES | page.PHRASES | engines.PHRASES | commands.PHRASES
)

__all__ = ["PHRASES"]
