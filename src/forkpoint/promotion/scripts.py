"""TorchScript, whose calls no function mode sees.

A scripted function still has the Python it was made from, which runs under the mode as the rest of the model
does. A scripted module, or anything traced, has not: there the operations are promoted one level below, where
the interpreter dispatches them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from forkpoint.promotion.mode import PromotionMode
from forkpoint.support.restoring import undone

_CALLABLES: tuple[Any, ...] = (torch._C.ScriptFunction, torch._C.ScriptMethod)


@contextlib.contextmanager
def promoted(mode: PromotionMode) -> Generator[None]:
    """Sends calls of scripted functions and methods, from this thread, through `mode`.

    The class is changed for the time, there being no hook: TorchScript calls go from C++ to C++.
    """
    thread = threading.get_ident()
    natives = [kind.__call__ for kind in _CALLABLES]

    def put_back() -> None:
        for kind, native in zip(_CALLABLES, natives, strict=True):
            kind.__call__ = native

    with undone(put_back):
        for kind, native in zip(_CALLABLES, natives, strict=True):
            kind.__call__ = _interception(mode, thread, native)
        yield


def _interception(mode: PromotionMode, thread: int, native: Callable[..., Any]) -> Callable[..., Any]:
    def call(script: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread or not mode.active:
            return native(script, *args, **kwargs)
        original = getattr(script, "_torchdynamo_inline", None)
        if original is not None:
            return original(*args, **kwargs)

        def interpret(*args: Any, **kwargs: Any) -> Any:
            return native(script, *args, **kwargs)

        interpret.__name__ = f"torch.jit {getattr(script, 'name', '')}".rstrip()
        # Without fusion: a fused kernel runs in the dtype that it was compiled for, and dispatches nothing.
        with (
            torch.jit.optimized_execution(should_optimize=False),
            ScriptPromotion(mode),
            torch._C.DisableTorchFunction(),
        ):
            return mode.compute(interpret, args, kwargs)

    return call


class ScriptPromotion(TorchDispatchMode):
    """Promotes the ATen operations that TorchScript's interpreter dispatches."""

    def __init__(self, mode: PromotionMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self._mode.dispatched(func, args, kwargs or {})
