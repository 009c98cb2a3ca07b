"""The pytest plugin: what a test of models may differ by, baselines, and reports of what failed.

It does nothing unless a test or an option asks for it, and imports neither torch nor what compares until then.
docs/testing.md says how it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from forkpoint.pytest_plugin.settings import Settings, add_options, allowed_by
from forkpoint.support.expectation import Expectation, expecting

if TYPE_CHECKING:
    from collections.abc import Generator

    from forkpoint.pytest_plugin.fixture import Baselines

SETTINGS = pytest.StashKey[Settings]()
EXPECTATION = pytest.StashKey[Expectation]()


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "forkpoint(allow='rounding'): what the comparisons of the test may differ by, kinds of verdicts or mechanisms",
    )
    settings = config.stash[SETTINGS] = Settings.of(config)
    if settings.reports:
        from forkpoint.pytest_plugin.reporter import Reporter

        config.pluginmanager.register(Reporter(config, settings, EXPECTATION), "forkpoint-reporter")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A mark that can't be understood is an error before any test runs."""
    for item in items:
        for mark in item.iter_markers("forkpoint"):
            try:
                allowed_by(mark)
            except ValueError as error:
                raise pytest.UsageError(f"{item.nodeid}: {error}") from None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Comparisons know what their test allows, and the test what came out of them."""
    settings = item.config.stash[SETTINGS]
    mark = item.get_closest_marker("forkpoint")
    allow = settings.allow if mark is None else allowed_by(mark)
    if not settings.reports and mark is None and allow == Expectation().allow:
        return (yield)
    with expecting(Expectation(allow)) as expectation:
        item.stash[EXPECTATION] = expectation
        return (yield)


@pytest.fixture
def forkpoint_baseline(request: pytest.FixtureRequest) -> Baselines:
    """Holds runs of the test against those that were recorded: `forkpoint_baseline.check(fp.Run(model, inputs))`."""
    from forkpoint.pytest_plugin.fixture import Baselines

    return Baselines.of(request, request.config.stash[SETTINGS])
