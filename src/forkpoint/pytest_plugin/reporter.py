"""What is written of a session: a page for each failure and an index, properties in JUnit XML, and what CI reads.

Each worker of xdist writes the pages of its own tests; the rest is written by the controller, which every test's report
comes to.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from forkpoint.errors import ForkpointError
from forkpoint.pytest_plugin import github
from forkpoint.pytest_plugin.finding import Finding, difference, finding
from forkpoint.pytest_plugin.index import to_index
from forkpoint.pytest_plugin.sarif import to_sarif
from forkpoint.report.words import Words
from forkpoint.support.files import check_writable, write_atomically, write_json

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from forkpoint.pytest_plugin.settings import Settings
    from forkpoint.support.expectation import Expectation

INDEX = "index.html"
_ATTRIBUTE = "forkpoint"
"""Of a test's report: the finding, in plain types, as xdist sends what it knows."""


class Reporter:
    """Is told by pytest of each test, and in the end writes what was asked for.

    Args:
        config: pytest's.
        settings: what was asked for.
        key: under which a test has what came out of its comparisons.

    Raises:
        UsageError: what was asked for can't be written.
    """

    def __init__(self, config: pytest.Config, settings: Settings, key: pytest.StashKey[Expectation]) -> None:
        self._config, self._settings, self._key = config, settings, key
        self._findings: list[Finding] = []
        self._tests: set[str] = set()
        self._troubles: list[str] = []
        self._is_worker = hasattr(config, "workerinput")
        if not self._is_worker:
            self._check()

    def _check(self) -> None:
        """Fail before any test runs rather than after all of them."""
        try:
            if self._settings.report is not None:
                self._settings.report.mkdir(parents=True, exist_ok=True)
                check_writable(self._settings.report / INDEX)
            if self._settings.sarif is not None:
                check_writable(self._settings.sarif)
        except (ForkpointError, OSError) as error:
            raise pytest.UsageError(f"forkpoint: {error}") from None

    # ------------------------------------------------------------------ each test, where it runs

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: an expected failure is none by then
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        expectation = item.stash.get(self._key, None)
        if call.when == "call" and expectation is not None and expectation.kinds:
            text = ", ".join(f"{number} {kind}" for kind, number in Counter(expectation.kinds).items())
            self._note(item, report, "forkpoint_comparisons", text)
        error = difference(call.excinfo.value) if call.excinfo is not None else None
        if report.failed and error is not None:
            failure = finding(item, call, error, self._settings.report, self._settings.lang)
            setattr(report, _ATTRIBUTE, failure.to_plain())
            for name in ("cause", "op", "source", "page"):
                if getattr(failure, name):
                    self._note(item, report, f"forkpoint_{name}", getattr(failure, name))
        return report

    @staticmethod
    def _note(item: pytest.Item, report: pytest.TestReport, name: str, value: str) -> None:
        """A property of the test: the item's go into later reports, this one was made already."""
        item.user_properties.append((name, value))
        report.user_properties.append((name, value))

    # ------------------------------------------------------------------ the session, in one process

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        self._settings.relay(node.workerinput)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._tests.add(report.nodeid)
        plain = getattr(report, _ATTRIBUTE, None)
        if plain is not None:
            self._findings.append(Finding(**plain))

    def pytest_sessionfinish(self) -> None:
        if self._is_worker:
            return
        self._findings.sort(key=lambda one: (one.file, one.line, one.test))  # workers end in any order
        self._troubles += [one.trouble for one in self._findings if one.trouble]
        for path, write in (
            (self._settings.report, self._write_index),
            (self._settings.sarif, self._write_sarif),
            (github.summary_file() if self._settings.github else None, self._write_summary),
        ):
            try:
                if path is not None:
                    write(path)
            except (ForkpointError, OSError) as error:
                self._troubles.append(str(error))

    def _write_index(self, folder: Path) -> None:
        write_atomically(folder / INDEX, to_index(self._findings, len(self._tests), self._settings.lang))

    def _write_sarif(self, path: Path) -> None:
        write_json(path, to_sarif(self._findings, self._settings.lang))

    def _write_summary(self, path: Path) -> None:
        with path.open("a", encoding="utf-8") as file:  # other steps' commands may have written there, too
            file.write(github.summary(self._findings, len(self._tests), self._settings.lang))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        folder = self._settings.report
        if folder is not None:
            terminalreporter.section("forkpoint")
            pages = sum(bool(one.page) for one in self._findings)
            text = Words(self._settings.lang).many("tests.reports", pages, path=folder / INDEX)
            terminalreporter.write_line(text)
        for trouble in self._troubles:
            terminalreporter.write_line(f"forkpoint: {trouble}", red=True)
        if self._settings.github:
            for one in self._findings:
                terminalreporter.write_line(github.annotation(one, self._config.rootpath))
