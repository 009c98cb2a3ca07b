"""Runs as their user makes them: the first pass of each, and what a trace is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from forkpoint.capture.digest import prepare
from forkpoint.errors import reraise_out_of_memory
from forkpoint.runs.returned import all_results
from forkpoint.runs.run import RandomState, Run
from forkpoint.support.progress import SILENT, Progress


@dataclass
class Untraced:
    """A run that was made without tracing.

    Attributes:
        random: state of the random generators before it.
        results: what the model returned.
    """

    random: RandomState
    results: list[dict[str, Tensor]]


def run_untraced(run: Run, *, progress: Progress = SILENT, name: str = "") -> Untraced:
    """Make a run as its user would.

    It comes before any trace: the first pass of a model reads libraries and makes kernels ready, and what takes digests
    is made ready in the meantime.

    Args:
        run: the run.
        progress: is told of the stage.
        name: what to call the run there.
    """
    for device in run.devices:
        prepare(device)
    progress.begin(f"run {name} without tracing")
    random = RandomState.take()
    return Untraced(random, all_results(_made(run, random)))


def _made(run: Run, random: RandomState) -> list[Any]:
    """What the calls return; with gradients on where they fail without and end well with them, as forces of energies do."""
    try:
        return run.execute()
    except Exception as error:
        reraise_out_of_memory(error)
        if run.gradients or not (isinstance(error, RuntimeError) and "require grad" in str(error)):
            raise  # a model that fails for another reason may go well the next time, and that would hide it
        random.restore()
        run.gradients = True
        try:
            return run.execute()
        except Exception as again:  # noqa: BLE001 - what is raised is what it said without
            reraise_out_of_memory(again)
            run.gradients = False
            raise error from None
