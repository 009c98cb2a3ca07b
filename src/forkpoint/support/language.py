"""The language that somebody reads: what the locale asks for, and what displays make of what they show."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Lang = Literal["en", "zh"]

WORDING: ContextVar[Callable[[str], str]] = ContextVar("WORDING", default=str)
"""Puts what a display shows into the language of whoever looks at it; the command line sets it."""


def of_locale(environment: Mapping[str, str]) -> Lang:
    """The language of messages that the locale asks for, as POSIX has it; English where it is neither.

    >>> of_locale({"LANG": "zh_CN.UTF-8"}), of_locale({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}), of_locale({})
    ('zh', 'en', 'en')
    """
    names = (environment.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    return "zh" if next(filter(None, names), "").lower().startswith("zh") else "en"
