"""The tape: the calls that wait to be read, and when they are read.

While the model runs, a call leaves no more than an entry on the tape (`Tap`, `Tape.enter`, `Tape.leave`). The entries are
read into rows of the trace (`reader`) at three times: when the values that they keep alive need much memory (`make_room`),
before something writes to a tensor (`call_at_once`), and when the run ends (`end`).

The values of entries are kept alive until their digests are taken: `n_bytes` counts them, `flush` takes the digests of those
that were read. Within a transform of functorch (`transforms`), where tensors don't hold the model's values, nothing is read. A
function written in Python that calls others has a copy whose calls are seen (`Function.inner`). After a call that could not
wait, the history doesn't go on where it was (`history.broken`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.capture.digest.batch import DigestBatch
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
"""How much of the memory that a GPU has left these values may take."""
ENTRY_BYTES = 1 << 11
"""Bytes that are counted for an entry besides its values."""

_unwatched = torch._C.DisableTorchFunction
"""What the tape does with tensors is no op of the model, and no mode may see it."""
_other_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many modes are active."""


class Tape(Reader):
    """One run's tape, with all that reads it: the tap and the wrapper of module calls write to it.

    Args:
        listener, resolver, batch, digests: as for a ledger.
        passive: whether the run is only observed: nobody wants copies of values or changes them, but for those of `eager`
            functions and of modules that are `wanted`.
        eager: bits of `Function.flags`: functions with one of them are recorded when they are called.

    Attributes:
        deferred, last, n_bytes, room: see `mode.PythonReel`.
        enough: see `Recorder`.
        over: whether `enough` said so: the rest of the run is not recorded.
    """

    enough: Callable[[], bool] | None = None
    over = False

    def __init__(
        self,
        listener: Listener,
        resolver: Resolver,
        batch: DigestBatch,
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
        """A forward call begins: decide whether its entries may wait.

        Args:
            functions: whether there is a tap that sees single functions.
        """
        self.deferred = self.passive and functions and not _other_modes()
        if not self.deferred:
            self.history = None

    def ask(self) -> None:
        """A value was copied or shown to the watcher: ask whether the rest of the run is still wanted."""
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
        """Make a call that can't wait: it writes, or a fetch or the watcher wants it. What waits is read first."""
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
        """Read the tape and digest all values, before a tensor is given another storage."""
        if transforms() is not None:
            return  # where no digest can be taken
        with _unwatched():
            self.read()
            self.flush()

    def outputs_of(self, result: Any) -> tuple[Tensor, ...]:
        """The tensors in what a function returned, where that is no plain tensor."""
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
            args, kwargs: its arguments.
            at_once: whether to read them at once, since functions that no tap sees may write to them.
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
        """A module returns.

        Args:
            result: what it returned.
            failed: whether it raised an error instead.
            at_once: as for `enter`.
        """
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
        """Read entries and take digests if the values that are kept alive need more than there is room for."""
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
    since, left = _left.get(device, (-math.inf, 0))
    if now - since > _LASTS:
        free, _ = torch.cuda.mem_get_info(device)
        left = free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        _left[device] = now, left
    return left


_LASTS = 1.0
"""Seconds for which an answer of `_left_on` is used again."""
_left: dict[torch.device, tuple[float, int]] = {}
"""(when the device was asked, how many bytes it had left)."""
