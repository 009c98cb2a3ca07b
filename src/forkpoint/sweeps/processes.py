"""Workers that are processes of this machine."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from typing import TYPE_CHECKING

from forkpoint.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Any

    from forkpoint.sweeps.cells import Cell, CellOutcome

THREADS = "OMP_NUM_THREADS"
"""The variable that says how many threads a process computes with."""


class Processes:
    """Processes that are started afresh (spawned), each with its share of the processors.

    Args:
        run: asks a cell; a function of a module, since a process knows it by its name.
        workers: among how many the processors are divided, unless `OMP_NUM_THREADS` is set.
        log: what they print goes to the end of this file.
    """

    def __init__(self, run: Callable[[Cell], CellOutcome], workers: int, log: Path) -> None:
        self._arguments = run, str(max(1, (os.cpu_count() or 1) // workers)), str(log)

    def start(self) -> Process:
        return Process(*self._arguments)

    def wait(self, workers: Sequence[Process], seconds: float | None) -> Iterable[Process]:
        ready = connection.wait([worker.connection for worker in workers], seconds)
        return [worker for worker in workers if worker.connection in ready]


class Process:
    """One process and the pipe to it."""

    def __init__(self, *arguments: Any) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *arguments), daemon=False)
        try:
            self._process.start()
            theirs.close()
            self.connection.recv()
        except (EOFError, OSError, RuntimeError) as error:
            raise InputError(
                f"a process that ends as it starts ({type(error).__name__})",
                "a script whose own part stands under if __name__ == '__main__'",
            ) from error

    def ask(self, cell: Cell) -> None:
        with suppress(OSError):  # it has died, which is seen as the pipe is read
            self.connection.send(cell)

    def answer(self) -> CellOutcome | None:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return None

    def death(self) -> str:
        self._process.join(10)
        return _cause_of(self._process.exitcode)

    def end(self) -> None:
        self.connection.close()  # which ends it where it waits
        self._process.join(0.2)
        if self._process.is_alive():
            _kill(self._process.pid)
            self._process.kill()
            self._process.join()
        self._process.close()


def _kill(group: int | None) -> None:
    """Kill a process with whatever it has started, such as an engine."""
    if group is not None and os.name == "posix":
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def _cause_of(code: int | None) -> str:
    """What a process died of, by its exit code as multiprocessing gives it."""
    if code is None or code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _serve(mine: connection.Connection, run: Callable[[Cell], CellOutcome], threads: str, log: str) -> None:
    """What a process does: ask each cell that comes, until nobody is there any more."""
    if os.name == "posix":
        os.setsid()  # a group of its own, to which no terminal sends Ctrl-C: whoever started it ends it
    os.environ.setdefault(THREADS, threads)
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(to, stream.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    mine.send(None)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            cell = mine.recv()
            mine.send(run(cell))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    _kill(os.getpid())
    os._exit(1)
