"""The taps: a function mode that sees every call of a torch function, and a wrapper that sees every call of a module.

Both are in place only while a forward call runs, on the thread that runs it, and are taken off again whatever happens. Where
the mode would change the bits of a module (one with a fused fast path that torch gives up under a mode, or a compiled one)
it is off while that module runs, and only the module's inputs and outputs are recorded. Such a module is called *opaque*.

Both taps write to the recorder's `tape`. An entry there is *deferred* where it may wait to be read into the trace; else it is
read *at once*. `tape.stack` are the modules at work, the innermost last. `tape.over` says that whoever asked for this pass has
seen enough: from there on the model runs as if it were not watched.

What stands in for a module's call is the *gate*. There are two, which do the same: `traced` below, and `compiled.Gate` in C,
which hands to `traced` what is out of the ordinary. A second pass puts a third function around it (`_looking_into`).

Whatever this file does with tensors itself stands under `DisableTorchFunction`: no mode, the model's own included, may take
it for a call of the model.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from forkpoint.capture.calls import Caller, Makes
from forkpoint.capture.mode import Tap, transforms, transparent
from forkpoint.capture.recorder import Recorder
from forkpoint.capture.shortcuts import shortcuts_to
from forkpoint.capture.swaps import swaps_told_to
from forkpoint.capture.wanted import FetchTargets
from forkpoint.native import compiled
from forkpoint.promotion.uncompiled import Uncompiled
from forkpoint.support.restoring import on_stack


class Observation:
    """An observer that traces a run: `run.execute(Observation(recorder))`.

    Args:
        recorder: gets the calls.
        functions: False to see calls of modules only.
        inside: whether to see the functions of opaque modules, too, though that changes their bits.

    Attributes:
        opaque: paths of the opaque modules that were called, whose functions were not seen.
    """

    def __init__(self, recorder: Recorder, *, functions: bool = True, inside: bool = False) -> None:
        self.recorder = recorder
        self.functions = functions
        self.inside = inside
        self.opaque: list[str] = []
        self.uncompiled = False
        """Whether compiled functions ran as the Python that they were made from, so that their calls were seen."""

    def before_call(self, index: int, inputs: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """A forward call of the model is about to be made; the taps are in place within what this returns."""
        if self.recorder.tape.over:
            return nullcontext()
        with torch._C.DisableTorchFunction():
            self.recorder.begin_call(index, inputs)
        return self._watch()

    def after_call(self, index: int, output: Any) -> None:  # noqa: ARG002 - the interface of observers
        """A forward call has ended well."""
        self.recorder.end_call()

    def before_putting_back(self) -> None:
        """The model's state is about to be put back, which overwrites values that may still wait for their digests."""
        self.recorder.settle()

    @contextmanager
    def _watch(self) -> Generator[None]:
        """Within the block both taps are in place; at its end what is left on the tape is read."""
        tape = self.recorder.tape
        tap = Tap(tape)
        tape.watch(self.functions)  # decides `tape.deferred`
        caller = Caller()  # replaces `nn.Module.__call__`; `original` calls a module as before
        original = caller.original
        functions, inside, thread = self.functions, self.inside, threading.get_ident()

        def traced(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if tape.over or threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            opaque = functions and not inside and is_opaque(module)
            at_once = opaque or not functions  # unseen functions may write to the arguments
            tape.enter(module, args, kwargs, at_once)
            try:
                if opaque:
                    result = self._opaque(tap, caller, eager, module, args, kwargs)
                else:
                    result = original(module, *args, **kwargs)
            except BaseException:
                tape.leave(None, True, at_once)  # True: it failed
                raise
            if not tape.over:  # it may have become so within the call
                tape.leave(result, False, at_once)
            return result

        # What `torch.compile` made runs as the Python that it was made from: then the tap sees its functions. Where no
        # functions are to be seen, what is compiled already runs as it is, and nothing new is compiled.
        eager = Uncompiled(cached=not functions)
        depth = len(tape.stack)
        # The C knows the common case alone: functions are seen, but not those of opaque modules.
        in_c = compiled is not None and functions and not inside
        gate = compiled.Gate(tape, original, traced, is_opaque, caller.is_torchs) if in_c else traced
        if self.recorder.wanted is not None:
            gate = self._looking_into(self.recorder.wanted, gate)
        # By a shortcut some functions call the tap themselves, without torch's dispatch to modes.
        short = shortcuts_to(tap) if in_c and tape.deferred else nullcontext()
        try:
            with (
                caller.replaced(gate),
                swaps_told_to(self.recorder),  # of tensors that trade contents (`torch.utils.swap_tensors`)
                eager.block(),
                on_stack(tap) if functions else nullcontext(),
                short,  # after the tap to which they lead
            ):
                yield
            with torch._C.DisableTorchFunction():
                tape.read()
        finally:
            self.uncompiled |= functions and eager.noticed
            tape.forget()  # after an error: what was not read, and the modules that were not left
            del tape.stack[depth:]
            with torch._C.DisableTorchFunction():
                self.recorder.give_back()  # to the caller's tensors what they held before a watcher changed it

    def _looking_into(self, wanted: FetchTargets, gate: Makes) -> Makes:
        """A wrapper around `gate` for a second pass, which is to copy some values (`wanted` has the ids of the modules).

        Of a module that calls a wanted function (`wanted.inside`) each call is recorded at once, so that the value is copied
        before anything writes to it. The wanted outputs of a module (`wanted.outputs`) are copied as it returns.
        """
        recorder, tape, thread = self.recorder, self.recorder.tape, threading.get_ident()
        modules = wanted.inside | wanted.outputs.keys()

        def attentive(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            wants = id(module) in modules and threading.get_ident() == thread
            if not wants or transforms() is not None:  # nothing is kept inside vmap or grad, nor may be read
                return gate(module, *args, **kwargs)
            deferred = tape.deferred
            tape.deferred = deferred and id(module) not in wanted.inside
            try:
                result = gate(module, *args, **kwargs)
            finally:
                tape.deferred = deferred
            if id(module) in wanted.outputs:
                recorder.returned(module, result)
            return result

        return attentive

    def _opaque(
        self,
        tap: Tap,
        caller: Caller,
        eager: Uncompiled,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call an opaque module as if it were not watched: both taps are off, and what is compiled runs compiled."""
        path = self.recorder.tape.stack[-1].path
        if path not in self.opaque:
            self.opaque.append(path)
        active, eager.active = eager.active, False
        try:
            with caller.as_before(), _mode_off(tap):
                return caller.original(module, *args, **kwargs)
        finally:
            eager.active = active


@contextmanager
def _mode_off(tap: Tap) -> Generator[None]:
    """Within the block, the tap is off torch's stack of modes; the model's own modes above it stay.

    torch can only pop the top of the stack: so the modes above are popped, too, and pushed again.
    """
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
    """Whether a module is opaque: a function mode would change how it computes.

    torch's Transformer modules give up their fused fast path under any mode; compiled modules would
    have the mode itself traced.
    """
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    if not _may_be_opaque(type(module)):
        return False
    if not isinstance(module, _FUSED):
        return True  # compiled
    # From here on: whether this one could take the fast path at all. For an encoder its first layer says it.
    if module.training or not torch.backends.mha.get_fastpath_enabled():
        return False
    if isinstance(module, nn.MultiheadAttention):
        return module.batch_first
    if isinstance(module, nn.TransformerEncoderLayer):
        return module.self_attn.batch_first
    layers = list(module.layers)
    return bool(layers) and isinstance(layers[0], nn.TransformerEncoderLayer) and is_opaque(layers[0])


_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


def _may_be_opaque(kind: type[nn.Module]) -> bool:
    """Whether modules of a class may be opaque; worked out once for each class (`mode.transparent`)."""
    is_transparent = transparent.get(kind)
    if is_transparent is None:
        is_compiled = kind.__name__ == "OptimizedModule" and kind.__module__.startswith("torch._dynamo")
        is_transparent = transparent[kind] = not (is_compiled or issubclass(kind, _FUSED))
    return not is_transparent


__all__ = ["Observation", "Tap", "is_opaque"]
