"""A sweep: what was not answered before is asked, each answer is kept as it comes, and all make one table."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from forkpoint.errors import InputError
from forkpoint.support.progress import SILENT
from forkpoint.sweeps.answer import Sweep
from forkpoint.sweeps.folder import LOG, opened
from forkpoint.sweeps.processes import Processes
from forkpoint.sweeps.rays import Actors
from forkpoint.sweeps.workers import answers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forkpoint.support.progress import Progress
    from forkpoint.sweeps.cells import Cell, CellOutcome


def ask_cells(
    cells: Sequence[Cell], folder: Path, run: Callable[[Cell], CellOutcome], *, workers: int = 1, timeout: float | None = None,
    ray: bool = False, progress: Progress = SILENT,
) -> Sweep:  # fmt: skip
    """Ask all cells, but for those that the folder has the answer to.

    Args:
        cells: the questions, one at least, and each once.
        folder: where answers are kept.
        run: asks a cell in a worker, which keeps the model that it loaded last.
        workers: how many cells are asked at a time.
        timeout: seconds that a cell may take, with starting and loading.
        ray: workers are actors of Ray, not processes of this machine.
        progress: is told how many cells are done.

    Raises:
        InputError: the folder or the workers can't be had.
    """
    if workers < 1:
        raise InputError(f"{workers} workers", "1 or more")
    if timeout is not None and not timeout > 0:
        raise InputError(f"a timeout of {timeout:g} s", "more than 0")
    with opened(folder) as store:
        by_cell = {cell.key: rows for cell in cells if (rows := store.rows(cell)) is not None}
        before = len(by_cell)
        left = [cell for cell in cells if cell.key not in by_cell]
        if left:
            gpus = any(str(cell.given.get("device", "")).startswith("cuda") for cell in left)
            progress.begin(f"asking {len(left)} questions")
            progress.count(lambda: len(by_cell) - before, len(left))
            if ray:
                actors = Actors(run, int(gpus))
                coming = answers(left, actors, min(workers, actors.most), timeout)
            else:
                coming = answers(left, Processes(run, workers, store.path / LOG), workers, timeout)
            with closing(coming):
                for cell, answer in coming:
                    by_cell[cell.key] = store.keep(cell, answer)
        rows = tuple(row for cell in cells for row in by_cell[cell.key])
        store.write_table(rows)
    return Sweep(str(folder), rows, len(cells), before, cells[0].versions)
