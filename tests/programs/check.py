"""Whether tracing changes a random program, and whether the answer is the oracle's."""

from __future__ import annotations

import traceback
import warnings
from collections import deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from tests.capture.passages import assert_same, assert_same_labels, forget
from torch import Tensor, nn

import forkpoint as fp
from forkpoint.capture import tape
from forkpoint.explain.session import trace_run
from forkpoint.native import compiled
from forkpoint.native.choice import python_alone

from . import oracle
from .program import COMPILED, Program
from .state import Slots

START = torch.Generator().manual_seed(1).get_state()
"""The random state in which every run begins."""
NUMBERED = {"_torchdynamo_wrapper_id"}
"""Attributes that are another number in each model."""
FALLS_BACK = "only its modules were watched"


# ---------------------------------------------------------------------- what there is to see


PRIMITIVE = frozenset({type(None), bool, int, float, str})
SIMPLE = (*PRIMITIVE, complex, set, torch.dtype)


def frozen(value: Any, depth: int = 8) -> Any:
    """A value with all that it holds, in a form that is equal where every bit is."""
    if type(value) in PRIMITIVE:  # most of what there is
        return repr(value)
    if isinstance(value, Tensor):
        return frozen_tensor(value)
    if isinstance(value, SIMPLE):
        return repr(value)
    if not depth:
        return type(value).__name__
    if isinstance(value, dict):
        # hooks are numbered on and on
        return tuple(
            (key if isinstance(key, str) else "", frozen(item, depth - 1))
            for key, item in value.items()
            if key not in NUMBERED
        )
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, torch.Generator):
        return frozen_tensor(value.get_state())
    if isinstance(value, Slots):
        return frozen([value.value, value.tensor], depth - 1)
    if isinstance(value, (list, tuple, deque)):
        return tuple(frozen(item, depth - 1) for item in value)
    if isinstance(value, nn.Module):
        held = {key: item for key, item in vars(value).items() if not isinstance(item, dict) or item}
        return type(value).__name__, frozen(held, depth - 1)
    if isinstance(value, SimpleNamespace):
        return frozen(vars(value), depth - 1)
    return type(value).__name__


def frozen_tensor(value: Tensor) -> Any:
    kind = type(value).__name__, str(value.dtype), tuple(value.shape)
    if value.layout is not torch.strided or not oracle.address(value) or not value.numel():
        return kind
    data = value.detach().as_subclass(Tensor).resolve_conj().resolve_neg().contiguous()
    try:
        bits = data.reshape(-1).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError):
        return kind
    return *kind, bits, value.requires_grad, None if not value.is_leaf else frozen(value.grad)


@dataclass
class Seen:
    """A call of the model: what was there before and after, and what it returned."""

    before: Any
    random_before: Tensor
    output: Any
    after: Any
    random_after: Tensor


@dataclass
class Witness:
    """Calls the model as the program says, and keeps what could be seen of that.

    A run of a program that draws random numbers always begins in the same random state.
    """

    program: Program
    start: Tensor
    seen: list[Seen] = field(default_factory=list)

    def __call__(self, model: nn.Module, inputs: Any) -> Any:
        if self.program.draws and not len(self.seen) % self.program.calls:
            torch.set_rng_state(self.start)
        with torch._C.DisableTorchFunction():
            before, random_before = frozen(model), torch.get_rng_state()
        with getattr(torch, self.program.mode)():
            output = model(**inputs)
        with torch._C.DisableTorchFunction():
            self.seen.append(
                Seen(before, random_before, frozen(output), frozen(model), torch.get_rng_state())
            )
        return output


# ---------------------------------------------------------------------- what is checked


