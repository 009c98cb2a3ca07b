"""Whatever ends a comparison, Ctrl-C at any moment included, nothing stays changed; and one is made at a time.

What changes something for a while says beforehand how to undo it (`undone`). Python may raise KeyboardInterrupt between
any two steps, before a `finally` is entered or inside one, so that some of it may be left. The outermost call that is
`restored` does it then: it works from what it saw at its beginning and from what is still to be undone, as often as need
be, and lets no interrupt in before it is done.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from itertools import takewhile
from types import FrameType, TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as _pop_dispatch
from torch.utils._python_dispatch import _push_mode as _push_dispatch

FROZEN_AT_START = 1 << 10
"""Fewer frozen objects than that are the interpreter's own: whenever Python 3.12 looks for garbage, it freezes its 375 immortal ones."""

Undo = Callable[[], object]
"""Undoes something. It may be called again, and before anything was done."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Left(threading.local):
    """What this thread has still to undo, the first thing done first."""

    def __init__(self) -> None:
        self.undos: list[undone] = []


_left = _Left()


class undone:  # noqa: N801 - used as a function is
    """Within the block something is changed that is undone after it: `with undone(undo): ...`.

    The block makes the change: an interrupt right before it then finds nothing to undo, and right after it, how to.
    """

    def __init__(self, undo: Undo) -> None:
        self.undo = undo

    def __enter__(self) -> None:
        _left.undos.append(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self not in _left.undos:
            return  # that was done, and much may have happened since
        try:
            self.undo()
        except Exception:
            with suppress(Exception):
                self.undo()  # what stopped half-way, for want of memory say, may go on
            self._forget()
            raise
        self._forget()

    def _forget(self) -> None:
        if self in _left.undos:
            _left.undos.remove(self)


class _Deferred:
    """Within the block Ctrl-C waits: it is heard right after it. Only the main thread ever hears it."""

    def __init__(self) -> None:
        self._handler: Any = None
        self._heard = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.getsignal(signal.SIGINT)
            if self._handler is not None:  # else it is not Python's
                signal.signal(signal.SIGINT, self._hear)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            if self._heard:
                signal.raise_signal(signal.SIGINT)

    def _hear(self, _: int, __: FrameType | None) -> None:
        self._heard = True


class _Before:
    """The state of the interpreter and of torch that a comparison changes for a while, as it was before."""

    def __init__(self) -> None:
        self._done = False
        self._left = len(_left.undos)
        self._modes = _get_current_function_mode_stack()
        self._dispatch = _get_current_dispatch_mode_stack()
        self._grad, self._dtype = torch.is_grad_enabled(), torch.get_default_dtype()
        self._collects, self._frozen = gc.isenabled(), gc.get_freeze_count()
        self._filters = warnings.filters
        self._handler = signal.getsignal(signal.SIGINT)

    def restore(self) -> None:
        """Put all back; nothing happens where that was done."""
        if self._done or (sys.exception() is None and self._is_as_before()):
            self._done = True
            self._hear()
            return
        with _Deferred():
            _close_suspended(sys.exception())
            while len(_left.undos) > self._left:
                with suppress(Exception):
                    _left.undos[-1].undo()
                del _left.undos[-1]
            _restack(self._modes, _get_current_function_mode_stack, _pop_mode, _push_mode)
            _restack(self._dispatch, _get_current_dispatch_mode_stack, _pop_dispatch, _push_dispatch)
            with torch._C.DisableTorchFunction():  # the modes that are left are other people's
                torch._C._set_grad_enabled(self._grad)
                torch._C._set_default_dtype(self._dtype)
            self._restore_python()
            self._done = True
        self._hear()

    def _is_as_before(self) -> bool:
        """Whether nothing is left to be put back, as after most calls that end well."""
        return (
            len(_left.undos) <= self._left
            and _are_the_same(_get_current_function_mode_stack(), self._modes)
            and _are_the_same(_get_current_dispatch_mode_stack(), self._dispatch)
            and torch.is_grad_enabled() is self._grad
            and torch.get_default_dtype() is self._dtype
            and gc.isenabled() is self._collects
            and not self._frozen < FROZEN_AT_START <= gc.get_freeze_count()
            and warnings.filters is self._filters
        )

    def _hear(self) -> None:
        """Have Ctrl-C heard as before, where an error in the midst of deferring it left it deferred."""
        deferring = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        outer = getattr(self._handler, "__self__", None)
        if isinstance(deferring, _Deferred) and deferring is not outer:
            with suppress(ValueError):  # another thread's than the main one
                signal.signal(signal.SIGINT, self._handler)

    def _restore_python(self) -> None:
        if self._frozen < FROZEN_AT_START <= gc.get_freeze_count():
            gc.unfreeze()
        (gc.enable if self._collects else gc.disable)()
        if warnings.filters is not self._filters:
            warnings.filters = self._filters
            changed: Callable[[], object] | None = getattr(warnings, "_filters_mutated", None)
            if changed is not None:
                changed()


def _close_suspended(error: BaseException | None) -> None:
    """Let go of the context managers that an interrupt came upon at their beginning or their end.

    Those that are generators would do the rest of their work whenever somebody lets go of the error, and those of torch in
    C++ would put back then what they found.
    """
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if code.co_name in ("__enter__", "__exit__") or code.co_filename == contextlib.__file__:
                with suppress(RuntimeError):  # one that still runs
                    trace.tb_frame.clear()
            trace = trace.tb_next
        error = error.__context__


@contextmanager
def on_stack(mode: Any) -> Generator[None]:
    """Have torch ask a function mode within the block."""
    with undone(partial(_take_off, mode)):
        _push_mode(mode)
        yield


def _take_off(mode: Any) -> None:
    """Take a mode off torch's stack, if it is there, whatever lies on it."""
    stack = _get_current_function_mode_stack()
    if any(other is mode for other in stack):
        _restack(
            [other for other in stack if other is not mode],
            _get_current_function_mode_stack,
            _pop_mode,
            _push_mode,
        )


