"""Ways into a block besides the dispatcher: cheap ones, and one that is barred.

What models call most, `F.linear` and norms by the root of the mean square, has a cheap way. The dispatcher asks a
kernel written in Python for every product, which takes longer than to launch the product itself. While blocks are open,
`torch.nn.functional.linear` and the `forward` of such norms are functions of ours, which ask whether the thread is
within a block, and take what `products` has ready. Everything else goes torch's way, and where a mode of torch looks
on, so does this.

What `torch.compile` made goes past the dispatcher: its kernels are made by a compiler, which chooses the order of sums. To
call such a function within a block is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from forkpoint.invariance import norms, padding, state
from forkpoint.invariance.dispatch import KEY, set_caught
from forkpoint.invariance.products import LINEAR, ready

_included = torch._C._dispatch_tls_is_dispatch_key_included
_functions = torch._C._len_torch_function_stack
_dispatches = torch._C._len_torch_dispatch_stack


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: A002 - as torch calls it
    if _included(KEY) and not _functions() and not _dispatches() and padding.of(input) is None:
        way = ready(input, weight, bias)
        if way is not None:
            set_caught(KEY, False)
            try:
                return way(input, weight, bias)
            finally:
                set_caught(KEY, True)
    return LINEAR(input, weight, bias)


def _norm(stock: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, hidden_states: Any) -> Any:
        if _included(KEY):
            made = norms.made(self, stock, hidden_states)
            if made is not None:
                return made
        return stock(self, hidden_states)

    return forward


def _compiled(stock: Callable[..., Any]) -> Callable[..., Any]:
    """What each call of a compiled function asks for its compiler; None is asked with where nothing is to be compiled."""

    def asked(callback: Any) -> Any:
        if callback is not None and _included(KEY):
            state.refuse("a function that is compiled", "the compiler chooses the order of its sums")
        return stock(callback)

    return asked


_ASKED = "_callback_from_stance"
_lock = threading.Lock()
_replaced: dict[tuple[Any, str], list[Any]] = {}
"""By whose attribute it is: what stood there, what stands there, and for how many blocks."""


@contextmanager
def replaced(model: torch.nn.Module) -> Generator[None]:
    """The entrances that the modules of a model go through are ours, until the last block that uses them is left."""
    places = list(_places(model))
    with _lock:
        for owner, name, make in places:
            if (owner, name) not in _replaced:
                before = vars(owner)[name]
                own = make(before)
                setattr(owner, name, own)
                _replaced[owner, name] = [before, own, 0]
            _replaced[owner, name][2] += 1
    try:
        yield
    finally:
        with _lock:
            for owner, name, _ in places:
                entry = _replaced[owner, name]
                entry[2] -= 1
                if not entry[2]:
                    del _replaced[owner, name]
                    if vars(owner).get(name) is entry[1]:
                        setattr(owner, name, entry[0])


def _places(model: torch.nn.Module) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    frames = torch._dynamo.eval_frame
    if hasattr(frames, _ASKED):
        yield frames, _ASKED, _compiled
    if any(parameter.is_cuda for parameter in model.parameters()):
        if functional.linear in (LINEAR, _linear):
            yield functional, "linear", lambda _: _linear
        for kind in {type(module) for module in model.modules()}:
            if norms.may_be(kind):
                yield kind, "forward", _norm
