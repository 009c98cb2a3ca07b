"""Where calls are caught: a key of torch's dispatcher that no backend uses, switched on for one thread at a time.

A kernel registered for that key is asked before any other, wherever the call comes from: a module, a function called by
hand, TorchScript, C++. Ops without such a kernel fall through at no cost, and threads that have not switched the key on
never see it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import _C

_KEY = "TESTING_ONLY_GenericMode"
KEY: Any = _C._dispatch_key_parse(_KEY)
_included = _C._dispatch_tls_is_dispatch_key_included
set_caught = _C._dispatch_tls_set_dispatch_key_included

Stock: TypeAlias = Callable[..., Any]
Kernel: TypeAlias = Callable[..., Any]
"""What is called in place of an operator of `aten`: with torch's own as its first argument, then the call's.

It may return NotImplemented, and torch's own is called."""

_conditional: dict[str, Callable[[str], Kernel | None]] = {}
_kernels: dict[str, Kernel] = {}
_libraries: list[torch.library.Library] = []
"""Kept, since torch takes a library's kernels back once it is gone."""
_registered: dict[Stock, Callable[..., Any]] = {}
_lock = threading.Lock()


class _DispatchState(threading.local):
    def __init__(self) -> None:
        self.passes = False


_thread = _DispatchState()


def is_active() -> bool:
    """Whether calls of this thread are caught."""
    return _included(KEY)


def is_models_own() -> bool:
    """Whether a call of this thread is the model's: one that is caught, or that what catches it lets through."""
    return _included(KEY) or _thread.passes


@contextmanager
def caught() -> Generator[None]:
    """Calls of this thread are caught within."""
    _register()
    with _switched(True):
        yield


@contextmanager
def plain() -> Generator[None]:
    """Calls of this thread are torch's own within."""
    passes, _thread.passes = _thread.passes, False
    try:
        with _switched(False):
            yield
    finally:
        _thread.passes = passes


@contextmanager
def _switched(on: bool) -> Generator[None]:
    before = _included(KEY)
    set_caught(KEY, on)
    try:
        yield
    finally:
        set_caught(KEY, before)


def kernel(name: str) -> Callable[[Kernel], Kernel]:
    """Registers a kernel for an operator of `aten`. What it calls itself is torch's own."""

    def register(function: Kernel) -> Kernel:
        _kernels[name] = function
        return function

    return register


def conditional(*names: str) -> Callable[[Callable[[str], Kernel | None]], Callable[[str], Kernel | None]]:
    """Registers what makes the kernel for an operator, or says that it needs none; asked at the first block."""

    def register(maker: Callable[[str], Kernel | None]) -> Callable[[str], Kernel | None]:
        _conditional.update(dict.fromkeys(names, maker))
        return maker

    return register


def overload(name: str) -> Stock:
    """An operator of `aten` by its name.

    >>> overload("mm"), overload("mean.dim")
    (<OpOverload(op='aten.mm', overload='default')>, <OpOverload(op='aten.mean', overload='dim')>)
    """
    packet, _, which = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), which or "default")


def own(stock: Stock) -> Callable[..., Any] | None:
    """What is called in place of an operator, or None."""
    return _registered.get(stock)


def _outermost(name: str, function: Kernel) -> Kernel:
    stock = overload(name)

    @functools.wraps(function)
    def entered(*args: Any, **kwargs: Any) -> Any:
        set_caught(KEY, False)
        try:
            result = function(stock, *args, **kwargs)
            return _passed(stock, args, kwargs) if result is NotImplemented else result
        finally:
            set_caught(KEY, True)

    return entered


def _passed(stock: Stock, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _thread.passes = True
    try:
        return stock(*args, **kwargs)
    finally:
        _thread.passes = False


def _register() -> None:
    with _lock:
        if _libraries:
            return
        kernels = dict(_kernels)
        for name, maker in _conditional.items():
            needed = maker(name)
            if needed is not None:
                kernels[name] = needed
        everything = torch.library.Library("_", "IMPL", _KEY)
        everything.fallback(torch.library.fallthrough_kernel, _KEY)
        aten = torch.library.Library("aten", "IMPL", _KEY)
        for name, function in kernels.items():
            _registered[overload(name)] = made = _outermost(name, function)
            aten.impl(name, made)
        _libraries.extend((everything, aten))