def _are_the_same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _restack(
    wanted: Sequence[Any],
    current: Callable[[], Sequence[Any]],
    pop: Callable[[], Any],
    push: Callable[[Any], Any],
) -> None:
    """Make a stack of modes what it was."""
    stack = current()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(stack, wanted, strict=False)))
    for _ in stack[same:]:
        pop()
    for mode in wanted[same:]:
        push(mode)


class _Aside(threading.local):
    """The function modes of whoever called, while forkpoint works by itself."""

    def __init__(self) -> None:
        self.modes: list[Any] = []


_aside = _Aside()


def by_itself(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have what a function does seen by none of its caller's function modes, but for what it does `as_called`.

    They may count calls, or change them: `torch.device` and `torch.set_default_device` are such modes, which say where
    tensors are made, and that may be where tensors have no values.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        modes = _get_current_function_mode_stack()
        if not modes:
            return function(*args, **kwargs)
        with _stack_of([], aside=modes):
            return function(*args, **kwargs)

    return call


@contextmanager
def as_called() -> Generator[None]:
    """Within the block the function modes of forkpoint's caller see what is done, as if it were not there."""
    modes = _aside.modes
    if not modes:
        yield
        return
    with _stack_of([*modes, *_get_current_function_mode_stack()], aside=[]):
        yield


@contextmanager
def _stack_of(modes: list[Any], *, aside: list[Any]) -> Generator[None]:
    """Have other function modes on torch's stack, and others beside it."""
    before = _get_current_function_mode_stack(), _aside.modes

    def put_back() -> None:
        _restack(before[0], _get_current_function_mode_stack, _pop_mode, _push_mode)
        _aside.modes = before[1]

    with undone(put_back):
        _aside.modes = aside
        _restack(modes, _get_current_function_mode_stack, _pop_mode, _push_mode)
        yield


def restored(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have nothing of what a function changes for a while left when it is over."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        before = _Before()
        try:
            return function(*args, **kwargs)
        finally:
            try:  # an interrupt that comes before the first one defers it finds the second
                before.restore()
            finally:
                before.restore()

    return call


# ---------------------------------------------------------------------- one at a time

_turn = [threading.RLock()]
_depth = [0]
"""How many functions and blocks of this kind the thread whose turn it is is in, one within another."""


def alone(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Have a function wait while another thread of the process is in one of this kind.

    Random generators, the models themselves and what stands in for the calls of their modules are the process's. A call
    within another one, in the same thread, does not wait.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with _turn[0]:
            before = _depth[0]
            try:
                _depth[0] = before + 1
                return function(*args, **kwargs)
            finally:
                _depth[0] = before

    return call


@contextmanager
def my_turn() -> Generator[int]:
    """Within the block no other thread is in a function that is `alone`; gives the `depth` of this one."""
    with _turn[0]:
        before = _depth[0]
        try:
            _depth[0] = before + 1
            yield before + 1
        finally:
            _depth[0] = before


def depth() -> int:
    """How many functions that are `alone`, and blocks that are `my_turn`, are at work, one within another; for whoever is in one."""
    return _depth[0]


def _forget_other_threads() -> None:
    """A forked process has the thread that forked it, and no other."""
    _turn[0] = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
