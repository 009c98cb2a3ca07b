"""Progress on standard error while something takes long; nothing where that isn't a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from rich.console import Console


@cache
def error_console() -> Console:
    """The one console on standard error: displays that share it can stand inside each other."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def status(text: str) -> Generator[None, None, None]:
    """A spinner with what is going on."""
    with error_console().status(text):
        yield


@contextmanager
def stages(text: str, total: int) -> Generator[Callable[[str], None], None, None]:
    """A bar over a known number of stages; call what it yields with the name of the stage that begins.

    >>> with stages("converting", total=2) as begin:
    ...     begin("reading")
    ...     begin("writing")
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = error_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        begun = 0

        def begin(stage: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{text}: {stage}", refresh=True)
            begun += 1

        yield begin
