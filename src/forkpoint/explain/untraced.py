"""Runs as their user makes them: the first pass of each, and what a trace is held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from forkpoint.capture.digest import prepare
from forkpoint.errors import reraise_out_of_memory
from forkpoint.runs.listening import Listening
from forkpoint.runs.randomness import RandomState
from forkpoint.runs.returned import all_results
from forkpoint.runs.run import Run
from forkpoint.support.progress import SILENT, Progress

UNNAMED = "output"
"""What a result is called that has no name."""


@dataclass
class Untraced:
    """A run that was made without tracing.

    Attributes:
        random: state of the random generators before it.
        results: what the model returned.
    """

    random: RandomState
    results: list[dict[str, Tensor]]


def run_untraced(
    run: Run,
    *,
    progress: Progress = SILENT,
    name: str = "",
    listening: Listening | None = None,
) -> Untraced:
    """Make a run as its user would.

    It comes before any trace: the first pass of a model reads libraries and makes kernels ready, and what takes digests
    is made ready in the meantime.

    Args:
        run: the run.
        progress: is told of the stage.
        name: what to call the run there.
        listening: notes what is generated. A call that generates may return anything, a text say: it is not looked at.
    """
    for device in run.devices:
        prepare(device)
    progress.begin(f"run {name} without tracing")
    random = RandomState.take()
    outputs = _outputs(run, random, nullcontext if listening is None else partial(listening.to, run))
    return Untraced(random, [] if listening is not None and listening.outermost else all_results(outputs))


def named_alike(a: Run, b: Run, untraced: list[Untraced]) -> tuple[Run, Run, tuple[str, ...]]:
    """Both runs, what one returns without a name having the name that the other has for the one tensor of this shape.

    A port returns its logits; the reference returns them among other things.

    Args:
        a, b: the runs.
        untraced: as they were made; what a run returned gets its name there, too.

    Returns:
        The runs, and a remark where something was named.
    """
    runs = [a, b]
    for mine, theirs in ((0, 1), (1, 0)):
        returned, others = untraced[mine].results, untraced[theirs].results
        name = name_of_lone(returned, others)
        if name is not None:
            runs[mine] = named = copy.copy(runs[mine])
            named.returns = name
            untraced[mine].results = [{name: call[UNNAMED]} for call in returned]
            return runs[0], runs[1], (held_against(mine, name),)
    return a, b, ()


def name_of_lone(
    returned: Sequence[Mapping[str, Tensor]], others: Sequence[Mapping[str, Tensor]]
) -> str | None:
    """What another run calls the one tensor of its shape that a run returns without a name; None where nothing fits.

    Args:
        returned: what each call of the run returned.
        others: what each of the other run's did.
    """
    lone = all(list(call) == [UNNAMED] for call in returned) and not any(UNNAMED in call for call in others)
    if not returned or not lone or len(returned) != len(others):
        return None
    names = [
        [
            name
            for name, value in call.items()
            if (value.shape, value.is_floating_point()) == (one[UNNAMED].shape, True)
        ]
        for one, call in zip(returned, others, strict=True)
    ]
    return names[0][0] if len(names[0]) == 1 and all(name == names[0] for name in names) else None


def held_against(which: int, name: str) -> str:
    """The remark of it: run A is 0, run B is 1."""
    return f"what run {'AB'[which]} returns is held against {name} of the other run"


def _outputs(run: Run, random: RandomState, around: Callable[[], AbstractContextManager[None]]) -> list[Any]:
    """What the calls return; with gradients on where they fail without and end well with them, as forces of energies do."""
    try:
        return run.execute(around=around)
    except Exception as error:
        reraise_out_of_memory(error)
        if run.gradients or not (isinstance(error, RuntimeError) and "require grad" in str(error)):
            raise  # a model that fails for another reason may go well the next time, and that would hide it
        random.restore()
        run.gradients = True
        try:
            return run.execute(around=around)
        except Exception as again:  # noqa: BLE001 - what is raised is what it said without
            reraise_out_of_memory(again)
            run.gradients = False
            raise error from None
