"""What a callable hands to the model behind it: taken down in one run, and handed to the model of another."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.promotion import Promotion

Arguments = dict[str, Any]
"""By name what a model is called with."""


class Handed:
    """The tensors that the one model behind a callable is given in each of its calls, in float64.

    Args:
        promotion: computes the run in which they are taken down.
    """

    def __init__(self, promotion: Promotion) -> None:
        self.promotion = promotion
        self.calls: list[Arguments] = []
        self._taker: nn.Module | None = None

    @contextmanager
    def taken_down(self, models: Sequence[nn.Module]) -> Generator[None]:
        """Take down what the one of some models that is called is given, as long as the block lasts.

        Raises:
            TypeError: (in the block) several are called, so that what they are given is made by more than a callable.
        """

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
            with torch._C.DisableTorchFunction():
                given = _named(module, args, kwargs).items()
                tensors = {n: self.promotion.value(v).clone() for n, v in given if isinstance(v, Tensor)}
            self._take(module)
            self.calls.append(tensors)

        with _hooked(models, note):
            yield
        self._taker = None

    @contextmanager
    def given_to(self, models: Sequence[nn.Module]) -> Generator[None]:
        """Give the one of some models that is called the tensors that were taken down, in place of its own.

        Raises:
            TypeError: (in the block) several are called.
        """
        waiting = iter(self.calls)

        def replace(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Any:
            self._take(module)
            tensors = next(waiting)
            own = {n: v for n, v in _named(module, args, kwargs).items() if not isinstance(v, Tensor)}
            return (), {**own, **tensors}

        with _hooked(models, replace):
            yield

    def _take(self, module: nn.Module) -> None:
        if self._taker not in (None, module):
            raise TypeError("several models are called")
        self._taker = module


@contextmanager
def _hooked(models: Sequence[nn.Module], hook: Any) -> Generator[None]:
    with ExitStack() as stack:
        for model in models:
            stack.callback(model.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _named(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    """Arguments of a module's forward by name.

    Raises:
        TypeError: it does not take them, or takes any number of them without a name.
    """
    signature = inspect.signature(module.forward)
    named: Arguments = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise TypeError("arguments without a name")
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named
