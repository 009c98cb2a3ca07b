"""`--config FILE`: the options of a long comparison, kept in a file.

    model = "./my-model"
    prompt = ["Hello there", "How are you?"]
    pad-to = 50
    all-sources = true

A key is an option without its dashes, or MODEL. What the command line says comes before what the file says; that a model's
own code may run, only the command line says.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from forkpoint.errors import InputError
from forkpoint.support.files import reason

MAX_CONFIG = 1 << 20
"""Most bytes of a file."""
TYPED = "trust-remote-code"
"""What nobody asks for without having typed it."""


def configure(context: typer.Context, file: str | None) -> None:
    """Take what a file says as the defaults of a command: the callback of its option.

    Raises:
        InputError: it can't be read, or has a key or a value that the command can't use.
    """
    if file is None:
        return
    named = {key_of(one): one for one in context.command.params if key_of(one) not in ("config", "help")}
    defaults: dict[str, Any] = {}
    for key, value in read_toml(Path(file), f"--config {file}").items():
        parameter = named.get(key.replace("_", "-"))
        if parameter is not None and key_of(parameter) == TYPED:
            raise InputError(
                f"--config {file} with the key {key!r}",
                "--trust-remote-code on the command line: it runs code",
            )
        if parameter is None:
            others = sorted({*named} - {TYPED})
            raise InputError(f"--config {file} with the key {key!r}", "one of " + ", ".join(others))
        defaults[parameter.name] = value_of(value, parameter, f"--config {file} with {key} = {value!r}")
    context.default_map = {**(context.default_map or {}), **defaults}


def key_of(parameter: Any) -> str:
    """An option without its dashes, the longest of its names; an argument by its name."""
    return max(parameter.opts, key=len).lstrip("-").replace("_", "-").lower()


def read_toml(file: Path, named: str) -> dict[str, Any]:
    """What a file says; errors call it as it was named.

    Raises:
        InputError: it can't be read.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise InputError(f"{named} has more than {MAX_CONFIG:,} bytes", "options")
        return tomllib.loads(data.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{named} can't be read: {reason(error)}", "a TOML file") from None


def value_of(value: Any, parameter: Any, description: str) -> Any:
    """A value as the command line would give it, so that it is checked in the same way."""
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise InputError(description, "true or false")
        return value
    if getattr(parameter, "multiple", False):
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in values):
            raise InputError(description, "a text, or a list of texts")
        return values
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(description, "a text or a number")
    if "\0" in str(value):  # which no argument can hold, and no path
        raise InputError(description, "a text without NUL characters")
    return str(value)


Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read options from a TOML file; what is given here comes first.",
        callback=configure,
        is_eager=True,
        show_default=False,
    ),
]
