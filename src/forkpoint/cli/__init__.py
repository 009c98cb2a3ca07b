"""The command `forkpoint`: one command a file, and here the one place that turns errors into exit status 2."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from forkpoint.cli.app import app
from forkpoint.cli.spoken import TYPED
from forkpoint.errors import ForkpointError, is_out_of_memory
from forkpoint.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

UNUSABLE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command; its exit status says what came out (`forkpoint.cli.outcome`), 2 that nothing did."""
    TYPED.set(tuple(sys.argv[1:] if arguments is None else arguments))
    try:
        status = app(arguments, prog_name="forkpoint", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except ForkpointError as error:
        _fail(str(error))
    except Exception as error:  # noqa: BLE001 - the front door: nobody above could say more
        if os.environ.get("FORKPOINT_DEBUG"):
            traceback.print_exc()
        _fail(_worded(error))
    sys.exit(status or 0)


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"forkpoint: {printable(' '.join(message.split()))}\n")
    sys.exit(UNUSABLE)


def _worded(error: Exception) -> str:
    if hasattr(error, "format_message"):  # a usage error; typer and click have classes of their own for it
        return f"{error.format_message()} (forkpoint --help)"  # pyright: ignore[reportAttributeAccessIssue]
    if is_out_of_memory(error):
        said = str(error) or type(error).__name__
        return f"not enough memory: {said} (a shorter prompt or a narrower --dtype needs less, and --max-memory limits records)"
    return f"{type(error).__name__}: {error} (FORKPOINT_DEBUG=1 shows where)"
