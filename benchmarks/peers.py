"""The ways to look at a pair of runs: forkpoint's, its floors' and its peers'. One function each.

What a function does is timed; what it returns is what its user would be left with, and counts as memory.
Peers are used as their own documentation says, with the options that cost them least.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cases import Pair
from forkpoint.runs.run import kept_state

LOOP_TOKENS = 64
"""The longest prompt that is compared by Python loops over its elements."""
LOOP_ELEMENTS = 100_000
"""How many elements of it are, at least one hidden state's."""


class NotHereError(Exception):
    """Why a way can't be measured on this case."""


def _nothing(pair: Pair) -> AbstractContextManager[None]:  # noqa: ARG001
    return nullcontext()


def _no_note(pair: Pair) -> str:  # noqa: ARG001
    return ""


@dataclass(frozen=True)
class Way:
    """One way to look at a pair.

    Attributes:
        label: what tables call it.
        run: what is timed.
        peer: whether it is somebody else's; `--no-peers` leaves those out.
        around: makes ready and clears up, which is not timed.
        note: what a table should say of it.
    """

    label: str
    run: Callable[[Pair], object]
    peer: bool
    around: Callable[[Pair], AbstractContextManager[None]]
    note: Callable[[Pair], str]


WAYS: dict[str, Way] = {}


def _way(
    name: str,
    label: str,
    *,
    peer: bool = True,
    around: Callable[[Pair], AbstractContextManager[None]] = _nothing,
    note: Callable[[Pair], str] = _no_note,
) -> Callable[[Callable[[Pair], object]], Callable[[Pair], object]]:
    def register(run: Callable[[Pair], object]) -> Callable[[Pair], object]:
        WAYS[name] = Way(label, run, peer, around, note)
        return run

    return register


@_way("plain", "plain pair", peer=False)
def plain(pair: Pair) -> object:
    with torch.no_grad():
        return [run.model(**run.calls[0]) for run in pair]


class _Empty(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@_way("mode", "a function mode that does nothing", peer=False)
def mode(pair: Pair) -> object:
    with _Empty():
        return plain(pair)


@_way("forkpoint", "forkpoint", peer=False)
def forkpoint(pair: Pair) -> object:
    from forkpoint.explain.session import trace_run

    traced = [trace_run(run) for run in pair]
    for one in traced:
        one.trace.complete()
    return traced


@_way("debugmode", "PyTorch DebugMode, input and output hashes")
def debugmode(pair: Pair) -> object:
    from torch.utils._debug_mode import DebugMode

    logs: list[Any] = []
    for run in pair:
        with torch.no_grad(), DebugMode() as log, DebugMode.log_tensor_hashes(hash_inputs=True):
            run.model(**run.calls[0])
        logs.append(log.logs)
    return logs


@contextmanager
def _torchlens_ready(pair: Pair) -> Generator[None]:
    """Its wrappers of torch's functions stay for as long as the process; here others must not pay for them."""
    import torchlens
    from torchlens.backends.torch import wrappers

    wrappers.wrap_torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torchlens.release_model(pair.a.model)
        wrappers.unwrap_torch()


@_way("torchlens", "TorchLens", around=_torchlens_ready)
def torchlens(pair: Pair) -> object:
    import torchlens
    from torchlens.options import CaptureOptions

    options = CaptureOptions(inference_only=True, save_budget=None)
    return [
        torchlens.trace(run.model, input_kwargs=dict(run.calls[0]), capture=options, save_mode="reference")
        for run in pair
    ]


def _put_back(pair: Pair) -> AbstractContextManager[None]:
    """For what leaves hooks in the model, or another `forward`: the plain pair must not pay for them."""
    return kept_state(pair.a.model)


@_way("transformers", "transformers model_addition_debugger_context", around=_put_back)
def transformers(pair: Pair) -> object:
    from transformers import model_addition_debugger_context

    with tempfile.TemporaryDirectory() as folder:
        for name, run in zip("ab", pair, strict=True):
            with model_addition_debugger_context(
                run.model, debug_path=str(Path(folder, name)), do_prune_layers=False
            ):
                run.model(**run.calls[0])
    return None


class _Named(TorchFunctionMode):
    """Hands on every tensor that a function returns, by who called which function for which time."""

    def __init__(self, take: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.take = take
        self.calls: dict[Any, int] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            frame = sys._getframe(1)
            key = (func, frame.f_code, frame.f_lasti)
            self.calls[key] = nth = self.calls.get(key, 0) + 1
            self.take((key, nth), result)
        return result


@_way("store", "storing every value and comparing")
def store(pair: Pair) -> object:
    """The values of run A are kept by reference; those of run B are compared as they come, and let go."""
    kept: dict[Any, Tensor] = {}
    with _Named(kept.__setitem__), torch.no_grad():
        pair.a.model(**pair.a.calls[0])
    flags: list[Tensor] = []

    def compare(key: Any, value: Tensor) -> None:
        ours = kept.get(key)
        if ours is not None and ours.dim() == value.dim():
            shared = tuple(slice(min(sizes)) for sizes in zip(ours.shape, value.shape, strict=True))
            flags.append((ours[shared] != value[shared]).any().to(pair.device, non_blocking=True))

    with _Named(compare), torch.no_grad():
        pair.b.model(**pair.b.calls[0])
    return kept, torch.stack(flags).tolist()


def _looped(pair: Pair) -> int:
    """How many of the hidden states are compared element by element."""
    config = pair.a.model.config
    fit = LOOP_ELEMENTS // (pair.tokens * config.hidden_size)
    return max(min(fit, config.num_hidden_layers + 1), 1)


@_way(
    "loops",
    "Python loops over the elements of hidden states",
    around=_put_back,
    note=lambda pair: f"{_looped(pair)} of {pair.a.model.config.num_hidden_layers + 1} hidden states",
)
def loops(pair: Pair) -> object:
    """As one does it in a notebook: two loops, `!=` on each element."""
    if pair.tokens > LOOP_TOKENS:
        raise NotHereError(f"only up to {LOOP_TOKENS} tokens")
    with torch.no_grad():
        states = [run.model(**run.calls[0], output_hidden_states=True).hidden_states for run in pair]
    found: list[tuple[int, int, int]] = []
    for layer in range(_looped(pair)):
        ours, theirs = (kept[layer][0] for kept in states)
        for i in range(pair.tokens):
            mine, other = ours[i], theirs[i]
            for j in range(mine.shape[0]):
                if mine[j] != other[j]:
                    found.append((layer, i, j))
    return states, found
