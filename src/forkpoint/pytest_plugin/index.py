"""The index of the pages: a table of what failed, each row with a link."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from forkpoint.printable import printable
from forkpoint.report.numbers import size
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template

    from forkpoint.pytest_plugin.finding import Finding


def to_index(findings: Sequence[Finding], tests: int, lang: str = "en") -> str:
    """A page of HTML that asks nothing of a network.

    Args:
        findings: what failed.
        tests: how many tests ran.
        lang: `en` or `zh`.
    """
    from markupsafe import Markup

    from forkpoint import __version__

    words = Words(lang)
    style = files("forkpoint.report.page").joinpath("page.css").read_text(encoding="utf-8")
    return _template().render(
        findings=findings,
        title=title(len(findings), tests, words),
        words=words,
        cause=lambda one: cause(one, words),
        lang=lang,
        style=Markup(style),  # noqa: S704 the package's own
        version=__version__,
        shown=printable,
        size=size,
    )


def title(failures: int, tests: int, words: Words) -> str:
    """How many comparisons failed, in how many tests.

    >>> title(1, 12, Words()), title(0, 12, Words())
    ('1 failure in 12 tests', 'No failure in 12 tests')
    """
    ran = words.many("tests.tests", tests)
    if not failures:
        return words("tests.none", tests=ran)
    return words("tests.title", failures=words.many("tests.failures", failures), tests=ran)


def cause(one: Finding, words: Words) -> str:
    """The verdict in words with the mechanism's slug: `semantic (padding_leak)`."""
    kind = words.name("verdict", one.kind)
    return kind + words("aside", text=one.mechanism) if one.mechanism else kind


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(
        files("forkpoint.pytest_plugin").joinpath("index.html.jinja").read_text(encoding="utf-8")
    )
