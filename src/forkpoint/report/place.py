"""Where a value sits: token, sample, call, module."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from forkpoint.report.safe import quoted

if TYPE_CHECKING:
    from forkpoint.report.words import Words
    from forkpoint.result import Result


def where(
    sample: Hashable | None, position: int | None, token: str | None, words: Words, *, brief: bool = False
) -> str:
    """A token coordinate in words.

    >>> from forkpoint.report.words import Words
    >>> where(0, 8, " coc", Words())
    'token 8 " coc", sample 0'
    >>> where(0, 8, None, Words(), brief=True)
    'token 8'
    >>> where(None, None, None, Words())
    'the whole call, not one token'
    """
    if sample is None and position is None:
        return words("where.whole")
    parts: list[str] = []
    if position is not None:
        text = f" {quoted(token)}" if token is not None else ""
        parts.append(words("where.token", position=position) + text)
    if sample is not None and not (brief and sample == 0 and parts):
        parts.append(words("where.sample", sample=sample))
    return words("comma").join(parts)


def alone(result: Result) -> bool:
    """Whether there is only one sample, so that its number says nothing."""
    return result.a.samples == result.b.samples == 1


def module_name(path: str, words: Words) -> str:
    """The path of a module; a word for the root, whose path is empty."""
    return path or words("module.root")
