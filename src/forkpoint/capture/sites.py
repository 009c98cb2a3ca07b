"""Where in the source an op is called: found from the frames, resolved once per place."""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import tokenize
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType

import torch

from forkpoint.runs import run

_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_RUN = os.path.abspath(run.__file__)
"""The file that calls the model: frames outside of it are no part of a place."""
_PLUMBING = (
    os.path.join("torch", "nn", "modules", "module.py"),
    os.path.join("torch", "overrides.py"),
    os.path.join("torch", "_tensor.py"),
    os.path.join("torch", "utils", "_contextlib.py"),
)
_WRAPPERS = (os.path.join("accelerate", "hooks.py"), os.path.join("accelerate", "utils", "operations.py"))


class CallStack:
    """The calls that lead to an op, innermost first: those inside torch, then the one outside it.

    Interned, and compared by identity: to hash a code object takes longer than some ops.

    Attributes:
        steps: for each call, its code and the offset of its instruction.
        callers: the longer stacks that begin with this one, by the address of the next instruction.
    """

    def __init__(self, steps: tuple[tuple[CodeType, int], ...]) -> None:
        self.steps = steps
        self.callers: dict[int, CallStack] = {}
        self._site: Site | None = None

    def after(self, code: CodeType, offset: int) -> CallStack:
        """The stack with one more call, further out."""
        # Unlike any other instruction's: a code object holds its instructions, so no other lies there.
        instruction = id(code) + offset
        place = self.callers.get(instruction)
        if place is None:
            place = self.callers[instruction] = CallStack((*self.steps, (code, offset)))
        return place

    @property
    def site(self) -> Site:
        """The place in words, worked out once."""
        if self._site is None:
            self._site = _in_words(self.steps)
        return self._site


@dataclass(frozen=True)
class Site:
    """A place in the source.

    Attributes:
        file: path of the file outside torch.
        line, column: where the call begins there; both from 1 and 0, as Python counts them.
        chain: the whole place in a form that is the same in every process.
        function: the first line of the function around it; 0 if none is around it that stands on lines of its own.
    """

    file: str
    line: int
    column: int
    chain: str
    function: int = 0

    @property
    def short(self) -> str:
        """`file.py:line`."""
        return f"{os.path.basename(self.file)}:{self.line}"

    @property
    def code(self) -> str:
        """The text of the line; empty for code made by exec."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def variable(self) -> str | None:
        """The variable that the statement at this place assigns."""
        return variable_at(self.file, self.line, self.function)


_OUTSIDE, _INSIDE, _SKIPPED, _CALL = 1, 2, 3, 4

_kinds: dict[int, int] = {}
"""By the id of a code object; `_codes` keeps the objects alive, so that no id is used again."""
_codes: list[CodeType] = []


def kind_of(code: CodeType) -> int:
    """The kind of a code object: outside torch, inside, to be skipped, or what calls the model."""
    kind = _kinds.get(id(code))
    if kind is not None:
        return kind
    file = code.co_filename
    if file == _RUN and code.co_name == "_invoke":
        kind = _CALL
    elif file.startswith(_OWN) or file.endswith(_PLUMBING) or file.endswith(_WRAPPERS):
        kind = _SKIPPED
    elif file.startswith(_TORCH):
        kind = _INSIDE
    else:
        kind = _OUTSIDE
    _codes.append(code)
    _kinds[id(code)] = kind
    return kind


def place_of(frame: FrameType | None) -> CallStack:
    """The place that a frame calls from."""
    place, first = NOWHERE, frame
    while frame is not None:
        code = frame.f_code
        address = id(code)
        kind = _kinds.get(address) or kind_of(code)
        if kind in (_OUTSIDE, _INSIDE):
            place = place.after(code, frame.f_lasti)
            if kind == _OUTSIDE:
                if frame is first:
                    direct[address + frame.f_lasti] = place
                break
        elif kind == _CALL:
            break  # the model is torch's own: who called forkpoint is no part of it
        frame = frame.f_back
    return place


def outermost(chain: str) -> str:
    """The last part of a chain: the line outside torch. Chains of the same line may differ in the lines inside torch."""
    return chain.rpartition(" < ")[2]


direct: dict[int, CallStack] = {}
"""The places of calls from outside torch without torch in between, by the address of the instruction."""
NOWHERE = CallStack(())
"""The place of a module's inputs and outputs, which no line of source makes."""


def _in_words(place: tuple[tuple[CodeType, int], ...]) -> Site:
    steps = [_position(code, lasti) for code, lasti in place]
    chain = " < ".join(
        f"{_relative(code.co_filename)}:{line}:{column}-{end}"
        for (code, _), (line, column, end) in zip(place, steps, strict=True)
    )
    if not place:
        return Site("?", 0, 0, "?")
    code, (line, column, _) = place[-1][0], steps[-1]
    function = 0 if code.co_name.startswith("<") else code.co_firstlineno
    return Site(code.co_filename, line, column, chain, function)


@cache
def _positions(code: CodeType) -> tuple[tuple[int | None, int | None, int | None, int | None], ...]:
    return tuple(code.co_positions())


def _position(code: CodeType, lasti: int) -> tuple[int, int, int]:
    """Line, first and last column of a call; `a + b + c` begins twice at one column."""
    if lasti < 0:
        return code.co_firstlineno, 0, 0
    table = _positions(code)
    index = lasti // 2
    line, _, column, end = table[index] if index < len(table) else (None, None, None, None)
    return line or code.co_firstlineno, column or 0, end or 0


def _relative(file: str) -> str:
    """The path from the package's folder on, which is the same on every machine."""
    for mark in (os.sep + "site-packages" + os.sep, os.sep + "dist-packages" + os.sep):
        if mark in file:
            return file.split(mark, 1)[1].replace(os.sep, "/")
    return os.path.basename(file)


@cache
def _assignments(file: str, function: int) -> dict[int, tuple[int, str]]:
    """For every line of a function, or of a file if it is 0, the targets of the innermost assignment that spans it."""
    lines, offset = linecache.getlines(file), 0
    targets: dict[int, tuple[int, str]] = {}
    try:
        if 0 < function <= len(lines):  # a file may have thousands of lines, and a model calls from a few
            lines, offset = inspect.getblock(lines[function - 1 :]), function - 1
            if lines[0][:1].isspace():
                lines, offset = ["if True:\n", *lines], offset - 1
        tree = ast.parse("".join(lines))
    except (SyntaxError, tokenize.TokenError):  # the file is no longer what was read
        return _assignments(file, 0) if function else targets
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            names = ", ".join(ast.unparse(target).strip("()") for target in node.targets)
        elif isinstance(node, (ast.AugAssign, ast.AnnAssign)) and node.value is not None:
            names = ast.unparse(node.target)
        else:
            continue
        span = (node.end_lineno or node.lineno) - node.lineno
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
            if line not in targets or span <= targets[line][0]:
                targets[line] = (span, names)
    return {line + offset: entry for line, entry in targets.items()}


def variable_at(file: str, line: int, function: int = 0) -> str | None:
    """The variable that the statement at a line assigns, or None.

    Args:
        file: path of the source.
        line: the line, from 1.
        function: the first line of the function that it is in, which is all that is looked at then.
    """
    entry = _assignments(file, function).get(line)
    return entry[1] if entry else None