class Checker:
    """All that is checked of one program.

    Attributes:
        wrong: what was found, a line each.
        notes: the remarks of the first trace.
        answered: whether the oracle could say where the runs part, or that they don't, and it is the same answer.
        located: whether that is an op.
        fails: whether torch refuses the program.
        calls: how many calls of the model were looked at.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.wrong: list[str] = []
        self.notes: tuple[str, ...] = ()
        self.answered = self.located = self.fails = False
        self.calls = 0

    def run(self) -> None:
        """Make all checks."""
        program = self.program
        try:
            expected = [self.plain(gain) for gain in (1.0, program.gain)]
        except Exception as error:  # noqa: BLE001 - what a program may not do, torch says
            self.fails = True
            self.same_error(error)
            return
        for check in (
            lambda: self.observed(expected),
            lambda: self.rows(expected[0]),
            *([lambda: self.probed(expected)] if program.probed else []),
        ):
            try:
                check()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
                where = traceback.extract_tb(error.__traceback__)[-1]
                said = str(error).splitlines()[0][:200] if str(error) else ""
                self.wrong.append(
                    f"{type(error).__name__} in {where.filename.rsplit('/', 1)[-1]}:{where.lineno}: {said}"
                )

    def plain(self, gain: float) -> list[Seen]:
        """A run as it is without forkpoint."""
        model, witness = self.program.model(), Witness(self.program, START)
        torch.set_rng_state(START)
        with torch.no_grad():
            for inputs in self.program.inputs(gain):
                witness(model, inputs)
        return witness.seen

    def runs(self, calls: list[Any]) -> list[fp.Run]:
        """The two runs of the program."""
        program, model = self.program, self.program.model()
        layout = fp.Layout.read([{"x": call["x"]} for call in program.inputs()])
        return [
            fp.Run(model, program.inputs(gain), layout=layout, call=call)
            for gain, call in zip((1.0, program.gain), calls, strict=True)
        ]

    def same_error(self, error: Exception) -> None:
        """A program that torch refuses is refused with the same error, and leaves nothing changed."""
        runs = self.runs([Witness(self.program, START) for _ in "AB"])
        before = frozen(runs[0].model)
        try:
            fp.compare(*runs, probes=False)
            self.wrong.append(f"no error where the program alone ends in {type(error).__name__}")
        except Exception as found:  # noqa: BLE001 - to be compared
            if (type(found), str(found)) != (type(error), str(error)):
                self.wrong.append(
                    f"{type(found).__name__}: {found}, where the program alone ends in {error}"[:400]
                )
        if frozen(runs[0].model) != before:
            self.wrong.append("the model was left changed: " + difference(before, frozen(runs[0].model)))

    def probed(self, expected: list[list[Seen]]) -> None:
        """Experiments leave nothing changed, and runs are identical where what they return is."""
        runs = self.runs([Witness(self.program, START) for _ in "AB"])
        before = frozen(runs[0].model)
        torch.set_rng_state(START)
        kind = fp.compare(*runs, max_memory=self.program.memory).verdict.kind
        identical = [call.output for call in expected[0]] == [call.output for call in expected[1]]
        if identical != (kind == "identical"):
            self.wrong.append(f"{kind}, where the outputs are {'the same' if identical else 'not the same'}")
        if frozen(runs[0].model) != before:
            self.wrong.append(
                "experiments left the model changed: " + difference(before, frozen(runs[0].model))
            )

    def observed(self, expected: list[list[Seen]]) -> None:
        """Tracing changes no bit, and the first divergence is the oracle's."""
        program = self.program
        gains = (1.0, program.gain)
        witnesses = [Witness(program, START) for _ in gains]
        runs = self.runs(witnesses)
        model, before = runs[0].model, frozen(runs[0].model)
        torch.set_rng_state(START)
        result = fp.compare(*runs, probes=False, max_memory=program.memory)
        self.notes = result.a.notes
        if frozen(model) != before:
            self.wrong.append("the model was left changed: " + difference(before, frozen(model)))
        for name, witness, plain in zip("AB", witnesses, expected, strict=True):
            self.compare_calls(name, witness.seen, plain)
        self.compare_answer(result)

    def compare_calls(self, name: str, seen: list[Seen], plain: list[Seen]) -> None:
        """Each call that forkpoint had made against the plain one from the same random state."""
        n = len(plain)
        self.calls += len(seen)
        if len(seen) % n or len(seen) < 2 * n:
            self.wrong.append(f"run {name}: {len(seen)} calls seen where a run has {n}")
        for index, call in enumerate(seen):
            its = plain[index % n]
            if not torch.equal(call.random_before, its.random_before):
                self.wrong.append(f"run {name}, call {index}: another random state before")
            for what in ("before", "output", "after"):
                mine, theirs = getattr(call, what), getattr(its, what)
                if mine != theirs:
                    self.wrong.append(
                        f"run {name}, call {index}: {what} is not as without forkpoint: {difference(theirs, mine)}"
                    )
            if not torch.equal(call.random_after, its.random_after):
                self.wrong.append(f"run {name}, call {index}: another random state after")

    def compare_answer(self, result: fp.Result) -> None:
        """The first divergence against the oracle's."""
        program = self.program
        made = []
        for gain in (1.0, program.gain):
            made.append(oracle.watch(program.model(), program.inputs(gain), Witness(program, START)))
        left_out = {(row.op, row.source) for row in result.not_compared}
        compared = [[value for value in run if (value.op, value.line) not in left_out] for run in made]
        expected = oracle.first_difference(*compared)
        if any(FALLS_BACK in note for note in (*result.a.notes, *result.b.notes)):
            self.wrong.append(f"fell back to modules: {result.a.notes}")
            return
        found = None if result.first is None else (result.first.op, result.first.source)
        whole = oracle.first_difference(*made)
        if isinstance(whole, oracle.Made) and found in left_out and found == (whole.op, whole.line):
            expected = whole  # of an op that many lines call through a mode, some passes were compared
        if expected == "apart":
            return
        wanted = None if not isinstance(expected, oracle.Made) else (expected.op, expected.line)
        if found is None or wanted is None:
            same = found is wanted
        else:
            same = found == wanted or (
                wanted[1] == ""
                and result.first is not None
                and result.first.function is None
                and result.first.module == wanted[0].removesuffix("/output").replace("(model)", "")
            )
        self.answered, self.located = same, same and wanted is not None
        if not same:
            self.wrong.append(f"first divergence {found}, the oracle's is {wanted}")
        made_differs = (row for row in result.ops if row.status == "differs")
        if wanted is None and any(not str(row.function).startswith("input:") for row in made_differs):
            self.wrong.append(
                "equal runs have rows that differ"
            )  # what goes into a module the oracle can't see

    def rows(self, expected: list[Seen]) -> None:
        """With the part in C and without, every row says the same, and no bit of the model's is another one."""
        if compiled is None:
            return
        program = self.program
        layout = fp.Layout.read([{"x": call["x"]} for call in program.inputs()])
        traces = []
        for context in (python_alone, None):
            forget()
            model = program.model()
            witness = Witness(program, START)
            run = fp.Run(model, program.inputs(), layout=layout, call=witness)
            made = []
            for _ in range(2):
                torch.set_rng_state(START)
                if context is None:
                    made.append(trace_run(run))
                else:
                    with context():
                        made.append(trace_run(run))
            traces.append(made)
            self.compare_calls("A in Python" if context else "A in C", witness.seen, expected)
        for slow, fast in zip(*traces, strict=True):
            assert_same(slow.trace, fast.trace)
            assert_same_labels(slow, fast)


def difference(a: Any, b: Any, where: str = "") -> str:
    """The first place at which two frozen values differ."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} entries"
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            if one != other:
                name = one[0] if isinstance(one, tuple) and one and isinstance(one[0], str) else index
                return difference(one, other, f"{where}/{name}")
    return f"{where}: {str(a)[:60]} and {str(b)[:60]}"


def check(program: Program) -> Checker:
    """Check a program."""
    checker = Checker(program)
    room = {} if program.room is None else {"cpu": program.room}
    with warnings.catch_warnings(), patch.dict(tape.PENDING_BYTES, room):
        warnings.simplefilter("ignore")
        checker.run()
    if COMPILED.intersection(program.blocks):
        torch._dynamo.reset()
    return checker
