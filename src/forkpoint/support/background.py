"""Work in other threads while a model makes its first pass, most of which is no Python."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

_INTERVAL = 1e-4
"""Seconds after which a thread has to let another have the interpreter. Python's own, 50 times as long, is what each op of
a model would wait for that has been computed outside of the interpreter and returns to it."""


class _SwitchInterval:
    """Python's own, shorter while threads of ours are at work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._before = 0.0

    def begin(self) -> None:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, _INTERVAL))

    def end(self) -> None:
        with self._lock:
            self._threads -= 1
            if not self._threads:
                sys.setswitchinterval(self._before)


_switch_interval = _SwitchInterval()


@contextmanager
def at_work() -> Generator[None]:
    """Let other threads have the interpreter sooner than usual while this one works."""
    _switch_interval.begin()
    try:
        yield
    finally:
        _switch_interval.end()


@contextmanager
def importing(name: str) -> Generator[None]:
    """Import a module meanwhile. An error is left to whoever imports it next."""

    def load() -> None:
        with at_work(), contextlib.suppress(Exception):
            importlib.import_module(name)

    if name in sys.modules:
        yield
        return
    thread = threading.Thread(target=load, name=f"import {name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
