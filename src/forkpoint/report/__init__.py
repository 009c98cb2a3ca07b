"""The report of a result: a pure function from `Result` to text."""

from forkpoint.report.terminal import render, to_text

__all__ = ["render", "to_text"]
