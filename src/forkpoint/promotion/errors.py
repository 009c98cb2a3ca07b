"""How a float64 rewriting says that it does not cover a call."""

from __future__ import annotations


class CannotRewriteError(Exception):
    """This call of a rewritten operation has a form that its rewriting doesn't cover."""
