"""What GitHub Actions reads: the summary of a step in Markdown, and annotations at lines of files."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.pytest_plugin.index import cause, title
from forkpoint.report.markdown import quoted
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkpoint.pytest_plugin.finding import Finding

MOST_BYTES = 900_000
"""Of a summary; GitHub drops one of more than 1 MiB whole."""


def summary_file() -> Path | None:
    """Where the summary of the step goes, in GitHub Actions."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    return Path(path) if path else None


def summary(findings: Sequence[Finding], tests: int, lang: str = "en") -> str:
    """The failures in Markdown: a table, and what is known of each, folded, as long as there is room.

    Nothing of it is private: see `Finding.issue`.
    """
    words = Words(lang)
    parts = [f"## forkpoint: {title(len(findings), tests, words)}\n"]
    if findings:
        rows = [
            f"| {quoted(one.test)} | {cause(one, words)} | {quoted(one.op)} | {quoted(one.source)} |\n"
            for one in findings
        ]
        head = " | ".join(words(f"tests.{key}") for key in ("test", "verdict", "op", "source"))
        parts.append("".join([f"\n| {head} |\n| --- | --- | --- | --- |\n", *rows]))
    room = MOST_BYTES - sum(len(part.encode()) for part in parts)
    left = 0
    for one in findings:
        detail = f"\n<details><summary>{escape(one.test)}</summary>\n\n{one.issue}\n</details>\n"
        if one.issue and (room := room - len(detail.encode())) >= 0:
            parts.append(detail)
        elif one.issue:
            left += 1
    if left:
        parts.append(f"\n{words.many('tests.left', left)}\n")
    return "".join(parts)


def annotation(one: Finding, root: Path) -> str:
    """A workflow command that marks the line of the test at which a comparison failed.

    Args:
        one: what failed.
        root: pytest's root folder, to which its file is relative; GitHub counts from the workspace.
    """
    file = root / one.file
    workspace = os.environ.get("GITHUB_WORKSPACE")
    inside = workspace is not None and file.is_relative_to(workspace)
    file = file.relative_to(workspace) if workspace is not None and inside else Path(one.file)
    properties = {"file": file.as_posix(), "line": str(one.line), "title": f"forkpoint: {one.cause}"}
    text = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    where = f" ({one.source})" if one.source else ""
    return f"::error {text}::{_data(one.message + where)}"


def _data(text: str) -> str:
    r"""Text as a workflow command takes it.

    >>> _data("50%\nmore")
    '50%25%0Amore'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
