"""Hands copies of values and calls to the fetches (`Fetch`) of a run that asked for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from forkpoint.capture.hooks import CopiedArguments, CopiedCall, Fetch, clone
from forkpoint.capture.labels import Label
from forkpoint.capture.marks import TensorRecord
from forkpoint.capture.trace import Op
from forkpoint.capture.wanted import FetchTargets

Key = tuple[str, str, str]
"""What names an op in every run: module, function, chain."""


class Fetching:
    """The fetches of a run, by the key of the op that they want.

    Args:
        fetches: all of them.
        wanted: the modules of the fetches, if all other modules can be recorded without copies; else None.
        read: gives the true value of a tensor, where another mode (`Promotion`) keeps it elsewhere.
    """

    def __init__(
        self, fetches: Sequence[Fetch], wanted: FetchTargets | None, read: Callable[[Tensor], Tensor] | None
    ) -> None:
        self.wanted = wanted
        self._read = read
        self._of: dict[Key, list[Fetch]] = {}
        for fetch in fetches:
            self._of.setdefault(fetch.key, []).append(fetch)

    def __bool__(self) -> bool:
        return bool(self._of)

    def of(self, key: Key, call: int, nth: int, output: int | None = None) -> list[Fetch]:
        """The fetches that want a pass of an op, or of one output of a module."""
        return [
            fetch
            for fetch in self._of.get(key, ())
            if fetch.call in (None, call)
            and fetch.nth in (None, nth)
            and (output is None or fetch.output in (None, output))
        ]

    def hand_over(
        self,
        func: Any,
        call: int,
        arguments: CopiedArguments,
        recorded: tuple[Op, int, tuple[Tensor, ...], list[Label | None]],
        fetches: Iterable[tuple[Fetch, Any]],
    ) -> None:
        """Give a finished call to the fetches that want it.

        Args:
            func: the torch function.
            call: index of the forward call.
            arguments: copies of the arguments.
            recorded: what `Reader.record` returned for the call.
            fetches: each with what its `look` returned.
        """
        op, nth, outputs, labels = recorded
        copies = tuple(clone(output if self._read is None else self._read(output)) for output in outputs)
        finished = CopiedCall(
            op,
            call,
            nth,
            func,
            arguments.args,
            arguments.kwargs,
            copies,
            arguments.labels,
            tuple(labels),
            arguments.owned,
        )
        for fetch, seen in fetches:
            fetch.take(replace(finished, seen=seen))

    def hand_value(self, op: Op, call: int, nth: int, value: Tensor, label: Label | None) -> bool:
        """Give a module's input or output to the fetches that want it; returns whether any does."""
        fetches = self.of((op.module, op.function, op.site.chain), call, nth, op.output)
        for fetch in fetches:
            copies = (value.detach().clone(),)
            fetch.take(CopiedCall(op, call, nth, None, (), {}, copies, {}, (label,)))
        return bool(fetches)

    def deliver(self, find: Callable[[Tensor], TensorRecord | None], call: int) -> None:
        """Give the wanted outputs of modules to their fetches, as soon as their labels are known.

        Args:
            find: gives the record of a tensor; None if it wasn't read from the tape yet.
            call: index of the forward call.
        """
        if self.wanted is None:
            return
        for returned, label in self.wanted.settle(find):
            op = returned.frame.visits_out(returned.index).ops[0]
            copies = (returned.copied,)
            returned.fetch.take(CopiedCall(op, call, returned.nth, None, (), {}, copies, {}, (label,)))
