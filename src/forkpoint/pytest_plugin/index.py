"""The index of the pages: a table of what failed, each row with a link."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from forkpoint.printable import printable
from forkpoint.report.numbers import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template

    from forkpoint.pytest_plugin.finding import Finding


def to_index(findings: Sequence[Finding], tests: int) -> str:
    """A page of HTML that asks nothing of a network.

    Args:
        findings: what failed.
        tests: how many tests ran.
    """
    from markupsafe import Markup

    from forkpoint import __version__

    style = files("forkpoint.report.page").joinpath("page.css").read_text(encoding="utf-8")
    return _template().render(
        findings=findings,
        tests=tests,
        style=Markup(style),  # noqa: S704 the package's own
        version=__version__,
        shown=printable,
        size=size,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        files("forkpoint.pytest_plugin").joinpath("index.html.jinja").read_text(encoding="utf-8")
    )
