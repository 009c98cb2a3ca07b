"""The command as it was typed, without its prompts and without what concerns the output alone."""

from __future__ import annotations

import shlex
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TYPED: ContextVar[tuple[str, ...]] = ContextVar("TYPED", default=())
"""The arguments of the command that runs."""
_WITH_VALUE = ("-p", "--prompt", "--prompts", "--texts", "--json", "--html", "--scene", "--lang", "--op")
_FLAGS = ("--ops", "--details", "--quiet")


def command_line(arguments: Sequence[str]) -> str:
    """What a report says of how it was asked for; the prompts have a line of their own there.

    >>> command_line(["padding", "demo", "-p", "Hello you", "--pad-to", "50", "--json=a.json", "--ops"])
    'forkpoint padding demo --pad-to 50'
    >>> command_line([])
    ''
    """
    return shlex.join(["forkpoint", *_relevant(arguments)]) if arguments else ""


def _relevant(arguments: Sequence[str]) -> Iterator[str]:
    rest = iter(arguments)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        if name in _WITH_VALUE:
            if not equals:
                next(rest, None)
        elif argument not in _FLAGS and not (argument.startswith("-p") and not argument.startswith("--")):
            yield argument
