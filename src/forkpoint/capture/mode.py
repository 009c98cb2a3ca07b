"""The function mode that puts every torch function which the model's own code calls on a tape.

It runs once for every call of a run, so that it is also written in C (`native/tap.c`), which is taken where it was
compiled. What it does is said here; both do the same.

A call goes one of four ways:

1. It makes no tensor of the model's own (`silent`: a shape, a dtype). It is made, and that is all; but before a tensor is
   given another storage (`rewrites`), all that waits is digested.
2. It can't wait: it writes to an argument (`at_once`, `out=`, `inplace=`), its values are asked for (`eager`), or nothing of
   this run may wait (`deferred` is False). The tape makes it and records it at once.
3. Within a transform of functorch, or where no tensor comes out, it is made and leaves nothing.
4. Any other is made and leaves an entry, which the reader reads later. Lists and dicts among its arguments are copied.

What is known of a function is its `Function` (`functions`), which `resolved` has and `resolve` makes; `may_view` is True
there for one whose result always shares memory with an argument, and so keeps none of its own alive. Where it was called is a
`CallStack` (`sites`): `direct` knows it by the caller's instruction if no function of torch lies between, `place_of` walks up
the frames. That a module is entered or left stands on the tape as well (`Entering`, `Leaving`, of `marks`): not the mode but
the wrapper of module calls (`taps`) puts it there.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import _getframe
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkpoint.capture.functions import Function, resolve, resolved
from forkpoint.capture.marks import LEAVING, Entering, Leaving, entering
from forkpoint.capture.sites import NOWHERE, CallStack, direct, kind_of, place_of
from forkpoint.native import compiled
from forkpoint.native.choice import choose

LASTING = frozenset(
    {
        Tensor,
        nn.Parameter,
        bool,
        int,
        float,
        str,
        type(None),
        type(...),
        slice,
        torch.dtype,
        torch.device,
        torch.Size,
    }
)
"""Classes of arguments that the model can't change after the call; a tensor's writes are counted by torch."""

transforms: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack  # pyright: ignore[reportAttributeAccessIssue]
"""The transform of functorch (vmap, grad) that is active; None without one: then the tensors are the model's own."""

transparent: dict[type, bool] = {}
"""By the class of a module, False where a function mode may change how one computes, so that `taps.is_opaque` has to look at
the module itself. It is here for the C, which asks it first."""
Entry = tuple[Function | Entering | Leaving, CallStack, tuple[Any, ...], dict[str, Any] | None, Any]
"""One call on the tape: (what, place, args, kwargs, made).

`what` is the function, or that a module is entered or left; `place` where it was called. `made` is the function's output, a
tensor or a tuple of them, or the module that is entered. When a module is left, `args` are the tensors that come out.
"""


class PythonReel:
    """The bare columns of the tape, which the tap fills; base of the ledger.

    Attributes:
        deferred: whether entries may wait to be read.
        eager: bits of `Function.flags`: functions with one of them are recorded when they are called.
        fresh: whether the last value that was recorded may still change: what is written to it before the next call belongs
            to it.
        whats, places, args, kwargs, made: the fields of the entries that were not read yet, a list for each.
        befores: one number for each function among them: the version (how often it was written to in place) that `last` had
            when it was called. So a write right after a function has returned counts as a part of its value, and a later
            one does not.
        last: the last output of the last function.
        n_bytes: of the values that are kept alive: on the tape, or waiting for a digest. Views have no bytes of their own.
        room: the most that `n_bytes` may be before values are digested and let go of.
        entry_bytes: counted for an entry besides its values.
    """

    last: Tensor
    n_bytes: int
    room: int
    entry_bytes: int
    deferred: bool
    eager: int
    fresh: bool

    def __init__(self) -> None:
        self.whats: list[Function | Entering | Leaving] = []
        self.places: list[CallStack] = []
        self.args: list[tuple[Any, ...]] = []
        self.kwargs: list[dict[str, Any] | None] = []
        self.made: list[Any] = []
        self.befores: list[int] = []

    def add_entry(
        self,
        what: Function | Entering | Leaving,
        place: CallStack,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        made: Any,
    ) -> None:
        """Put an entry on the tape."""
        self.whats.append(what)
        self.places.append(place)
        self.args.append(args)
        self.kwargs.append(kwargs)
        self.made.append(made)

    if TYPE_CHECKING:  # the tape does these

        def call_at_once(
            self,
            tap: Tap,
            function: Function,
            place: CallStack,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
        ) -> Any:
            """Make a call and record it at once; returns what it returns."""
            ...

        def outputs_of(self, result: Any) -> tuple[Tensor, ...]:
            """The tensors in what a function returned, where that is no plain tensor."""
            ...

        def settle(self) -> None:
            """Another call begins: the last recorded value is complete."""
            ...

        def make_room(self) -> None:
            """Digest values and let go of them, since too many are kept alive."""
            ...

        def catch_up(self) -> None:
            """Read the tape and digest all values, before a tensor is given another storage."""
            ...


