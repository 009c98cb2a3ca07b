"""What two runs of a program do, in plain, slow, obvious code: every value that every call made is copied, and compared.

It shares no code with forkpoint. What no function mode is told of, it does not know either: other threads, scripts, and what
runs while modes are switched off.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from tests.oracle import caller, public_name
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
GARBAGE = {"empty", "empty_like", "new_empty", "empty_strided", "resize_"}
"""What these make is not written yet."""


@dataclass(frozen=True)
class Made:
    """A value that a call, or a module, made.

    Attributes:
        op: `module/function`, or `module/output`.
        line: file and line that called the function; empty for modules.
        values: copies of what can be read.
        view: whether nothing was computed, so that a difference was there before.
        indices: copies of what the call was given in integers: by them it may move tokens to other places.
    """

    op: str
    line: str
    values: tuple[Tensor, ...]
    view: bool = False
    indices: tuple[Tensor, ...] = ()


class Watch(TorchFunctionMode):
    """Copies what every torch function makes, and what every module returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.made: list[Made] = []
        self.paths = {module: path for path, module in model.named_modules()}
        self.stack = [""]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {address(t) for t in tensors((args, kwargs))}
        result = func(*args, **kwargs)
        if torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
            return result
        name = public_name(func)
        if isinstance(func, torch._ops.OpOverload):
            name = str(func.overloadpacket).replace("::", ".")
        writes = (
            name.endswith("_") or name == "setitem" or kwargs.get("out") is not None or kwargs.get("inplace")
        )
        outputs = list(tensors(args[0] if name == "setitem" else result))
        with torch._C.DisableTorchFunction():
            view = not writes and any(address(t) in before for t in outputs)
            file, line, _ = caller(sys._getframe(1), __file__)
            copies = () if name in GARBAGE else tuple(copied(t) for t in outputs if readable(t))
            indices = tuple(copied(t) for t in tensors((args, kwargs)) if t.dtype is torch.long and dense(t))
            op = f"{self.stack[-1] or '(model)'}/{name}"
            if outputs:
                self.made.append(Made(op, f"{Path(file).name}:{line}", copies, view, indices))
        return result

    def calling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """What makes the call of a module while this watches."""

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self not in torch.overrides._get_current_function_mode_stack():
                return original(module, *args, **kwargs)  # another thread, or inside what is not looked into
            path = self.paths.get(module)
            if path is None:
                path = f"{self.stack[-1]}.{type(module).__name__}".lstrip(".")
            self.stack.append(path)
            try:
                result = (
                    without(self, original, module, args, kwargs)
                    if fast(module)
                    else original(module, *args, **kwargs)
                )
            finally:
                self.stack.pop()
            with torch._C.DisableTorchFunction():
                copies = tuple(copied(t) for t in tensors(result) if readable(t))
                if torch._C._functorch.peek_interpreter_stack() is None:  # pyright: ignore[reportAttributeAccessIssue]
                    self.made.append(Made(f"{path or '(model)'}/output", "", copies))
            return result

        return call


def fast(module: nn.Module) -> bool:
    """Whether a module computes otherwise where a mode looks on."""
    return "OptimizedModule" in type(module).__name__ or (isinstance(module, FUSED) and not module.training)


def without(mode: Watch, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
    above = []
    while (top := _pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        _push_mode(other)
    try:
        return original(module, *args, **kwargs)
    finally:
        for _ in above:
            _pop_mode()
        for other in (mode, *reversed(above)):
            _push_mode(other)


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def address(value: Tensor) -> Any:
    try:
        return value.untyped_storage()._cdata or id(value)
    except (RuntimeError, NotImplementedError):
        return id(value)


def readable(value: Tensor) -> bool:
    return (value.is_floating_point() or value.is_complex()) and dense(value)


def dense(value: Tensor) -> bool:
    """Whether the elements can be read from memory."""
    plain = value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"
    try:
        return plain and (value.numel() == 0 or value.untyped_storage().data_ptr() != 0)
    except RuntimeError:
        return False


def copied(value: Tensor) -> Tensor:
    return value.detach().as_subclass(Tensor).clone().resolve_conj().resolve_neg()


def watch(model: nn.Module, calls: list[dict[str, Any]], call: Callable[[nn.Module, Any], Any]) -> list[Made]:
    """Everything that a run makes, in the order in which it is finished."""
    watching = Watch(model)
    original = nn.Module.__call__
    nn.Module.__call__ = watching.calling(original)  # type: ignore[method-assign]
    try:
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            for inputs in calls:
                with watching:
                    call(model, inputs)
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]
    return watching.made


def same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def first_difference(a: list[Made], b: list[Made]) -> Made | None | str:
    """The first value that differs; "apart" where the runs take other ways before any does, or move tokens to other places."""
    for one, other in zip(a, b, strict=False):
        if (one.op, one.line) != (other.op, other.line) or len(one.values) != len(other.values):
            return "apart"
        if not one.view and not all(map(same, one.values, other.values)):
            moved = len(one.indices) != len(other.indices) or not all(map(same, one.indices, other.indices))
            return "apart" if moved else one
    return None if len(a) == len(b) else "apart"
