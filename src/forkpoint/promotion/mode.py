"""The function mode that computes in float64 what a model asks for in any narrower dtype."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any, TypeAlias

import torch
from torch._ops import _compute_keyset
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils import _pytree as pytree

from forkpoint.promotion import blocks, casts, kinds, operators, plain, rewrites
from forkpoint.promotion.arguments import Args, Arguments, Kwargs, hidden, widened
from forkpoint.promotion.dtypes import WIDE
from forkpoint.promotion.errors import CannotRewriteError, reraise_others
from forkpoint.promotion.fallback import Fallback
from forkpoint.promotion.kinds import Kind
from forkpoint.promotion.refusals import Refusal
from forkpoint.promotion.values import Values, is_alias

Function: TypeAlias = Callable[..., Any]
Handler: TypeAlias = Callable[[Function, Args, Kwargs], Any]


@lru_cache(1 << 12)
def _kind_of(func: Function) -> tuple[Kind, bool]:
    """What promotion does about a function, and whether it is rewritten: each run asks for the same functions."""
    kind = kinds.kind_of(func)
    return kind, kind in (Kind.COMPUTE, Kind.CUSTOM) and kinds.name_of(func) in rewrites.REWRITTEN


_RECURRENT: frozenset[Function] = frozenset({torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu})


@contextmanager
def _unwarned() -> Generator[None]:
    """Without cuDNN's advice to keep a recurrent layer's weights in one piece: those in float64 pass at once."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="RNN module weights are not part of single contiguous chunk"
        )
        yield


