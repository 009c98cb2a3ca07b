"""The command `forkpoint`: one command a file, and here the one place that turns errors into exit status 2."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import typer

from forkpoint.cli.app import app
from forkpoint.cli.language import asked_for, speaking, translate, worded, words
from forkpoint.cli.spoken import TYPED
from forkpoint.errors import ForkpointError, is_out_of_memory
from forkpoint.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

UNUSABLE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command; its exit status says what came out (`forkpoint.cli.outcome`), 2 that nothing did."""
    typed = tuple(sys.argv[1:] if arguments is None else arguments)
    TYPED.set(typed)
    with speaking(asked_for(typed, os.environ)):
        sys.exit(_status(typed))


def _status(arguments: tuple[str, ...]) -> int:
    try:
        command = typer.main.get_command(app)
        translate(command)
        return command(arguments, prog_name="forkpoint", standalone_mode=False) or 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except ForkpointError as error:
        _fail(worded(error))
    except Exception as error:  # noqa: BLE001 - the front door: nobody above could say more
        if os.environ.get("FORKPOINT_DEBUG"):
            traceback.print_exc()
        _fail(_other(error))


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"forkpoint: {printable(' '.join(message.split()))}\n")
    sys.exit(UNUSABLE)


def _other(error: Exception) -> str:
    if hasattr(error, "format_message"):  # a usage error; typer and click have classes of their own for it
        text: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        # what was left out is said by its name, which `--help` alone would explain
        what = getattr(getattr(error, "param", None), "help", None) if hasattr(error, "param_type") else None
        return " ".join([words().error(text) or text, *([what] if what else []), "(forkpoint --help)"])
    if is_out_of_memory(error):
        text = str(error) or type(error).__name__
        return words()("error.memory", said=text)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        text = error.strerror or type(error).__name__
        return words()("error.output", said=words().error(text) or text)
    return words()("error.other", said=f"{type(error).__name__}: {error}")
