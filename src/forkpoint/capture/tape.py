"""The tape: what is done for each call of a torch function and of a module, thousands of times a run.

While the model runs, a call leaves no more than an entry on the tape (`Tap`, `Tape.enter`, `Tape.leave`). The tape is
read (`reader`), and what stands on it becomes rows of the trace, when the values on it need much memory, before something
writes to a tensor, and when the run ends.

`add_entry` puts an entry on it (`mode`, or C where it was compiled). The values of entries are kept alive until their digests
are taken: `n_bytes` counts them, `flush` takes the digests of those that were read (`pending`, `ledger`). Within a transform of
functorch (`transforms`), where values are not what they seem, nothing is read. A function written in Python that is made of
others has a copy whose calls are seen (`Function.inner`). After a call that could not wait, the history does not go on where it
was (`history.broken`): what comes next is looked up anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.capture.digest.batch import Batch
from forkpoint.capture.functions import Function
from forkpoint.capture.ledger import NOTHING
from forkpoint.capture.listener import Listener
from forkpoint.capture.marks import LEAVING, entering
from forkpoint.capture.mode import Tap, transforms
from forkpoint.capture.reader import NO_KEYWORDS, Reader
from forkpoint.capture.resolver import Resolver
from forkpoint.capture.rules import tensors_in
from forkpoint.capture.sites import NOWHERE, CallStack
from forkpoint.runs.returned import fields_of

PENDING_BYTES = {"cpu": 1 << 25, "other": 13 << 28}
"""Values kept alive for a digest in one go, by device; what is always a view is not counted. The more, the fewer launches:
at 4,000 tokens of a model of 7B parameters that is less than 1 GB over what a run without tracing takes."""
MOST_OF_FREE = 0.25
"""How much of the memory that a GPU has left they may take."""
ENTRY_BYTES = 1 << 11
"""What an entry on the tape needs, besides its values."""

_unwatched = torch._C.DisableTorchFunction
"""What the tape does with tensors is no op of the model, and no mode may see it."""
_other_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many modes are active."""