class PromotionMode(TorchFunctionMode):
    """Intercepts every torch function. `Promotion` owns it; see there for what it promises.

    Each function gets its handler once, by `kinds.kind_of`. While a handler runs, torch has this mode off the
    stack, so that what it calls is not promoted again, unless it enters the mode anew (`_composite`).
    """

    def __init__(self, values: Values, hook: Function | None, shown_dtype: torch.dtype | None) -> None:
        super().__init__()
        self.refused: list[Refusal] = []
        self.computed = 0
        self.calls: dict[Function, int] = {}
        self._entrances = 0
        self._values = values
        self._arguments = Arguments(values)
        self._fallback = Fallback(values, self._arguments, self.refused)
        self._hook = hook
        self._shown_dtype = shown_dtype
        self._handlers: dict[Function, Handler] = {}
        self._by_kind: dict[Kind, Handler] = {}
        self._entered: dict[Function, Function] = {}

    def __torch_function__(
        self, func: Function, types: Sequence[type], args: Args = (), kwargs: Kwargs | None = None
    ) -> Any:
        """The result of a torch function in float64."""
        handler = self._handlers.get(func)
        if handler is None:
            handler = self._handlers[func] = self._handler_for(func)
        result = handler(func, args, kwargs or {})
        if not self._entrances and (isinstance(result, torch.Tensor) or _makes_tensors(result, args)):
            self.calls[func] = self.calls.get(func, 0) + 1
        return result

    @contextmanager
    def uncounted(self) -> Generator[None]:
        """What is called meanwhile is not counted."""
        self._entrances += 1
        try:
            yield
        finally:
            self._entrances -= 1

    @contextmanager
    def _within(self) -> Generator[None]:
        """This mode for what a call of the model makes itself: that is no call of the model."""
        with self.uncounted(), self:
            yield

    @property
    def active(self) -> bool:
        """Whether calls made now come here: not while one of them is being handled."""
        return any(mode is self for mode in _get_current_function_mode_stack())

    def forget(self) -> None:
        """Lets go of what only served the block. Twins stay, for `Values.of`."""
        self._handlers.clear()
        self._by_kind.clear()
        self._entered.clear()
        self._values.forget_casts()

    def _handler_for(self, func: Function) -> Handler:
        kind, is_rewritten = _kind_of(func)
        if is_rewritten:
            return self._rewritten
        if not self._by_kind:
            self._by_kind = self._handlers_by_kind()
        return self._by_kind[kind]

    def _handlers_by_kind(self) -> dict[Kind, Handler]:
        return {
            Kind.READ: plain.read,
            Kind.DTYPE: self._dtype,
            Kind.RESTRIDE: partial(plain.restride, self._values),
            Kind.POINTER: partial(plain.pointer, self._values),
            Kind.VIEW: self._view,
            Kind.CAST: self._cast,
            Kind.LIKE: plain.like,
            Kind.LOOKUP: self._lookup,
            Kind.LINEAR: self._linear,
            Kind.WRITE: self._write,
            Kind.STATISTICS: self._statistics,
            Kind.SET_DATA: partial(plain.set_data, self._values),
            Kind.COMPOSITE: self._composite,
            Kind.HIGHER_ORDER: self._higher_order,
            Kind.CUSTOM: self._custom,
            Kind.COMPUTE: self.compute,
        }

    # --- what needs no arithmetic -------------------------------------------------------------------------

    def _dtype(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        dtype = func(*args, **kwargs)
        if self._shown_dtype is None:
            return WIDE.get(dtype, dtype)
        return self._shown_dtype if dtype is torch.float64 else dtype

    def _view(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        if self._values.has_twins:
            with hidden():
                args, kwargs = self._arguments.as_is(args), self._arguments.as_is(kwargs)
        return func(*args, **kwargs)

    def _cast(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        return casts.cast_call(self._values, func, args, kwargs, self.compute)

    # --- what computes ------------------------------------------------------------------------------------

    def compute(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """Calls a function with its arguments in float64."""
        self.computed += 1
        if kwargs.get("out") is not None:
            return self._out(func, args, kwargs)
        if torch.get_default_dtype() is not torch.float64:  # the model has set another one
            torch.set_default_dtype(torch.float64)
        casts_made: list[tuple[torch.Tensor, torch.Tensor]] = []
        with hidden():
            wide_args = self._arguments.wide(args, casts_made)
            wide_kwargs = self._arguments.wide(kwargs, casts_made)
        result = self._answered(func, wide_args, wide_kwargs)
        if result is not NotImplemented:
            return result
        try:
            with _unwarned() if func in _RECURRENT else nullcontext():
                result = func(*wide_args, **wide_kwargs)
        except Exception as error:  # noqa: BLE001 - any operator may refuse in any way
            reraise_others(error)
            return self._otherwise(func, args, kwargs, error)
        if casts_made and self._adopted(result, casts_made):
            return self.compute(func, args, kwargs)
        return widened(result)

    def _adopted(self, result: Any, casts_made: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
        """Whether the result is a view of an argument's cast; the argument has a twin then.

        Where the model expects a view of its own tensor, a view of a passing copy would lose what is written
        to it.
        """
        results = result if isinstance(result, tuple | list) else (result,)
        adopted = False
        with hidden():
            for narrow, wide in casts_made:
                if any(isinstance(value, torch.Tensor) and is_alias(value, wide) for value in results):
                    adopted |= self._values.writable(narrow) is not narrow
        return adopted

    def _out(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        inputs = {name: value for name, value in kwargs.items() if name != "out"}
        with hidden():
            wide_args, wide_kwargs = self._arguments.wide(args), self._arguments.wide(inputs)
            wide_out = self._arguments.writable(kwargs["out"])
        func(*wide_args, out=wide_out, **wide_kwargs)
        return kwargs["out"]

    def _lookup(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        table = args[0] if args else None
        with hidden():
            stays = (
                isinstance(table, torch.Tensor)
                and table.dtype in WIDE
                and not self._values.has_twin(table)
                and not (torch.is_grad_enabled() and table.requires_grad)  # its gradient is a sum
            )
        if not stays or kwargs.get("out") is not None:
            return self.compute(func, args, kwargs)
        return widened(func(*args, **kwargs))

    def _linear(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """A large weight is cast and used in blocks: its float64 copy never exists as a whole, and stays in cache."""
        if len(args) < 2 or kwargs.get("out") is not None or self._hook is not None:
            return self.compute(func, args, kwargs)
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        with hidden():
            leads_back = torch.is_grad_enabled() and args[1].requires_grad
            if blocks.pays(args[1]) and not self._values.keeps(args[1]) and not leads_back:
                self.computed += 1
                return blocks.linear(self._values, args[0], args[1], bias)
        return self.compute(func, args, kwargs)

    def _answered(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """What the caller's own hook has to say to the call, or NotImplemented."""
        if self._hook is None:
            return NotImplemented
        result = self._hook(func, args, kwargs)
        return result if result is NotImplemented else widened(result)

    # --- what writes --------------------------------------------------------------------------------------

    def _write(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        if not args:
            return self.compute(func, args, kwargs)
        target = args[0]
        with hidden():
            wide_target = self._arguments.writable(target)
            rest, wide_kwargs = self._arguments.wide(args[1:]), self._arguments.wide(kwargs)
        result = func(wide_target, *rest, **wide_kwargs)
        # The model goes on with the object that it had; `Values` finds the twin behind it.
        return result if result is None or wide_target is target else target

    def _statistics(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        """``batch_norm(input, weight, bias, running_mean, running_var, training, …)``: training writes two of them."""
        if len(args) > 5 and args[5]:
            with hidden():
                args = (*args[:3], *self._arguments.writable(args[3:5]), *args[5:])
        return self.compute(func, args, kwargs)

    # --- what is entered ----------------------------------------------------------------------------------

    def _composite(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        body = self._entered.get(func)
        if body is None:
            body = self._entered[func] = kinds.entered(func)
        with self._within():
            return body(*args, **kwargs)

    def _higher_order(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """What ``func(...)`` does once no mode overrides it, but under this mode, for the functions it is given."""
        with hidden():
            args, kwargs = self._arguments.wide(args), self._arguments.wide(kwargs)
        keys = _compute_keyset(args, kwargs, func.non_fallthrough_keys)
        with self._within():
            return widened(func.dispatch(keys.highestPriorityTypeId(), *args, **kwargs))

    def dispatched(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        """An operation of TorchScript's interpreter, known by its schema."""
        kind = kinds.kind_of(func)
        if func.is_view or kind is Kind.VIEW:
            return self._view(func, args, kwargs)
        if kind in (Kind.LIKE, Kind.LOOKUP, Kind.STATISTICS, Kind.WRITE):
            return self._handler_for(func)(func, args, kwargs)
        return self.compute(func, args, kwargs)

    # --- what may refuse ----------------------------------------------------------------------------------

    def _rewritten(self, func: Function, args: Args, kwargs: Kwargs) -> Any:
        with hidden():
            wide_args, wide_kwargs = self._arguments.wide(args), self._arguments.wide(kwargs)
        result = self._answered(func, wide_args, wide_kwargs)
        if result is not NotImplemented:
            return result
        with hidden():
            overload = operators.overload_of(func, wide_args, wide_kwargs)
            try:
                return rewrites.REWRITTEN[kinds.name_of(func)](
                    **rewrites.by_name(overload, wide_args, wide_kwargs)
                )
            except CannotRewriteError as error:
                reason = error
        return self._fallback.call(func, args, kwargs, reason)

    def _custom(self, func: Any, args: Args, kwargs: Kwargs) -> Any:
        overload = operators.overload_of(func, args, kwargs)
        written = operators.written_by(overload, kwargs)
        with hidden():
            reading, writing = self._arguments.wide, self._arguments.writable
            wide_args = tuple(
                (writing if place in written else reading)(value) for place, value in enumerate(args)
            )
            wide_kwargs = {
                name: (writing if name in written else reading)(value) for name, value in kwargs.items()
            }
        result = self._answered(func, wide_args, wide_kwargs)
        if result is not NotImplemented:
            return result
        keys = None if torch.is_grad_enabled() else operators.kernel_keys(wide_args, wide_kwargs)
        try:
            if keys is None:
                result = func(*wide_args, **wide_kwargs)
            else:
                # Straight to the kernel, so that a kernel written in Python runs under this mode.
                with self._within():
                    result = overload.redispatch(keys, *wide_args, **wide_kwargs)
        except Exception as error:  # noqa: BLE001 - any operator may refuse in any way
            reraise_others(error)
            return self._fallback.call(func, args, kwargs, error, written)
        narrow = operators.first_narrow(result)
        if narrow is not None:
            self._fallback.note(
                func, f"returned {str(narrow).removeprefix('torch.')} although given float64", None
            )
        return widened(result)

    def _otherwise(self, func: Function, args: Args, kwargs: Kwargs, error: Exception) -> Any:
        rewritten = rewrites.OTHERWISE.get(kinds.name_of(func))
        if rewritten is not None:
            with hidden():
                wide_args, wide_kwargs = self._arguments.wide(args), self._arguments.wide(kwargs)
                try:
                    return rewritten(*wide_args, **wide_kwargs)
                except RuntimeError as other:  # then it is not the dtype that is at fault
                    reraise_others(other)
                    raise error from None
        return self._fallback.call(func, args, kwargs, error)


_NO_TENSORS = frozenset({
    bool, int, float, complex, str, torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format,
})  # fmt: skip
"""Classes of results with no tensor in them, which most of what is asked of a tensor returns."""


def _makes_tensors(result: Any, args: Args) -> bool:
    """Whether a call whose result is no tensor made some, or wrote to its first argument."""
    if result is None:
        return bool(args) and isinstance(args[0], torch.Tensor)
    if type(result) in _NO_TENSORS:
        return False
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(result))
