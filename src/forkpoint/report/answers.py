"""How whatever is no single comparison is shown: each kind has a module here, which makes a document of it.

A module is named by its record (`Answer.report_module`) and has `document(found, words)`. It may have `detailed(found, words)`, a
longer one, `page(found, words)`, where a page is not just that, and `WIDTH`, the columns of its plain text.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from forkpoint.report.page import page_of
from forkpoint.report.terminal import show, written
from forkpoint.report.words import Words

if TYPE_CHECKING:
    from rich.console import Console

    from forkpoint.support.answers import Answer

WIDTH = 100


def render(found: Answer, console: Console, *, lang: str = "en", details: bool = False) -> None:
    """Print the report of an answer.

    Args:
        found: the answer; nothing else is read.
        console: gives width, colours and encoding.
        lang: `en` or `zh`.
        details: the whole report, where its module has a longer one.
    """
    module = _module(found)
    made = module.document
    if details:
        made = getattr(module, "detailed", made)
    show(made(found, Words(lang)), console)


def to_text(found: Answer, *, lang: str = "en", width: int | None = None) -> str:
    """The report as plain text, so many columns wide."""
    module = _module(found)
    return written(module.document(found, Words(lang)), width or getattr(module, "WIDTH", WIDTH))


def to_html(found: Answer, *, lang: str = "en") -> str:
    """The report as a page."""
    module, words = _module(found), Words(lang)
    page = getattr(module, "page", None)
    return page_of(module.document(found, words), words) if page is None else page(found, words)


def _module(found: Answer) -> Any:
    return import_module(f"forkpoint.report.{found.report_module}")