class Tape(Reader):
    """What passes by is put on it in passing, and read later.

    Args:
        listener, resolver, batch, digests: as for a ledger.
        passive: whether it only looks on: nobody wants copies of values, nor to change them, but for those of `eager`
            functions and of modules that are looked into.
        eager: by their flags, functions that are recorded at once.

    Attributes:
        deferred: whether entries may wait to be read.
        last: the last output of the last function.
        n_bytes: of the values that are kept alive, see `mode.PythonReel`.
        room: how many there may be.
        enough: says whether nobody wants to know more of the run.
        over: it did: the rest of the run is neither recorded nor looked at.
    """

    enough: Callable[[], bool] | None = None
    over = False

    def __init__(
        self,
        listener: Listener,
        resolver: Resolver,
        batch: Batch,
        digests: bool,
        passive: bool,
        eager: int = 0,
    ) -> None:
        super().__init__(listener, resolver, batch, digests, passive)
        self.eager = eager
        self.last = NOTHING
        self.entry_bytes = ENTRY_BYTES
        self.room: int = PENDING_BYTES["cpu"]

    def watch(self, functions: bool) -> None:
        """From here on the call is watched.

        Args:
            functions: whether single functions are seen.
        """
        self.deferred = self.passive and functions and not _other_modes()
        if not self.deferred:
            self.history = None

    def ask(self) -> None:
        """Something was kept or seen: ask whether that is enough."""
        self.over = self.over or (self.enough is not None and self.enough())

    # ------------------------------------------------------------------ entries

    def call_at_once(
        self,
        tap: Tap,
        function: Function,
        place: CallStack,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Make a call that can't wait to be read: it writes, or somebody wants to keep or to change what passes by."""
        if self.over:
            return function.func(*args, **kwargs)
        if function.inner is not None:
            with tap:
                return function.inner(*args, **kwargs)
        if self.deferred and transforms() is not None:
            return function.func(*args, **kwargs)  # it is not recorded, and no digest can be taken here
        with _unwatched():
            self.read()
            if self.pending_bytes > self.room:
                self.make_room()
        if self.history is not None:
            self.history.broken = True
        return self.listener.watched(function, place, args, kwargs)

    def catch_up(self) -> None:
        """Read and digest all that there is, before a tensor becomes another."""
        if transforms() is not None:
            return  # where no digest can be taken
        with _unwatched():
            self.read()
            self.flush()

    def outputs_of(self, result: Any) -> tuple[Tensor, ...]:
        """The tensors in what a function returned, if it is not simply one."""
        if isinstance(result, Tensor):
            outputs: tuple[Tensor, ...] = (result,)
        else:
            outputs = tuple(tensors_in((result,)))
        if outputs and self.deferred:
            self.last = outputs[-1]
        return outputs

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], at_once: bool) -> None:
        """A module is called.

        Args:
            module: the module.
            args, kwargs: what goes in.
            at_once: whether that can't wait to be read, as functions follow that are not seen.
        """
        if transforms() is not None:
            args, kwargs = (), NO_KEYWORDS
        if self.n_bytes > self.room:
            self.make_room()
        at_once = at_once or not self.deferred
        if at_once:
            with _unwatched():
                self.read()
        self.add_entry(entering(type(module)), NOWHERE, args, kwargs or None, module)
        if at_once:
            with _unwatched():
                self.read()

    def leave(self, result: Any, failed: bool, at_once: bool) -> None:
        """A module returns."""
        outputs = () if failed or transforms() is not None else self.results_of(result)
        at_once = (at_once or not self.deferred) and not failed
        if at_once:
            with _unwatched():
                self.read()
        self.add_entry(LEAVING, NOWHERE, outputs, None, None)
        if at_once:
            with _unwatched():
                self.read()

    @staticmethod
    def results_of(result: Any) -> tuple[Tensor, ...]:
        """The tensors in what a module returned."""
        if type(result) is Tensor:
            return (result,)
        if is_dataclass(result) and not isinstance(result, (type, dict)):
            held = fields_of(result) or {}
            return tuple(tensors_in([held.get(field.name) for field in fields(result)], 2))
        return tuple(tensors_in(result, 2))

    # ------------------------------------------------------------------ memory

    def make_room(self) -> None:
        """Let go of values where too many are kept alive."""
        if transforms() is not None:
            return  # where no digest can be taken
        if self.room == PENDING_BYTES["cpu"]:
            self.room = _room_on(self.pending[-1].device if self.pending else self.last.device)
        if self.n_bytes > self.room:
            with _unwatched():
                self.read(whole=False)
                self.flush()

    def end(self) -> None:
        """The run is over: read what is left, and let go of all values."""
        self.read()
        self.flush()
        self.last = NOTHING
        self.last_read = (NOTHING, None)


# ---------------------------------------------------------------------- helpers


def _room_on(device: torch.device) -> int:
    """How many bytes of values may be kept alive on a device."""
    room = PENDING_BYTES.get(device.type, PENDING_BYTES["other"])
    if device.type != "cuda":
        return room
    return max(min(room, int(MOST_OF_FREE * _left_on(device))), PENDING_BYTES["cpu"])


def _left_on(device: torch.device) -> int:
    """How many bytes a GPU has left. It takes as long to ask as a layer to run, so it is asked once a second at most."""
    now = monotonic()
    asked, left = _left.get(device, (-math.inf, 0))
    if now - asked > _LASTS:
        free, _ = torch.cuda.mem_get_info(device)
        left = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        _left[device] = now, left
    return left


_LASTS = 1.0
"""Seconds for which what a GPU had left is taken to be what it has."""
_left: dict[torch.device, tuple[float, int]] = {}
"""When each was asked, and what it had."""
