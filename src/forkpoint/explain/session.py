"""A traced pair of runs: what pass one gathered, and how to ask for more in a second pass."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from forkpoint.capture.calls import Caller
from forkpoint.capture.labels import Label
from forkpoint.capture.recorder import Fetch, Look, Recorder, Watcher
from forkpoint.capture.rules.call import tensors_in
from forkpoint.capture.taps import Observation
from forkpoint.capture.trace import Trace
from forkpoint.errors import CaptureError, ForkpointError, reraise_out_of_memory
from forkpoint.explain.untraced import Untraced, run_untraced
from forkpoint.match import Join, Shared
from forkpoint.promotion import Promotion
from forkpoint.promotion.uncompiled import Uncompiled
from forkpoint.runs.modules import survey
from forkpoint.runs.pairing import Pairing
from forkpoint.runs.randomness import RandomState
from forkpoint.runs.returned import all_results, closed_of, others_of
from forkpoint.runs.run import BackwardPass, Inputs, Run
from forkpoint.support.equality import same_results
from forkpoint.support.memory import Memory
from forkpoint.support.progress import SILENT, Progress
from forkpoint.support.restoring import FROZEN_AT_START, undone

Results = list[dict[str, tuple[Tensor, Label | None]]]
"""For each call, the tensors that the model returned and their labels."""


class _Dtypes(TorchDispatchMode):
    """Notes the floating-point dtypes of all that kernels return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.seen |= {value.dtype for value in tensors_in(output) if value.is_floating_point()}
        return output


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
    repeats: bool = True
    """Whether the run, made again without tracing from the same random state, gave the same bits."""
    draws: bool = False
    """Whether the run drew random numbers."""
    remarks: tuple[str, ...] = ()
    """What a report should say of how it was traced."""
    others: dict[str, str] = field(default_factory=dict[str, str])
    """By name the class of what the model returned that has no value to compare."""
    closed: dict[str, str] = field(default_factory=dict[str, str])
    """By name the class of what the model returned that has tensors which can't be named."""
    progress: Progress = SILENT

    def again(
        self,
        fetches: Sequence[Fetch] = (),
        *,
        watcher: Watcher | None = None,
        promotion: Promotion | None = None,
        calls: Sequence[Inputs] | None = None,
        under: Callable[[], AbstractContextManager[Any]] = nullcontext,
        enough: Callable[[], bool] | None = None,
        backward: BackwardPass | None = None,
    ) -> Results:
        """Run it once more, from the same random state; digests are not taken.

        Args:
            fetches: calls to keep.
            watcher: sees every value, and may change it.
            promotion: computes the run in float64.
            calls: other inputs of the same layout.
            under: makes a context manager that is entered around each call, after the promotion.
            enough: whether nobody wants to know more of the run; its results then have no labels.
            backward: makes the backward pass.
        """
        recorder = Recorder(
            self.run.layout, self.run.modules, tuple(fetches), digests=False, labels=self.recorder.labels,
            watcher=watcher, read=promotion.value if promotion is not None else None,
            unregistered=self.recorder.unregistered, enough=enough,
        )  # fmt: skip
        return self._watched(self.run, recorder, promotion, _around(promotion, under), calls, backward)

    def unwatched(self, backward: BackwardPass) -> None:
        """Run it once more with a backward pass, from the same random state, with nobody watching."""
        with self._random_as_before():
            self.run.execute(backward=backward)

    def unobserved(self, around: Callable[[], AbstractContextManager[Any]]) -> None:
        """Run it once more, from the same random state, with nobody watching but what is entered around each call."""
        with self._random_as_before():
            self.run.execute(around=around)

    @cached_property
    def dtypes_inside(self) -> frozenset[torch.dtype]:
        """Floating-point dtypes of a run whose trace does not look into all modules: of compiled ones, those of their Python.

        Empty where the trace looks into all, or the run can't be looked at so.
        """
        if not self.trace.opaque:
            return frozenset()
        dtypes = _Dtypes()

        @contextmanager
        def noted() -> Generator[None]:
            with Uncompiled().block(), dtypes:
                yield

        try:
            self.unobserved(noted)
        except Exception as error:  # noqa: BLE001 - a kernel may refuse modes in its own way
            reraise_out_of_memory(error)
            return frozenset()
        return frozenset(dtypes.seen)

    def instead(
        self, run: Run, *, watcher: Watcher, promotion: Promotion, enough: Callable[[], bool] | None = None
    ) -> Results:
        """Make another run in this one's place, from the same random state, in float64.

        Args:
            run: the run.
            watcher: sees every value, and may change it.
            promotion: computes the run in float64.
            enough: whether nobody wants to know more of the run; its results then have no labels.
        """
        recorder = Recorder(
            run.layout, run.modules, digests=False, watcher=watcher, read=promotion.value, enough=enough
        )
        return self._watched(run, recorder, promotion, _around(promotion, nullcontext))

    def _watched(
        self, run: Run, recorder: Recorder, promotion: Promotion | None,
        around: Callable[[], AbstractContextManager[Any]], calls: Sequence[Inputs] | None = None,
        backward: BackwardPass | None = None,
    ) -> Results:  # fmt: skip
        exact = promotion is not None
        observation = Observation(recorder, functions=self.functions or exact, inside=exact)
        self.progress.count(recorder.trace.rows.__len__, len(self.trace.rows))
        try:
            with self._random_as_before():
                outputs = run.execute(observation, around=around, calls=calls, backward=backward)
        finally:
            recorder.hold_weights()
        over = (
            recorder.tape.over
        )  # nobody knows where the results come from, and to guess would number new coordinates
        return [
            {
                name: (
                    value if promotion is None else promotion.value(value),
                    None if over else recorder.label_of_result(value, index),
                )
                for name, value in call.items()
            }
            for index, call in enumerate(all_results(outputs))
        ]

    def in_float64(
        self,
        promotion: Promotion,
        *,
        under: Callable[[], AbstractContextManager[Any]] = nullcontext,
        calls: Sequence[Inputs] | None = None,
    ) -> Results:
        """Run it once more in float64, from the same random state, with nobody watching.

        Args:
            promotion: computes the run in float64.
            under: makes a context manager that is entered around each call, after the promotion.
            calls: other inputs in place of the run's own.
        """
        total = self._computed
        self.progress.count(lambda: min(promotion.computed, total), total)
        with self._random_as_before(), self._opaque_uncounted(promotion):
            outputs = self.run.execute(around=_around(promotion, under), calls=calls)
        return [
            {
                name: (promotion.value(value), self._label_of(index, name, value))
                for name, value in call.items()
            }
            for index, call in enumerate(all_results(outputs))
        ]

    @cached_property
    def _computed(self) -> int:
        """How many values its functions computed."""
        return sum(row[2].status == "digest" and not row[0].is_boundary for row in self.trace.rows)

    @contextmanager
    def _opaque_uncounted(self, promotion: Promotion) -> Generator[None]:
        """Have a promotion count no calls that the trace could not see, in modules that were not looked into."""
        model = self.run.modules
        paths = frozenset(self.trace.opaque)
        opaque = (
            {id(m) for path, m in model.named_modules() if path in paths}
            if paths and model is not None
            else set[int]()
        )
        if not opaque:
            yield
            return
        caller = Caller()

        def makes(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            with promotion.uncounted() if id(module) in opaque else nullcontext():
                return caller.original(module, *args, **kwargs)

        with caller.replaced(makes):
            yield

    def _label_of(self, call: int, name: str, value: Tensor) -> Label | None:
        """The label of a result of a run that nobody watched: that of the trace's, if it is of the same shape."""
        returned = self.results[call].get(name)
        if returned is not None and returned[0].shape == value.shape:
            return returned[1]
        return self.recorder.label_of_result(value, call)

    @contextmanager
    def _random_as_before(self) -> Generator[None]:
        """Have the random generators in the state in which the run began; afterwards they are in the one they are in now."""
        with undone(RandomState.take().restore):
            self.random.restore()
            yield


def _around(
    promotion: Promotion | None, under: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def around() -> Generator[None]:
        with promotion or nullcontext(), under():
            yield

    return around


def trace_run(
    run: Run,
    *,
    functions: bool = True,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    memory: Memory | None = None,
    progress: Progress = SILENT,
    like: Trace | None = None,
) -> Traced:
    """Trace a run: every op, with a digest per token coordinate.

    Args:
        run: the run.
        functions: False to watch modules only.
        around: makes a context manager that is entered around each call.
        memory: limits what is kept of the digests in memory; those beyond it go to a file.
        progress: is told how far the run is.
        like: a trace of what is about as long, to tell how far it is.

    Raises:
        CaptureError: the model returned no tensor.
    """
    random = RandomState.take()
    with _no_collection():
        shelf = memory.shelf() if memory is not None and memory.limited else None
        inventory = None if run.modules is None else survey(run.modules)
        recorder = Recorder(run.layout, run.modules, shelf=shelf, parts=inventory)
        observation = Observation(recorder, functions=functions)
        if len(run.calls) > 1:
            progress.count(lambda: recorder.call, len(run.calls))
        else:
            progress.count(recorder.trace.rows.__len__, None if like is None else len(like.rows))
        outputs = run.execute(observation, around=around, parts=inventory)
        trace = recorder.finish()
    trace.opaque, trace.uncompiled = observation.opaque, observation.uncompiled
    results: Results = [
        {name: (value, recorder.label_of_result(value, index)) for name, value in call.items()}
        for index, call in enumerate(all_results(outputs))
    ]
    others, closed = (
        {name: kind for output in outputs for name, kind in of(output).items()}
        for of in (others_of, closed_of)
    )
    return Traced(
        run, trace, results, random, recorder, functions, progress=progress, others=others, closed=closed
    )


@contextmanager
def _no_collection() -> Generator[None]:
    """Keep Python from looking for garbage in all it holds, which takes longer than a small model's run.

    A plain run hardly makes objects that last, so that it is seldom looked for there; a trace makes many. They
    join the oldest generation, as if they had been looked at already.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_freeze_count() < FROZEN_AT_START:  # else it would thaw what somebody else froze
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def plain(results: Results) -> list[dict[str, Tensor]]:
    """Results without their labels."""
    return [{name: value for name, (value, _) in call.items()} for call in results]


def trace_faithfully(
    run: Run,
    untraced: Untraced | None = None,
    *,
    memory: Memory | None = None,
    progress: Progress = SILENT,
    name: str = "",
    like: Trace | None = None,
) -> Traced:
    """Trace a run, and check against an untraced one that tracing did not change a bit of what it returns.

    Where it did, step back to a tap that sees modules only.

    Args:
        run: the run.
        untraced: the same run without tracing, if it was made; the random generators are left as they are.
        memory: limits what is kept of the digests in memory.
        progress: is told of the stages.
        name: what to call the run there.
        like: a trace of what is about as long.
    """
    untraced = untraced or run_untraced(run, progress=progress, name=name)
    after = RandomState.take()
    before = untraced.random
    before.restore()
    progress.begin(f"tracing run {name}")
    remarks: list[str] = []
    try:
        traced = trace_run(run, memory=memory, progress=progress, like=like)
    except ForkpointError:
        raise
    except Exception as error:  # noqa: BLE001 - the run goes well untraced, whatever it is that can't be looked at
        reraise_out_of_memory(error)
        before.restore()
        traced = _trace_modules(run, error, memory, progress)
        remarks.append("single functions of this model could not be looked at; only its modules were watched")
    remarks += [
        f"not looked into, since that would change its bits: {path or '(model)'}"
        for path in traced.trace.opaque
    ]
    traced.draws = RandomState.take() != before
    if not same_results(plain(traced.results), untraced.results):
        progress.begin(f"whether tracing changes run {name}")
        if _tracing_shows(run, before, traced, untraced.results, memory):
            before.restore()
            traced.trace.close()
            draws, traced = traced.draws, trace_run(run, functions=False, memory=memory, progress=progress)
            traced.draws = draws
            remarks.append(
                "looking at single functions changes this model's bits; only its modules were watched"
            )
            if not same_results(plain(traced.results), untraced.results):
                remarks.append(
                    "watching its modules changes them too: this trace is not exactly the model's own run"
                )
        else:
            traced.repeats = False
            remarks.append("the run does not repeat itself bit for bit, from the same random state")
    if traced.trace.uncompiled:
        remarks.append("compiled functions were traced as the Python that they were made from")
    after.restore()
    traced.remarks = tuple(remarks)
    return traced


def _trace_modules(run: Run, error: Exception, memory: Memory | None, progress: Progress) -> Traced:
    """Trace the modules of a run alone, where looking at its functions ended in an error."""
    try:
        return trace_run(run, functions=False, memory=memory, progress=progress)
    except ForkpointError:
        raise
    except Exception as again:
        reraise_out_of_memory(again)
        if isinstance(again, RecursionError):
            raise CaptureError(
                f"the run could not be traced: {sys.getrecursionlimit()} calls within one another, the most that Python allows, are too few to look at it",
                "a model that needs fewer",
                "sys.setrecursionlimit(10_000) before the comparison allows more",
            ) from again
        raise CaptureError(
            f"the run could not be traced: {type(error).__name__}: {error}".splitlines()[0][:300],
            "a model whose functions can be looked at while it runs",
            "this is an error of forkpoint's own: please report it, with the model",
        ) from again


_ROUNDS = 2
"""How often a run is made again to tell chance from tracing: atomics may give the same bits once more."""


def _tracing_shows(
    run: Run, before: RandomState, traced: Traced, untraced: list[dict[str, Tensor]], memory: Memory | None
) -> bool:
    """Whether tracing is what changed the results: the run repeats itself without it, and with it too."""
    for _ in range(_ROUNDS):
        before.restore()
        if not same_results(untraced, all_results(run.execute())):
            return False
        before.restore()
        if not same_results(plain(traced.results), plain(trace_run(run, memory=memory).results)):
            return False
    return True


@dataclass
class Session:
    """Two traced runs, joined."""

    a: Traced
    b: Traced
    shared: Shared
    join: Join
    memory: Memory = field(default_factory=Memory)
    """What is kept of the runs while their differences are looked into."""
    progress: Progress = SILENT
    look: Look | None = None
    """What is to be known of a call that is kept, besides its values."""
    experiments: dict[Any, Any] = field(default_factory=dict[Any, Any])
    """What came of runs that were made with other values in them, by which these were."""

    @property
    def pairing(self) -> Pairing:
        return self.shared.pairing
