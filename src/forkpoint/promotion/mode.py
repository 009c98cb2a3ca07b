"""The function mode that computes in float64 what a model asks for in any narrower dtype."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from forkpoint.promotion import casts, fallbacks, kinds
from forkpoint.promotion.dtypes import READABLE, WIDE
from forkpoint.promotion.errors import CannotRewrite
from forkpoint.promotion.kinds import Kind
from forkpoint.promotion.refusals import Refusal, refusal
from forkpoint.promotion.values import Values, cast, is_alias

Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]
Function: TypeAlias = Callable[..., Any]

BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Elements of a weight beyond which `linear` casts and multiplies it in blocks of rows: on a CPU what its caches
hold, on a GPU what its memory can spare."""

_hidden = torch._C.DisableTorchFunction
"""Our own casts are not calls of the model: no other mode may see them."""


class PromotionMode(TorchFunctionMode):
    """Intercepts every torch function. `Promotion` owns it; see there for what it promises.

    Each function gets its handler once, by `kinds.kind_of`. While a handler runs, torch has this mode off the
    stack, so that what it calls is not promoted again, unless it enters the mode anew (`_composite`).
    """

    def __init__(self, values: Values, hook: Function | None) -> None:
        super().__init__()
        self.values = values
        self.refused: list[Refusal] = []
        self._hook = hook
        self._handlers: dict[Function, Callable[[Function, Args, Kwargs], Any]] = {}
        self._entered: dict[Function, Function] = {}

    def __torch_function__(
        self, func: Function, types: Sequence[type], args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        handler = self._handlers.get(func)
        if handler is None:
            handler = self._handlers[func] = self._handler_for(func)
        return handler(func, args, kwargs or {})

    @property
    def active(self) -> bool:
        """Whether calls made now come here: not while one of them is being handled."""
        return any(mode is self for mode in torch.overrides._get_current_function_mode_stack())

    def _handler_for(self, func: Function) -> Callable[[Function, Args, Kwargs], Any]:
        kind = kinds.kind_of(func)
        if kind is Kind.COMPUTE and kinds.name_of(func) in fallbacks.REWRITTEN:
            return self._rewritten
        return {
            Kind.READ: _read,
            Kind.DTYPE: _dtype,
            Kind.POINTER: self._pointer,
            Kind.RESTRIDE: self._restride,
            Kind.VIEW: self._view,
            Kind.TYPE_AND_CAST: self._cast,
            Kind.LIKE: self._like,
            Kind.LOOKUP: self._lookup,
            Kind.LINEAR: self._linear,
            Kind.WRITE: self._write,
            Kind.STATISTICS: self._statistics,
            Kind.SET_DATA: self._set_data,
            Kind.COMPOSITE: self._composite,
            Kind.HIGHER_ORDER: self._higher_order,
            Kind.CUSTOM: self._custom,
            Kind.COMPUTE: self.compute,
        }[kind]

    # --- what needs no arithmetic -------------------------------------------------------------------------

    def _view(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        with _hidden():
            args, kwargs = self._as_is(args), self._as_is(kwargs)
        return func(*args, **kwargs)

    def _restride(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        result = func(*args, **kwargs)
        with _hidden():
            self.values.acknowledge(args[0])
        return result

    def _pointer(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        # Who takes the address of a tensor that says it is float64 (a Triton launch does) reads float64 there.
        with _hidden():
            wide = self.values.writable(args[0])
        return func(wide)

    def _cast(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        return casts.cast_call(self.values, func, args, kwargs, self.compute)

    def _like(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        # Only shape, device and dtype of the model matter: the values need not be cast.
        model = args[0] if args else kwargs.get("input")
        with _hidden():
            kwargs = {name: _wide_dtype(value) for name, value in kwargs.items()}
            if isinstance(model, torch.Tensor) and kwargs.get("dtype") is None and model.dtype in WIDE:
                kwargs["dtype"] = WIDE[model.dtype]
        return func(*args, **kwargs)

    def _set_data(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        target, data = args
        with _hidden():
            if target.dtype in WIDE and data.dtype in READABLE | {torch.float64: torch.float64}:
                return self.values.set_data(target, data, func)
        return func(*args, **kwargs)

    # --- what computes ------------------------------------------------------------------------------------

    def compute(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        if kwargs.get("out") is not None:
            return self._out(func, args, kwargs)
        casts_made: list[tuple[torch.Tensor, torch.Tensor]] = []
        if torch.get_default_dtype() is not torch.float64:  # the model has set another one
            torch.set_default_dtype(torch.float64)
        with _hidden():
            wide_args, wide_kwargs = self._wide(args, casts_made), self._wide(kwargs, casts_made)
        result = self._answered(func, wide_args, wide_kwargs)
        if result is not NotImplemented:
            return result
        try:
            result = func(*wide_args, **wide_kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            otherwise = fallbacks.OTHERWISE.get(kinds.name_of(func))
            if otherwise is not None:
                with contextlib.suppress(Exception):
                    return otherwise(*wide_args, **wide_kwargs)
            return self._natively(func, args, kwargs, error)
        if casts_made and self._adopted(result, casts_made):
            return self.compute(func, args, kwargs)
        return self._widened(result)

    def _adopted(self, result: Any, casts_made: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
        """Whether the result is a view of an argument's cast, which then has got a twin.

        Where the model expects a view of its own tensor, a view of a passing copy would lose what is written
        to it.
        """
        results = result if isinstance(result, tuple | list) else (result,)
        with _hidden():
            adopted = False
            for narrow, wide in casts_made:
                if any(isinstance(r, torch.Tensor) and is_alias(r, wide) for r in results):
                    adopted = self.values.writable(narrow) is not narrow or adopted
        return adopted

    def _out(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        out = kwargs["out"]
        with _hidden():
            wide_args, wide_kwargs = self._wide(args), self._wide({k: v for k, v in kwargs.items() if k != "out"})
            wide_out = self._writable(out)
        func(*wide_args, out=wide_out, **wide_kwargs)
        return out

    def _lookup(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        table = args[0] if args else None
        with _hidden():
            narrow = (
                isinstance(table, torch.Tensor)
                and table.dtype in WIDE
                and not self.values.has_twin(table)
                and "out" not in kwargs
            )
            rest = self._as_is(args[1:]) if narrow else ()
        if not narrow:
            return self.compute(func, args, kwargs)
        return self._widened(func(table, *rest, **kwargs))

    def _linear(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """A large weight is cast and used in blocks: its float64 copy never exists as a whole, and stays in cache."""
        if len(args) < 2 or kwargs.get("out") is not None or self._hook is not None:
            return self.compute(func, args, kwargs)
        x, weight, *rest = args
        bias = rest[0] if rest else kwargs.get("bias")
        with _hidden():
            in_blocks = (
                weight.dtype in WIDE
                and weight.dim() == 2
                and weight.numel() > BLOCK.get(weight.device.type, 1 << 26)
                and weight.layout is torch.strided
                and not self.values.keeps(weight)
            )
            if in_blocks:
                return fallbacks.linear_in_blocks(self.values, x, weight, bias, BLOCK.get(weight.device.type, 1 << 26))
        return self.compute(func, args, kwargs)

    def _answered(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """What the caller's own hook has to say to the call, or NotImplemented."""
        if self._hook is None:
            return NotImplemented
        result = self._hook(func, args, kwargs)
        return result if result is NotImplemented else self._widened(result)

    # --- what writes --------------------------------------------------------------------------------------

    def _write(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        if not args:
            return self.compute(func, args, kwargs)
        target = args[0]
        with _hidden():
            wide_target = self._writable(target)
            rest, wide_kwargs = self._wide(args[1:]), self._wide(kwargs)
        result = func(wide_target, *rest, **wide_kwargs)
        # The model goes on with the object that it had; `Values` finds the twin behind it.
        return result if result is None or wide_target is target else target

    def _statistics(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """``batch_norm(input, weight, bias, running_mean, running_var, training, …)``: training writes two of them."""
        if len(args) > 5 and args[5]:
            with _hidden():
                running = [value if value is None else self._writable(value) for value in args[3:5]]
            args = (*args[:3], *running, *args[5:])
        return self.compute(func, args, kwargs)

    # --- what is entered ----------------------------------------------------------------------------------

    def _composite(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        body = self._entered.get(func)
        if body is None:
            body = self._entered[func] = kinds.entered(func)
        with self:
            return body(*args, **kwargs)

    def _higher_order(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """What ``func(...)`` does once no mode overrides it, but under this mode, for the functions it is given."""
        with _hidden():
            args, kwargs = self._wide(args), self._wide(kwargs)
        keys = torch._ops._compute_keyset(args, kwargs, func.non_fallthrough_keys)
        with self:
            return self._widened(func.dispatch(keys.highestPriorityTypeId(), *args, **kwargs))

    # --- what is not torch's own --------------------------------------------------------------------------

    def _rewritten(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        rewritten = fallbacks.REWRITTEN[kinds.name_of(func)]
        with _hidden():
            wide_args, wide_kwargs = self._wide(args), self._wide(kwargs)
        result = self._answered(func, wide_args, wide_kwargs)
        if result is not NotImplemented:
            return result
        with _hidden():
            try:
                return rewritten(*wide_args, **wide_kwargs)
            except CannotRewrite as error:
                reason = error
        return self._natively(func, args, kwargs, reason)

    def _custom(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        name = kinds.name_of(func)
        if name in fallbacks.REWRITTEN:
            return self._rewritten(func, args, kwargs)
        overload, written = fallbacks.resolve(func, args, kwargs)
        with _hidden():
            wide_args = tuple(
                self._writable(value) if place in written else self._wide(value) for place, value in enumerate(args)
            )
            wide_kwargs = {
                key: self._writable(value) if key in written else self._wide(value) for key, value in kwargs.items()
            }
        result = self._answered(func, wide_args, wide_kwargs)
        if result is not NotImplemented:
            return result
        try:
            keys = fallbacks.backend_keys(wide_args, wide_kwargs)
            if overload is None or keys is None or torch.is_grad_enabled():
                result = func(*wide_args, **wide_kwargs)
            else:
                # Straight to the kernel, so that a kernel written in Python runs under this mode.
                with self:
                    result = overload.redispatch(keys, *wide_args, **wide_kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return self._natively(func, args, kwargs, error, written)
        narrow = fallbacks.first_narrow(result)
        if narrow is not None:
            self.refuse(name, f"returned {str(narrow).removeprefix('torch.')} although given float64", None)
        return self._widened(result)

    def dispatched(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """An operation of TorchScript's interpreter, known by its schema."""
        kind = kinds.kind_of(func)
        if func.is_view or kind is Kind.VIEW:
            return self._view(func, args, kwargs)
        if kind in (Kind.LIKE, Kind.LOOKUP, Kind.STATISTICS, Kind.WRITE):
            return self._handler_for(func)(func, args, kwargs)
        return self.compute(func, args, kwargs)

    def _natively(
        self, func: Function, args: Args, kwargs: Kwargs, error: Exception, written: frozenset[int | str] = frozenset()
    ) -> Any:
        """The call in the dtype that the model would have used, since float64 was refused.

        If that fails too, the call is at fault and not the dtype: the model gets the first error.
        """
        with _hidden():
            dtypes = fallbacks.native_dtypes((args, kwargs), self.values.native)
        for dtype in dtypes:
            with _hidden():
                narrow_args, narrow_kwargs = self._narrow(args, dtype), self._narrow(kwargs, dtype)
            try:
                result = func(*narrow_args, **narrow_kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception:
                continue
            self.refuse(kinds.name_of(func), error, dtype)
            with _hidden(), torch.no_grad():
                for place in written:
                    before, after = (
                        (args, narrow_args) if isinstance(place, int) else (kwargs, narrow_kwargs)
                    )
                    self._write_back(before[place], after[place])  # type: ignore[index]
            return self._widened(result)
        raise error

    def _write_back(self, target: Any, value: Any) -> None:
        if isinstance(target, torch.Tensor) and target is not value:
            self.values.writable(target).copy_(value)

    def forget(self) -> None:
        """Lets go of what only served the block: functions seen, kept casts. Twins stay, for `Values.of`."""
        self._handlers.clear()
        self._entered.clear()
        self.values.forget_casts()

    def refuse(self, op: str, reason: Exception | str, dtype: torch.dtype | None) -> None:
        entry = refusal(op, reason, dtype)
        if entry not in self.refused:
            self.refused.append(entry)

    # --- arguments and results ----------------------------------------------------------------------------

    def _wide(self, value: Any, casts_made: list[tuple[torch.Tensor, torch.Tensor]] | None = None) -> Any:
        if isinstance(value, torch.Tensor):
            wide = self.values.of(value)
            if casts_made is not None and wide is not value and not self.values.has_twin(value):
                casts_made.append((value, wide))
            return wide
        if isinstance(value, torch.dtype):
            return WIDE.get(value, value)
        return _rebuilt(value, lambda part: self._wide(part, casts_made))

    def _as_is(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.values.as_is(value)
        return _rebuilt(value, self._as_is)

    def _writable(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.values.writable(value)
        return _rebuilt(value, self._writable)

    def _narrow(self, value: Any, dtype: torch.dtype) -> Any:
        """The argument as the model would pass it: exact values rounded to its dtype."""
        if isinstance(value, torch.Tensor):
            if value.dtype == torch.float64:
                return value.to(dtype)
            return self.values.of(value).to(value.dtype) if self.values.has_twin(value) else value
        if value is torch.float64:
            return dtype
        return _rebuilt(value, lambda part: self._narrow(part, dtype))

    def _widened(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            with _hidden():
                wide = WIDE.get(value.dtype)
                return value if wide is None else cast(value, wide)
        return _rebuilt(value, self._widened)


def _read(func: Function, args: Args, kwargs: Kwargs) -> Any:
    return func(*args, **kwargs)


def _dtype(func: Function, args: Args, kwargs: Kwargs) -> Any:
    dtype = func(*args, **kwargs)
    return WIDE.get(dtype, dtype)


def _wide_dtype(value: Any) -> Any:
    return WIDE.get(value, value) if isinstance(value, torch.dtype) else value


def _rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same list, tuple or dict with every part changed; anything else as it is."""
    if isinstance(value, list):
        return [change(part) for part in value]
    if isinstance(value, dict):
        return {key: change(part) for key, part in value.items()}
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        parts = [change(part) for part in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value  # keeps torch.return_types.max and its like
        if type(value) is tuple:
            return tuple(parts)
        kind: Any = type(value)
        return kind(*parts) if hasattr(value, "_fields") else kind(parts)
    return value
