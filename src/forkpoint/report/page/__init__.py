"""The report as a page of HTML: one file that asks nothing of a network.

Whatever comes from models, prompts and source files is data there: the template escapes it, JSON within the page holds
no `<`, and the page's policy runs no script but its own, which it names by digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from forkpoint.printable import printable
from forkpoint.report import identity
from forkpoint.report.document import Document, Fact, Grid, Meter, Section, plain_text
from forkpoint.report.page.drawing import data, map_height
from forkpoint.report.page.parts import sections
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template
    from markupsafe import Markup

    from forkpoint.result import Result

SCRIPTS = ("plotly-cartesian.min.js", "page.js")
FOLDED = frozenset({"configuration", "missing"})
"""Sections that are shown when asked for."""


def to_html(
    result: Result, *, lang: str = "en", above: Sequence[Section] = (), interactive: bool = True
) -> str:
    """The report as a page.

    Args:
        result: what `compare` returned.
        lang: `en` or `zh`.
        above: sections that stand before it, as the summary of several prompts.
        interactive: with the map, the chart of the drift and the table of ops, which need scripts; without, the page
            has none.

    Raises:
        InputError: there is no such language.
    """
    words = Words(lang)
    kind = words(f"kind.{result.verdict.kind.value}")
    return _page(
        f"{kind} – {result.a.name} / {result.b.name}",
        identity.header(result, words),
        [*above, *sections(result, words, interactive=interactive)],
        words,
        result if interactive else None,
        first=result.first is not None,
    )


def plain_page(title: str, header: Section, shown: Sequence[Section], words: Words) -> str:
    """Sections as a page of the same kind, without scripts.

    Args:
        title: of the browser's window.
        header: what the page is about.
        shown: the sections in their order; one with the key `verdict` is the answer, and has a role in its title.
        words: the language.
    """
    return _page(title, header, shown, words, None)


def page_of(report: Document, words: Words) -> str:
    """A document as such a page: its section with the key `header` on top, the title of its answer that of the window."""
    by_key = {section.key: section for section in report.sections}
    header = by_key.get("header", Section("header", (), ()))
    shown = [section for section in report.sections if section is not header]
    title = plain_text(Section("title", by_key["verdict"].title, ())).removeprefix("● ")
    return plain_page(title, header, shown, words)


def _page(
    title: str,
    header: Section,
    shown: Sequence[Section],
    words: Words,
    drawn: Result | None,
    *,
    first: bool = False,
) -> str:
    """The template, filled; what is `drawn` has its map, its chart and its table of ops among the sections."""
    from markupsafe import Markup

    from forkpoint.support.version import VERSION

    scripts = [] if drawn is None else [Markup(_packaged(name)) for name in SCRIPTS]  # noqa: S704 the package's own
    return _template().render(
        lang={"en": "en", "zh": "zh-Hans"}[words.lang],
        title=f"forkpoint: {title}",
        header=header,
        sections=shown,
        folded=FOLDED,
        first=first,
        map_height=0 if drawn is None else map_height(drawn),
        grows=drawn is not None and len(drawn.drift) > 1,  # of one layer there is nothing to draw
        data="" if drawn is None else _embedded(data(drawn, words)),
        scripts=scripts,
        allowed=" ".join(map(_digest, scripts)) or "'none'",
        style=Markup(_packaged("page.css")),  # noqa: S704 the package's own
        version=VERSION,
        words=words,
        shown=printable,
    )


def framed(result: Result, *, lang: str = "en") -> str:
    """The page without its scripts in a frame that may run none, for notebooks."""
    page = to_html(result, lang=lang, interactive=False)
    style = "width: 100%; height: 560px; border: 0; border-radius: 10px; resize: vertical"
    return f'<iframe sandbox="" style="{style}" srcdoc="{escape(page)}"></iframe>'


@cache
def _packaged(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["fact"] = lambda value: isinstance(value, Fact)
    environment.tests["grid"] = lambda value: isinstance(value, Grid)
    environment.tests["meter"] = lambda value: isinstance(value, Meter)
    return environment.from_string(_packaged("page.html.jinja"))


def _embedded(content: dict[str, Any]) -> Markup:
    """JSON that may stand within a script: without what ends one or begins markup."""
    from markupsafe import Markup

    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))  # noqa: S704 as said


@cache
def _digest(script: str) -> str:
    """How a content security policy names a script."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"
