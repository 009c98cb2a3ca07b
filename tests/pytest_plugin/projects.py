"""Small projects of other people, with tests that compare, for pytest to run within a test."""

from __future__ import annotations

from typing import Any

from tests.report import samples

PLUGIN = ("-p", "forkpoint.pytest_plugin", "-p", "no:cacheprovider")
XDIST = ("-p", "xdist", "-n", "2")
ONE_WORKER = ("-p", "xdist", "-n", "1")
"""A worker imports torch anew: two only where it matters that there are several."""

TESTS = """
    from pathlib import Path

    import pytest

    import forkpoint as fp

    def result(name):
        return fp.Result.from_json(Path(__file__).with_name(f"{name}.json"))

    def test_same():
        result("identical").check()
        result("rounding").check()

    def test_leak():
        found = result("semantic")
        found.check()

    @pytest.mark.forkpoint(allow="semantic")
    def test_allowed():
        result("semantic").check()

    @pytest.mark.xfail(strict=True)
    def test_expected():
        result("semantic").check()
"""
"""Tests of results that were written to files: no model has to run."""
LEAK = TESTS.strip().splitlines().index("        found.check()") + 1
"""The line at which `test_leak` fails."""


def make(pytester: Any, monkeypatch: Any, tests: str = TESTS) -> None:
    """Such a project in an empty folder, with no plugin but those that a test names."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("identical", "rounding", "semantic"):
        getattr(samples, name)().to_json(pytester.path / f"{name}.json")
    pytester.makepyfile(test_model=tests)
