"""`with fp.invariant(model):` a token's result has the same bits in every layout."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from forkpoint.errors import InvarianceError
from forkpoint.invariance import (
    attention,
    dispatch,
    entrances,
    fitness,
    means,
    padding,
    pointwise,
    products,
    state,
)
from forkpoint.invariance.inspection import Inspection
from forkpoint.invariance.state import Invariance, Unsupported

__all__ = ["Invariance", "invariant"]

_KERNELS = (means, pointwise, products)
"""Modules whose kernels are registered as they are imported."""


@contextmanager
def invariant(model: torch.nn.Module, *, unsupported: Unsupported = "raise") -> Generator[Invariance]:
    """Within the block, a token's result has the same bits whatever the layout.

    Alone, padded on either side, in a batch, packed, in one forward call or step by step with a cache. The block counts
    for this thread, may be nested, and leaves the model as it was. Results for padding are not computed.

    Args:
        model: a model in evaluation mode, on a CPU or on CUDA devices.
        unsupported: `raise` refuses what has no invariant form, `leave` runs it as it is and lists it in `left`.

    Raises:
        InvarianceError: the model is quantised, compiled, sharded or in training mode, or (while it runs) it calls
            what has no invariant form.

    >>> model = torch.nn.Linear(8, 4).eval()
    >>> rows = torch.randn(9, 8)
    >>> with invariant(model):
    ...     bool((model(rows)[:1] == model(rows[:1])).all())
    True
    """
    if unsupported not in ("raise", "leave"):
        raise InvarianceError(f"unsupported={unsupported!r}", "raise or leave")
    fitness.check(model)
    block = Invariance(model, unsupported)
    products.refresh()
    with ExitStack() as stack:
        stack.enter_context(_attending(model))
        stack.enter_context(_inspected(block))
        stack.enter_context(entrances.replaced(model))
        stack.enter_context(state.opened(block))
        stack.enter_context(dispatch.caught())
        yield block


@contextmanager
def _attending(model: torch.nn.Module) -> Generator[None]:
    """The model attends by sequences, and calls its experts one by one."""
    configs = list(_configs(model))
    if not configs:
        yield
        return
    attention.register()
    before = [{name: vars(config)[name] for name in _CHOICES if name in vars(config)} for config in configs]
    with ExitStack() as stack:
        for config, values in zip(configs, before, strict=True):
            stack.callback(vars(config).update, values)
            stack.enter_context(attention.standing_in(config, values.get(_ATTENTION)))
            if values.get(_ATTENTION) is not None:
                vars(config)[_ATTENTION] = attention.NAME
            if values.get(_EXPERTS) is not None:
                vars(config)[_EXPERTS] = "eager"
        yield


_ATTENTION, _EXPERTS = _CHOICES = "_attn_implementation_internal", "_experts_implementation_internal"


def _configs(model: torch.nn.Module) -> Iterator[Any]:
    """Each configuration of transformers that a part of the model reads, once."""
    seen: set[int] = set()
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation") and id(config) not in seen:
            seen.add(id(config))
            yield config


@contextmanager
def _inspected(block: Invariance) -> Generator[None]:
    """Each new way of calling the model is looked at; see `Inspection`."""
    open_: list[ExitStack] = []

    def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not state.is_open(block):
            return
        fitness.check_call(module)
        products.refresh()
        if not any(module is one for one in block.models):
            fitness.check(module)
            block.models.append(module)
        stack = ExitStack()
        stack.callback(padding.end, padding.begin(module, args, kwargs))
        way = _way(args, kwargs)
        if way not in block.seen and not open_:
            block.seen.add(way)
            stack.enter_context(Inspection(block))
        open_.append(stack)

    def after(*_: Any) -> None:
        if open_ and state.is_open(block):
            open_.pop().close()

    hooks = (
        block.model.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        block.model.register_forward_hook(after, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _way(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[object, ...]:
    """What tells ways of calling a model apart: which arguments there are, and whether they hold one token or several."""
    given = [*enumerate(args), *sorted(kwargs.items())]
    return tuple((name, _kind(value)) for name, value in given if value is not None)


def _kind(value: Any) -> object:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(min(size, 2) for size in value.shape)
    return value if isinstance(value, (bool, str)) else type(value)
