"""A traced pair of runs: what pass one gathered, and how to ask for more in a second pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import Fetch, Recorder
from forkpoint.capture.taps import Observation
from forkpoint.layout import Pairing
from forkpoint.match import Join, Shared
from forkpoint.run import RandomState, Run, all_results
from forkpoint.trace import Trace

Results = list[dict[str, tuple[Tensor, Label | None]]]
"""For each call, the tensors that the model returned and their labels."""


@dataclass
class Traced:
    """One run, traced.

    Attributes:
        random: state of the random generators before it, so that a second pass repeats it.
        results: what the model returned.
        functions: whether single functions were seen; False where seeing them changed a bit, so that
            only modules were.
    """

    run: Run
    trace: Trace
    results: Results
    random: RandomState
    recorder: Recorder
    functions: bool = True

    def again(
        self,
        fetches: Sequence[Fetch],
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Recorder:
        """Run it once more, from the same random state, to fetch values; digests are not taken."""
        after = RandomState.take()
        self.random.restore()
        recorder = Recorder(
            self.run.layout, self.run.modules, tuple(fetches), digests=False, labels=self.recorder.labels
        )
        try:
            self.run.execute(Observation(recorder, functions=self.functions), around=around)
        finally:
            after.restore()
        return recorder


def trace_run(
    run: Run, *, functions: bool = True, around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Traced:
    """Trace a run: every op, with a digest per token coordinate.

    Raises:
        CaptureError: the model returned no tensor.
    """
    random = RandomState.take()
    recorder = Recorder(run.layout, run.modules)
    observation = Observation(recorder, functions=functions)
    outputs = run.execute(observation, around=around)
    trace = recorder.finish()
    trace.opaque = observation.opaque
    results: Results = [
        {name: (value, recorder.label_of_result(value)) for name, value in call.items()}
        for call in all_results(outputs)
    ]
    return Traced(run, trace, results, random, recorder, functions)


@dataclass
class Session:
    """Two traced runs, joined."""

    a: Traced
    b: Traced
    shared: Shared
    join: Join

    @property
    def pairing(self) -> Pairing:
        return self.shared.pairing
