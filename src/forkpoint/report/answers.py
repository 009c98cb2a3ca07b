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


def render(answer: Answer, console: Console, *, lang: str = "en", details: bool = False) -> None:
    """Print the report of an answer.

    Args:
        answer: nothing else is read.
        console: gives width, colours and encoding.
        lang: `en` or `zh`.
        details: the whole report, where its module has a longer one.
    """
    module = _module(answer)
    make = module.document
    if details:
        make = getattr(module, "detailed", make)
    show(make(answer, Words(lang)), console)


def to_text(answer: Answer, *, lang: str = "en", width: int | None = None) -> str:
    """The report as plain text, so many columns wide."""
    module = _module(answer)
    return written(module.document(answer, Words(lang)), width or getattr(module, "WIDTH", WIDTH))


def to_html(answer: Answer, *, lang: str = "en") -> str:
    """The report as a page."""
    module, words = _module(answer), Words(lang)
    page = getattr(module, "page", None)
    return page_of(module.document(answer, words), words) if page is None else page(answer, words)


def _module(answer: Answer) -> Any:
    return import_module(f"forkpoint.report.{answer.report_module}")
