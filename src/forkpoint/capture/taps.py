"""The taps: a function mode that sees every torch function, and a wrapper that sees every module call.

Both are in place only while a forward call runs, on the thread that runs it, and are taken off
again whatever happens. Where a tap would change the bits of what it watches (modules with a fused
fast path that torch gives up under a mode, compiled modules) it is taken off for that module,
which is then recorded by its inputs and outputs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from forkpoint.capture.functions import resolve
from forkpoint.capture.recorder import Fetch, Recorder, Taken
from forkpoint.capture.rules import tensors_in
from forkpoint.capture.sites import Place, place_of


class Tap(TorchFunctionMode):
    """Hands every torch function that the model's own code calls to a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = resolve(func)
        if function.silent:
            return func(*args, **kwargs) if kwargs else func(*args)
        if function.inner is not None:
            with self:
                return function.inner(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        place = place_of(sys._getframe(1))
        recorder = self.recorder
        if recorder.passive and not _other_modes():
            recorder.before(function, kwargs)
            result = func(*args, **kwargs)
            recorder.record(function, func, place, args, kwargs, result)
            return result
        with _unwatched():
            fetches = recorder.fetching(function, place)
            recorder.before(function, kwargs)
            kept = _keep(recorder, args, kwargs) if fetches else None
        result = func(*args, **kwargs)
        with _unwatched():
            if recorder.watcher is not None:
                result = recorder.edit(function, func, place, args, kwargs, result)
            recorded = recorder.record(function, func, place, args, kwargs, result)
            if kept is not None and recorded is not None:
                _deliver(recorder, func, fetches, kept, recorded)
        return result


_unwatched = torch._C.DisableTorchFunction
"""What the recorder does with tensors is no op of the model, and no other mode may see it either."""
_other_modes: Callable[[], int] = torch._C._len_torch_function_stack
"""How many modes are active while this one, which torch takes off the stack meanwhile, handles a call."""

Kept = tuple[tuple[Any, ...], dict[str, Any], dict[int, Any], dict[int, str]]


def _keep(recorder: Recorder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Kept:
    """Copies of what goes into a call, before it can change it; the model's weights by reference."""
    labels: dict[int, Any] = {}
    owned: dict[int, str] = {}
    copies: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in copies:
                name = recorder.owned.get(id(value))
                copied = value.detach() if name is not None else _clone(value)
                copies[id(value)] = copied
                labels[id(copied)] = recorder.label_of(value)
                if name is not None:
                    owned[id(copied)] = name
            return copies[id(value)]
        if type(value) in (tuple, list, torch.Size):
            return type(value)(copy(item) for item in value)
        if type(value) is dict:
            return {key: copy(item) for key, item in value.items()}
        return value

    return copy(args), copy(kwargs), labels, owned


def _clone(value: Tensor) -> Tensor:
    """A copy with the same strides, where the tensor has its elements to itself."""
    value = value.detach()
    if value.layout != torch.strided or value.is_contiguous():
        return value.clone()
    if any(stride == 0 for stride in value.stride()):
        size = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True) if n)
        flat = value.as_strided((size,), (1,)).clone()
        return flat.as_strided(value.shape, value.stride(), 0)
    return value.clone(memory_format=torch.preserve_format)


def _deliver(recorder: Recorder, func: Any, fetches: list[Fetch], kept: Kept, recorded: Any) -> None:
    op, nth, outputs, labels = recorded
    args, kwargs, input_labels, owned = kept
    copies = tuple(_clone(recorder.true_value(output)) for output in outputs)
    taken = Taken(op, recorder.call, nth, func, args, kwargs, copies, input_labels, tuple(labels), owned)
    for fetch in fetches:
        fetch.take(taken)


class Observation:
    """An observer that traces a run: `run.execute(Observation(recorder))`.

    Args:
        recorder: what records.
        functions: False to watch modules only.
        inside: look into modules whose bits that changes, too.
    """

    def __init__(self, recorder: Recorder, *, functions: bool = True, inside: bool = False) -> None:
        self.recorder = recorder
        self.functions = functions
        self.inside = inside
        self.opaque: list[str] = []

    def before_call(self, index: int, inputs: Mapping[str, Any]) -> AbstractContextManager[Any]:
        with _unwatched():
            self.recorder.begin_call(index, inputs)
        return self._watch()

    def after_call(self, index: int, output: Any) -> None:  # noqa: ARG002 - the interface of observers
        return None

    @contextmanager
    def _watch(self) -> Generator[None]:
        tap = Tap(self.recorder)
        original = nn.Module.__call__
        thread = threading.get_ident()
        recorder = self.recorder

        def traced(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            with _unwatched():
                recorder.enter(module, args, kwargs)
            failed = True
            result: Any = None
            try:
                if self.functions and not self.inside and is_opaque(module):
                    result = self._opaque(tap, original, module, args, kwargs)
                else:
                    result = original(module, *args, **kwargs)
                failed = False
            finally:
                with _unwatched():
                    recorder.leave(result, failed)
            return result

        depth = len(recorder.stack)
        nn.Module.__call__ = traced  # type: ignore[method-assign]
        try:
            if self.functions:
                with tap:
                    yield
            else:
                yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]
            del recorder.stack[depth:]

    def _opaque(
        self,
        tap: Tap,
        original: Any,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module with the taps off."""
        path = self.recorder.stack[-1].path
        if path not in self.opaque:
            self.opaque.append(path)
        traced = nn.Module.__call__
        nn.Module.__call__ = original  # type: ignore[method-assign]
        try:
            with _mode_off(tap):
                return original(module, *args, **kwargs)
        finally:
            nn.Module.__call__ = traced  # type: ignore[method-assign]


@contextmanager
def _mode_off(tap: Tap) -> Generator[None]:
    """Take the tap off the stack of modes, those of the model's own above it staying where they are."""
    from torch.overrides import _pop_mode, _push_mode

    above: list[Any] = []
    mode = _pop_mode()
    while mode is not tap:
        above.append(mode)
        mode = _pop_mode()
    for other in reversed(above):
        _push_mode(other)
    try:
        yield
    finally:
        for _ in above:
            _pop_mode()
        _push_mode(tap)
        for other in reversed(above):
            _push_mode(other)


def is_opaque(module: nn.Module) -> bool:
    """Whether a function mode would change how a module computes.

    torch's Transformer modules give up their fused fast path under any mode; compiled modules would
    have the mode itself traced.
    """
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    if not _may_be_opaque(type(module)):
        return False
    if not isinstance(module, _FUSED):
        return True
    if module.training or not torch.backends.mha.get_fastpath_enabled():
        return False
    if isinstance(module, nn.MultiheadAttention):
        return module.batch_first
    if isinstance(module, nn.TransformerEncoderLayer):
        return module.self_attn.batch_first
    layers = list(module.layers)
    return bool(layers) and isinstance(layers[0], nn.TransformerEncoderLayer) and is_opaque(layers[0])


_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


@cache
def _may_be_opaque(kind: type[nn.Module]) -> bool:
    compiled = kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo")
    return compiled or issubclass(kind, _FUSED)


__all__ = ["Observation", "Place", "Tap", "is_opaque", "tensors_in"]