class PythonTap(TorchFunctionMode):
    """The function mode: makes each call, and leaves an entry on the tape, or has the call recorded at once.

    Args:
        tape: gets the entries.
    """

    def __init__(self, tape: Reel) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        try:
            function = resolved.get(func) or resolve(func)
        except TypeError:  # one that can't be hashed
            function = resolve(func)
        tape = self.tape
        if function.silent:
            if function.rewrites:
                tape.catch_up()
            return func(*args, **kwargs) if kwargs else func(*args)
        frame = _getframe(1)
        place = direct.get(id(frame.f_code) + frame.f_lasti) or place_of(frame)
        writing = function.at_once or (kwargs and writes(function, kwargs))
        if not tape.deferred or writing or function.flags & tape.eager:
            return tape.call_at_once(self, function, place, args, kwargs or {})
        if tape.fresh:
            tape.settle()
        if tape.n_bytes > tape.room:
            tape.make_room()
        try:
            version = tape.last._version
        except RuntimeError:  # inference mode keeps no count
            version = -1
        if kwargs:
            result = func(*args, **kwargs)
            if not LASTING.issuperset(map(type, kwargs.values())):
                kwargs = frozen(kwargs)
        else:
            kwargs = None
            result = func(*args)
        if transforms() is not None:
            return result  # inside vmap or grad: these tensors are not the model's own
        made: Any = result
        if type(result) is Tensor:
            tape.last = result
        else:
            made = tape.outputs_of(result)
            if not made:
                return result
        tape.n_bytes += tape.entry_bytes
        if function.may_view is not True:
            tape.n_bytes += bytes_of(made)
        if function.takes_lists and not LASTING.issuperset(map(type, args)):
            args = frozen(args)
        tape.add_entry(function, place, args, kwargs, made)
        tape.befores.append(version)
        return result


def writes(function: Function, kwargs: dict[str, Any]) -> bool:
    """Whether a call changes one of its arguments."""
    return function.writes or (
        bool(kwargs) and (kwargs.get("out") is not None or bool(kwargs.get("inplace")))
    )


def outputs_in(made: Any) -> tuple[Tensor, ...]:
    """The outputs in the field `made` of an entry, as a tuple."""
    return made if type(made) is tuple else (made,)  # pyright: ignore[reportUnknownVariableType]


def bytes_of(made: Any) -> int:
    """The bytes of a function's outputs; 0 for sparse tensors, which are not digested."""
    return sum(value.nbytes for value in outputs_in(made) if value.layout is torch.strided)


def frozen(value: Any) -> Any:
    """Arguments with copies of their lists and dicts, which the model may change before the tape is read."""
    kind = type(value)
    if isinstance(value, list):
        return [frozen(item) for item in value]
    if kind is dict:
        return {key: frozen(item) for key, item in value.items()}
    if kind is tuple and not LASTING.issuperset(map(type, value)):
        return tuple(map(frozen, value))
    return value


if TYPE_CHECKING or compiled is None:
    Reel = PythonReel
    Tap = PythonTap
else:
    compiled.connect_taps(
        resolved, resolve, kind_of, CallStack.after, NOWHERE, LASTING, Tensor, transforms, transparent, entering, LEAVING
    )  # fmt: skip
    Reel = choose(PythonReel, "Reel")

    class _CompiledTap(compiled.Tap, TorchFunctionMode):
        """The same, in C."""

    _CompiledTap.__name__ = _CompiledTap.__qualname__ = "Tap"
    Tap = choose(PythonTap, _CompiledTap)
    del _CompiledTap
