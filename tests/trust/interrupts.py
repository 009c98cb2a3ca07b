"""Ctrl-C, or an error, at every position of a comparison: whatever it changes for a while is as it was before.

`python -m tests.trust.interrupts --count 1000 --seed 0` interrupts at so many of the positions, drawn by the seed;
without a count at all of them, the first time that each is reached and the last (`--share 2/8` takes the second of eight
parts of those, `--seconds 100` as many as that allows). `--raise MemoryError` raises an error there instead: it comes
through, or the result is what it would have been. `--saving` does so while a scene, its script and a result are saved: each
is there as a whole or not at all.

A position is an instruction of forkpoint, or of a context manager that it uses, before which Python may look whether there
was a signal: the first of a function, and those after a call or a jump back.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dis
import gc
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import forkpoint as fp
from forkpoint.capture.shortcuts import targets
from forkpoint.support import restoring
from forkpoint.support.restoring import FROZEN_AT_START

Position = tuple[CodeType, int]

FOLDER = str(Path(fp.__file__).parent)
MANAGERS = frozenset({contextlib.__file__, torch.overrides.__file__, torch.autograd.grad_mode.__file__})
CHECKS = frozenset({"CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD", "RESUME"})
"""Instructions at which Python looks for signals."""
ERRORS: dict[str, type[Exception]] = {
    error.__name__: error for error in (MemoryError, torch.OutOfMemoryError, OSError, ValueError)
}


class Stateful(nn.Module):
    """Writes whatever a forward call can write, and depends on the length of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.seen: list[int] = []
        self.register_buffer("calls", torch.zeros(1))
        self.scripted = torch.jit.script(_scaled)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape[1])
        self.last_shape = tuple(x.shape)
        self.calls += 1
        y = self.norm(torch.relu(self.first(x)).transpose(1, 2)).transpose(1, 2)
        with torch.no_grad():
            self.last.bias.data.mul_(0.5)
        return self.last(self.scripted(y, float(x.shape[1])))


def _scaled(x: Tensor, by: float) -> Tensor:
    return x * by


