"""Many questions, asked one by one in processes of their own: cells, the folder that holds their answers, the table."""

from forkpoint.sweeps.answer import Sweep, SweepRow
from forkpoint.sweeps.cells import Cell, CellOutcome

__all__ = ["Cell", "CellOutcome", "Sweep", "SweepRow"]
