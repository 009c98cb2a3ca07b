"""The language in which a command speaks to whoever typed it: its help, its displays, its errors.

`--lang` says it, or else the locale. It is read from the arguments as they stand, since help and errors are said before, or
instead of, any option's being read.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from forkpoint.support.language import WORDING, Lang, of_locale

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from forkpoint.errors import ForkpointError
    from forkpoint.report.words import Words

SPOKEN: ContextVar[Lang] = ContextVar("SPOKEN", default="en")
"""The language of the command that runs."""
OF_TYPER = {
    "ARGUMENTS_PANEL_TITLE": "help.arguments",
    "OPTIONS_PANEL_TITLE": "help.options",
    "COMMANDS_PANEL_TITLE": "help.commands",
    "DEFAULT_STRING": "help.default",
    "REQUIRED_LONG_STRING": "help.required",
}
"""Constants of `typer.rich_utils` that its help shows, and the phrases for them."""


def asked_for(arguments: Sequence[str], environment: Mapping[str, str]) -> Lang:
    """The language that the arguments of a command ask for.

    >>> asked_for(["padding", "--lang", "zh", "--help"], {}), asked_for(["--lang=en"], {"LANG": "zh_CN.UTF-8"})
    ('zh', 'en')
    >>> asked_for(["padding", "demo"], {"LANG": "zh_CN.UTF-8"})
    'zh'
    """
    values = [two for one, two in pairwise(arguments) if one == "--lang"]
    values += [one.partition("=")[2] for one in arguments if one.startswith("--lang=")]
    languages: list[Lang] = [one for one in values if one in ("en", "zh")]
    return languages[-1] if languages else of_locale(environment)


def words() -> Words:
    """The phrases of the language of the command that runs."""
    from forkpoint.report.words import Words

    return Words(SPOKEN.get())


def say(text: str) -> str:
    """A text of the catalogue in the language of the command that runs."""
    return text if SPOKEN.get() == "en" else words().phrase(text)


def _stage(text: str) -> str:
    """The same of what a display shows: `SETTING: STAGE` in parts, where it is nothing by itself."""
    head, colon, rest = text.partition(": ")
    if not colon or words().can_say(text):
        return say(text)
    return say(head) + words()("colon") + say(rest)


def worded(error: ForkpointError) -> str:
    """An error in the language of the command; in English if the catalogue lacks a part of it."""
    phrases = words()
    text = None if phrases.lang == "en" else phrases.joined(error.given, error.expected, error.hint)
    return str(error) if text is None else text


@contextmanager
def speaking(lang: Lang) -> Generator[None]:
    """What runs within is a command that speaks a language, and so does typer."""
    language_token, stage_token = SPOKEN.set(lang), WORDING.set(_stage)
    try:
        with nullcontext() if lang == "en" else _typer_speaks():
            yield
    finally:
        WORDING.reset(stage_token)
        SPOKEN.reset(language_token)


@contextmanager
def _typer_speaks() -> Generator[None]:
    from typer import rich_utils

    instead = dict(_of_typer(rich_utils))
    before = {name: getattr(rich_utils, name) for name in instead}
    try:
        for name, value in instead.items():
            setattr(rich_utils, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(rich_utils, name, value)


def _of_typer(rich_utils: Any) -> Iterator[tuple[str, Any]]:
    """What takes the place of what typer's help is made with."""
    for name, key in OF_TYPER.items():
        yield name, words()(key, value="{}")
    make = getattr(rich_utils, "_make_rich_text", None)
    if make is not None:  # its tables break lines at spaces alone, and cut off what is longer than a column

        def folded(**how: Any) -> Any:
            text = make(**how)
            text.overflow = "fold"
            return text

        yield "_make_rich_text", folded


def translate(command: Any) -> None:
    """Put the help of a command of typer, and of all commands below it, into the language of the command that runs."""
    if SPOKEN.get() == "en":
        return
    command.help, command.epilog = paragraphs(command.help), paragraphs(command.epilog)
    usage, help_option = command.get_usage, command.get_help_option
    command.get_usage = lambda context: usage(context).replace("Usage: ", words()("help.usage"), 1)
    command.get_help_option = lambda context: _translated(help_option(context))
    for parameter in command.params:
        _translated(parameter)
    for one in getattr(command, "commands", {}).values():
        translate(one)


def _translated(parameter: Any) -> Any:
    if getattr(parameter, "help", None):
        parameter.help = paragraphs(parameter.help)
    if getattr(parameter, "rich_help_panel", None):
        parameter.rich_help_panel = words().name("help", parameter.rich_help_panel)
    return parameter


def paragraphs(text: str | None) -> str | None:
    """Each paragraph of a help text in the language of the command that runs; where its lines break says nothing."""
    return text and "\n\n".join(words().help(" ".join(one.split())) for one in text.split("\n\n"))
