"""Progress on standard error while something takes long; nothing where that isn't a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Protocol

from forkpoint.printable import printable
from forkpoint.support.language import WORDING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from rich.console import Console, RenderableType


class Progress(Protocol):
    """Is told by work that takes long how far it is.

    The work hands out what to ask, and goes on: whoever wants to know asks whenever it likes, from any thread, and
    nothing is counted for somebody who never does.
    """

    def begin(self, stage: str) -> None:
        """A stage begins, and the last one is over."""
        ...

    def count(self, done: Callable[[], int], total: int | None) -> None:
        """From now on `done` says how much of the stage is done, of about `total`; None where that isn't known."""
        ...


class _Silent:
    def begin(self, stage: str) -> None:
        """Nobody looks."""

    def count(self, done: Callable[[], int], total: int | None) -> None:
        """Nobody asks."""


SILENT: Progress = _Silent()


@cache
def error_console() -> Console:
    """The one console on standard error: displays that share it can stand inside each other."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def status(text: str) -> Generator[None, None, None]:
    """A spinner with what is going on."""
    from rich.text import Text

    with error_console().status(Text(printable(WORDING.get()(text)))):
        yield


@contextmanager
def stages(text: str, total: int) -> Generator[Callable[[str], None], None, None]:
    """A bar over a known number of stages; call what it yields with the name of the stage that begins.

    >>> with stages("converting", total=2) as begin:
    ...     begin("reading")
    ...     begin("writing")
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    text = printable(WORDING.get()(text))
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    console = error_console()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        begun = 0

        def begin(stage: str) -> None:
            nonlocal begun
            bar.update(task, completed=begun, description=f"{text}: {WORDING.get()(stage)}", refresh=True)
            begun += 1

        yield begin


@contextmanager
def watching() -> Generator[Progress, None, None]:
    """A bar for each stage in turn, which asks how far it is whenever it is drawn.

    >>> with watching() as progress:
    ...     progress.begin("counting")
    ...     progress.count(lambda: 1, total=2)
    """
    console = error_console()
    if not console.is_terminal:
        yield SILENT
        return
    from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    class Stages(Bar):
        task = None
        done: Callable[[], int] | None = None
        total: int | None = None

        def get_renderables(self) -> Iterable[RenderableType]:
            with self._lock:  # the display is drawn on a thread of its own
                done, total = self.done, self.total
                if done is not None and self.task is not None:
                    completed = done()  # a second run may be a little longer than the first
                    self.update(
                        self.task,
                        completed=completed if total is None else min(completed, total),
                        total=total,
                    )
                shown = list(super().get_renderables())
            yield from shown

        def begin(self, stage: str) -> None:
            with self._lock:
                self.done = None
                if self.task is not None:
                    self.remove_task(self.task)
                self.task = self.add_task(WORDING.get()(stage), total=None)
            self.refresh()

        def count(self, done: Callable[[], int], total: int | None) -> None:
            with self._lock:
                self.total, self.done = total, done

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Stages(*columns, console=console, transient=True) as bar:
        yield bar
