"""Who asks which cell next: workers that each hold one model, wherever they run."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from forkpoint.sweeps.cells import CellOutcome

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from forkpoint.sweeps.cells import Cell


class Worker(Protocol):
    """Something that asks one cell at a time, and may die of it."""

    def ask(self, cell: Cell) -> None:
        """Hand it a cell; returns at once."""
        ...

    def answer(self) -> CellOutcome | None:
        """What it has answered; None where it died instead."""
        ...

    def death(self) -> str:
        """What it died of."""
        ...

    def end(self) -> None:
        """End it, whatever it is doing."""
        ...


W = TypeVar("W", bound=Worker)


class Pool(Protocol[W]):
    """Where workers come from: processes of this machine, or actors of Ray."""

    def start(self) -> W:
        """A new worker.

        Raises:
            InputError: there can be none.
        """
        ...

    def wait(self, workers: Sequence[W], seconds: float | None) -> Iterable[W]:
        """Those that have answered or died, once there is one, or the time is over."""
        ...


def answers(
    cells: Iterable[Cell], pool: Pool[W], workers: int, timeout: float | None = None
) -> Generator[tuple[Cell, CellOutcome]]:
    """Each cell with its answer, as they come.

    A worker stays with the model that it has loaded while there are cells for it. One that dies, or takes longer than
    it may, has no answer to its cell but the reason, and another is started for the rest.

    Args:
        cells: what to ask.
        pool: where workers come from.
        workers: how many there are at most.
        timeout: seconds that a cell may take.
    """
    waiting: dict[str, deque[Cell]] = {}
    for cell in cells:
        waiting.setdefault(cell.loading, deque()).append(cell)
    idle: list[tuple[W, str]] = []  # with the model that it holds
    busy: dict[W, tuple[Cell, float]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker, loaded = idle.pop() if idle else (pool.start(), "")
                model = (
                    loaded
                    if loaded in waiting
                    else _next(waiting, [cell.loading for cell, _ in busy.values()])
                )
                cell = waiting[model].popleft()
                if not waiting[model]:
                    del waiting[model]
                busy[worker] = cell, monotonic()
                worker.ask(cell)
            first = min(begun for _, begun in busy.values())
            rest = None if timeout is None else max(0.0, first + timeout - monotonic())
            for worker in pool.wait(list(busy), rest):
                cell, begun = busy.pop(worker)
                answer = worker.answer()
                if answer is None:
                    answer = CellOutcome(
                        seconds=monotonic() - begun, reason=f"its process died: {worker.death()}"
                    )
                    worker.end()
                else:
                    idle.append((worker, cell.loading))
                yield cell, answer
            for worker, (cell, begun) in list(busy.items()):
                if timeout is not None and monotonic() >= begun + timeout:
                    del busy[worker]
                    worker.end()
                    yield (
                        cell,
                        CellOutcome(seconds=monotonic() - begun, reason=f"no answer within {timeout:g} s"),
                    )
    finally:
        for worker in (*busy, *(one for one, _ in idle)):
            worker.end()


def _next(waiting: dict[str, deque[Cell]], busy: list[str]) -> str:
    """The model with the most cells for each worker that would then be at it."""
    return max(waiting, key=lambda model: len(waiting[model]) / (1 + busy.count(model)))
