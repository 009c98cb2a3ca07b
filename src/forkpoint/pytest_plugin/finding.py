"""What is known of a comparison that failed a test: plain enough to go from a worker of xdist to its controller."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from forkpoint.errors import DifferenceError, ForkpointError
from forkpoint.result import Result
from forkpoint.support.files import write_atomically

BASELINE = "baseline"
"""The kind of a run that is not what its baseline says."""
_NAME = 80
"""Most characters of a page's name that are the test's."""


@dataclass(frozen=True)
class Finding:
    """A comparison that failed a test."""

    test: str
    """The test's id."""
    file: str
    """Where it failed: the file with the test, relative to pytest's root folder, with slashes."""
    line: int
    """The line there, from 1."""
    message: str
    """What the failure says, in one line."""
    kind: str
    """Of the verdict, or `baseline`."""
    mechanism: str | None = None
    op: str = ""
    """The origin, else the first divergence."""
    source: str = ""
    """`file.py:line` of it."""
    gap: float | None = None
    """Largest absolute gap of the results."""
    page: str = ""
    """Name of its page in the folder of the report."""
    issue: str = ""
    """The same in Markdown, without texts of prompts, names of samples, paths and notes."""
    trouble: str = ""
    """Why there is no page, if it could not be written."""

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def cause(self) -> str:
        """`semantic (padding_leak)`."""
        return f"{self.kind} ({self.mechanism})" if self.mechanism else self.kind


def difference(error: BaseException | None) -> DifferenceError | None:
    """The comparison that failed: the error itself, the first such of a group, or what it was raised from."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, DifferenceError):
            return one
        waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else []
        waiting.append(one.__cause__)
    return None


def finding(
    item: pytest.Item,
    call: pytest.CallInfo[Any],
    error: DifferenceError,
    folder: Path | None,
    lang: str = "en",
) -> Finding:
    """What is known of a failure; its page is written to a folder, if there is one, in a language."""
    file, line = _place(item, call)
    message = str(error).split("\n", 1)[0]
    result = error.result
    if not isinstance(result, Result):
        return Finding(item.nodeid, file, line, message, BASELINE, op=error.op, source=error.source)
    from forkpoint.report.markdown import to_issue

    place = result.origin or result.first
    page, trouble = "", ""
    if folder is not None:
        page = page_name(item.nodeid if call.when == "call" else f"{item.nodeid} {call.when}")
        try:
            write_atomically(folder / page, _page(result, lang))
        except ForkpointError as unwritten:
            page, trouble = "", str(unwritten)
    return Finding(
        test=item.nodeid, file=file, line=line, message=message, kind=result.verdict.kind.value,
        mechanism=result.verdict.mechanism, op="" if place is None else place.op,
        source="" if place is None else place.source,
        gap=None if result.impact is None else result.impact.max_abs,
        page=page, issue=to_issue(result, lang=lang), trouble=trouble,
    )  # fmt: skip


def page_name(test: str) -> str:
    """A file's name for a test's id, another one for each.

    >>> page_name("tests/test_model.py::test_padding[left]")
    'tests-test_model.py-test_padding-left-5a7f2866.html'
    """
    digest = hashlib.sha256(test.encode(errors="backslashreplace")).hexdigest()[:8]
    shown = re.sub(r"[^A-Za-z0-9_.]+", "-", test).strip("-.")[:_NAME]
    return f"{shown}-{digest}.html"


def _page(result: Result, lang: str) -> str:
    from forkpoint.report.page import to_html

    return to_html(result, lang=lang)


def _place(item: pytest.Item, call: pytest.CallInfo[Any]) -> tuple[str, int]:
    """The innermost line of the test's own file that the failure passed; else where the test is defined."""
    file, line, _ = item.location
    lines = [
        entry.lineno + 1
        for entry in (call.excinfo.traceback if call.excinfo is not None else ())
        if Path(entry.path) == item.path
    ]
    return Path(file).as_posix(), lines[-1] if lines else (line or 0) + 1