def two_runs() -> tuple[nn.Module, list[fp.Run]]:
    """A model, and two runs of it that differ, so that comparing them makes every probe."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls scripts old
        model = Stateful()
    x = torch.randn(2, 3, 4)
    longer = torch.cat([x, torch.zeros(2, 2, 4)], 1)
    layouts = [fp.Layout.from_mask((torch.arange(n) < 3).long().expand(2, n)) for n in (3, 5)]
    runs = [
        fp.Run(model, {"x": value}, layout=layout) for value, layout in zip((x, longer), layouts, strict=True)
    ]
    return model, runs


def comparison() -> tuple[nn.Module, Callable[[], Any]]:
    """A model, and a comparison with it that makes every probe."""
    model, runs = two_runs()

    def compare() -> Any:
        torch.manual_seed(0)
        result = fp.compare(*runs)
        result.value("first", "output")
        return result.to_dict()

    return model, compare


# ---------------------------------------------------------------------- what must be as before


def state(model: nn.Module) -> dict[str, Any]:
    """What a comparison changes for a while; equal states are the same."""
    modules = {path: {key: id(value) for key, value in vars(m).items()} for path, m in model.named_modules()}
    owned = {path: {n: id(t) for n, t in m._parameters.items()} for path, m in model.named_modules()}
    return {
        "function modes": list(map(id, _get_current_function_mode_stack())),
        "dispatch modes": list(map(id, _get_current_dispatch_mode_stack())),
        "module call": (id(nn.Module.__call__), id(nn.Module.__call__.__code__)),
        "swaps": id(torch.utils.swap_tensors.__code__),
        "collection": (gc.isenabled(), gc.get_freeze_count() >= FROZEN_AT_START),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        "classes": [
            id(nn.TransformerEncoder.forward), id(torch._C.ScriptFunction.__call__), id(torch._C.ScriptMethod.__call__),
        ],
        "shortcuts": hash(tuple(ctypes.string_at(id(t), type(t).__basicsize__)[8:] for t in _functions())),
        "warnings": id(warnings.filters),
        "handler": id(signal.getsignal(signal.SIGINT)),
        "attributes": modules,
        "parameters": owned,
        "values": {name: value.tolist() for name, value in model.state_dict().items()},
        "list": list(getattr(model, "seen", ())),
        "left to undo": len(restoring._left.undos),
        "turn": restoring._turn[0]._is_owned(),  # type: ignore[attr-defined]
    }  # fmt: skip


def _functions() -> list[Any]:
    """What has shortcuts: each of these objects says how it is entered. Functions of Python, which others number, have none."""
    return [target for target in targets() if not isinstance(target, (type, FunctionType))]


# ---------------------------------------------------------------------- positions


@cache
def positions_of(code: CodeType) -> frozenset[int]:
    """The offsets of instructions before which an interrupt may come, and would find the same handler as there."""
    found: set[int] = set()
    before: dis.Instruction | None = None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("CACHE", "PRECALL"):
            continue
        checks = before is not None and before.opname in CHECKS
        if (
            before is not None
            and checks
            and _handler(code, before.offset) == _handler(code, instruction.offset)
        ):
            found.add(instruction.offset)
        before = instruction
    return frozenset(found)


def _handler(code: CodeType, offset: int) -> int | None:
    entries = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    return next((entry.target for entry in entries if entry.start <= offset < entry.end), None)


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(FOLDER) or code.co_filename in MANAGERS


def visited(function: Callable[[], Any]) -> Counter[Position]:
    """All positions that a function comes to, and how often."""
    found: Counter[Position] = Counter()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and frame.f_lasti in positions_of(frame.f_code):
            found[frame.f_code, frame.f_lasti] += 1
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not _is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    _traced(trace, function)
    return found


def interrupted(
    function: Callable[[], Any], position: Position, times: int, error: type[Exception] | None = None
) -> Any:
    """Run a function and press Ctrl-C, or raise an error, where it comes to a position for the nth time.

    Returns:
        What it returned all the same; None if what happened came through.
    """
    code, offset = position
    left = [times]

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and frame.f_lasti == offset:
            left[0] -= 1
            if not left[0]:
                sys.settrace(None)
                if error is not None:
                    raise error("deliberate")
                signal.raise_signal(signal.SIGINT)
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not code or left[0] <= 0:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    with warnings.catch_warnings():
        # `with open(...)` interrupted between its two steps lets go of the file, which closes it and says so
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            return _traced(trace, function)
        except KeyboardInterrupt:
            return None
        except Exception as raised:
            if error is None or not (type(raised) is error or isinstance(raised, fp.ForkpointError)):
                raise
            return None


def _traced(trace: Any, function: Callable[[], Any]) -> Any:
    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = (
        True  # where no frame wants them yet, Python 3.12 traces no instructions
    )
    sys.settrace(trace)
    try:
        return function()
    finally:
        sys.settrace(before)


def left_by(
    positions: Iterable[tuple[Position, int]],
    model: nn.Module,
    act: Callable[[], Any],
    error: type[Exception] | None = None,
    wrong: Callable[[Any], list[str]] = lambda returned: [],
) -> Iterator[tuple[str, str]]:
    """For each interrupt at a position that left something: where it was, and what.

    Args:
        positions: where, and the how manyeth time.
        model: whose state has to be what it was.
        act: what is interrupted.
        error: raised in place of the interrupt.
        wrong: what is not as it should be besides, given what `act` returned, None if it was interrupted.
    """
    for position, times in positions:
        before = state(model)
        try:
            found: list[str] = wrong(interrupted(act, position, times, error))
        except Exception as other:  # noqa: BLE001 - whatever comes in place of the interrupt
            found = [f"{type(other).__name__}: {other}"]
        after = state(model)
        found += [name for name, value in before.items() if after[name] != value]
        code, offset = position
        line = next(line for start, end, line in code.co_lines() if start <= offset < end)
        for what in found:
            yield f"{Path(code.co_filename).name}:{line} {code.co_name} +{offset} ({times})", what


def drawn(counts: Counter[Position], count: int | None, seed: int) -> list[tuple[Position, int]]:
    """So many of the positions; all, each the first time and the last, without a number."""
    if count is None:
        return [(p, n) for p, times in counts.items() for n in sorted({1, times})]
    draw = random.Random(seed)
    places = draw.sample(
        sorted(counts, key=lambda p: (p[0].co_filename, p[0].co_qualname, p[1])), min(count, len(counts))
    )
    return [(place, draw.randint(1, counts[place])) for place in places]


def part(every: list[Any], share: str) -> list[Any]:
    """One of so many parts of a list.

    >>> part(list("abcde"), "2/2")
    ['b', 'd']
    """
    number, _, parts = share.partition("/")
    return every[int(number) - 1 :: int(parts)]


def within(seconds: float, positions: list[Any], taken: list[Any]) -> Iterator[Any]:
    """Positions one after the other, until the time is over; those that were taken are added to a list."""
    end = time.monotonic() + seconds
    for position in positions:
        if time.monotonic() >= end:
            return
        taken.append(position)
        yield position


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--raise", choices=list(ERRORS), dest="error", help="in place of an interrupt")
    parser.add_argument(
        "--saving", action="store_true", help="what is saved of a comparison, not the comparison"
    )
    parser.add_argument(
        "--share", default="1/1", metavar="K/N", help="the K-th of N parts, for processes side by side"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="take no more after these")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="forkpoint-test-") as room:
        if given.saving:
            from tests.trust.saving import Everything

            everything = Everything(Path(room))
            model, act, wrong = everything.model, everything.act, everything.wrong
        else:
            model, act = comparison()
            act()
            expected = act()
            wrong = partial(other_result, expected)
        act()
        counts = visited(act)
        positions = part(drawn(counts, given.count, given.seed), given.share)
        taken: list[Any] = []
        left = 0
        for where, what in left_by(
            within(given.seconds, positions, taken), model, act, ERRORS.get(given.error), wrong
        ):
            left += 1
            print(where, what, flush=True)
        same = wrong(act()) == []
    print(
        f"{len(counts)} positions, {len(taken)} of {len(positions)} interrupts made, {left} left something; "
        f"the same afterwards: {same}"
    )
    return int(left > 0 or not same or not taken)


def other_result(expected: Any, returned: Any) -> list[str]:
    """What is wrong with what a comparison came to that was disturbed; None where it came to nothing."""
    return [] if returned in (None, expected) else ["another result"]


if __name__ == "__main__":
    sys.exit(main())
