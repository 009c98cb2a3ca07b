"""The native probe of compiled modules: does each compute what the Python that it was made from does, on the same inputs?

In float64 a compiled module runs as that Python, so that nothing there shows what its compiler made of it. But each can be
held against it alone: given what it was given natively, the module as it is written and the module as it was compiled are
both some way from float64, and a sound compiler rounds no worse than the operations that it stands for.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from forkpoint.capture.calls import Caller
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.locate import Located, Tokens, describe, differing_rows, fetch
from forkpoint.explain.session import Session, Traced
from forkpoint.match.finite import all_finite
from forkpoint.promotion import Promotion
from forkpoint.promotion.uncompiled import Uncompiled
from forkpoint.result import Divergence, ProbeResult
from forkpoint.runs.returned import results_of
from forkpoint.runs.run import copy_inputs
from forkpoint.runs.state import kept_state

BEYOND = 4.0
"""Times the error of a module as it is written from which on a compiled one does not round, but computes something else.
Sound ones of aot_eager and inductor reached 1.1; a norm with another epsilon makes 7 and more."""
MOVES = 3
"""How often the inputs are moved by a unit in the last place, to see whether a module decides something by them."""


@dataclass(frozen=True)
class Miscompiled:
    """A compiled module that computes something else than it is written to.

    Attributes:
        run: `A` or `B`.
        path: of the module, in that run's model.
        times: how much farther it is from float64 than the module as it is written, on the same inputs.
    """

    run: str
    path: str
    times: float

    @property
    def result(self) -> ProbeResult:
        text = (
            f"in run {self.run} {self.path or '(model)'}, as it was compiled, is {self.times:,.3g} times as far from float64 as "
            "the Python that it was made from, on the same inputs: what was compiled computes something else"
        )
        return ProbeResult("native", "one", self.times, text)


def miscompiled(session: Session, *, flips: bool = False) -> Miscompiled | None:
    """The first compiled module of either run that is farther from float64 than rounding lets it be; None if none is.

    A run that draws random numbers or does not repeat itself is left out, and so is a call that can't be made again.

    Args:
        flips: whether rounding decides some tokens otherwise, which moves these far: then it is most of them that count.
    """
    for name, traced in (("A", session.a), ("B", session.b)):
        if traced.draws or not traced.repeats:
            continue
        first = _first_beyond(traced, flips=flips)
        if first is not None:
            return Miscompiled(name, *first)
    return None


def module_divergence(
    session: Session, path: str, first: Located | None, tokens: Tokens
) -> Divergence | None:
    """How the outputs of one module differ, by its path; None where they don't, or can't be had again."""
    if first is not None and first.divergence.module == path and first.divergence.function is None:
        return first.divergence
    row = next((row for row in differing_rows(session) if row.op.is_boundary and row.op.module == path), None)
    if row is None or row.difference is None:
        return None
    a, b = (
        fetch(traced, [(row, event)], look=session.look)[0]
        for traced, event in ((session.a, row.difference.event_a), (session.b, row.difference.event_b))
    )
    return None if a is None or b is None else describe(session, row, a, b, tokens)


def _first_beyond(traced: Traced, *, flips: bool) -> tuple[str, float] | None:
    """The path of the first compiled module of a run that is too far from float64, and how many times; None if none is.

    Each is held against its Python where the run calls it: in the state in which it is then, and with the autocast and the
    settings that are in force there.
    """
    model = traced.run.modules
    opaque = set(traced.trace.opaque)
    if model is None or not opaque:
        return None
    paths = {
        id(module): path for path, module in model.named_modules() if path in opaque and _is_compiled(module)
    }
    if not paths:
        return None
    first: tuple[str, float] | None = None

    @contextmanager
    def held_against_python() -> Generator[None]:
        caller = Caller()

        def makes(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            nonlocal first
            if first is not None or id(module) not in paths:
                return caller.original(module, *args, **kwargs)
            with caller.as_before():  # else Dynamo, which compiles what it meets, would meet this
                python = _python(module, args, kwargs)
                output = caller.original(module, *args, **kwargs)
            times = 0.0 if python is None else _times(_floating(output), python, flips=flips)
            if times > BEYOND:
                first = paths[id(module)], times
            return output

        with caller.replaced(makes):
            yield

    traced.unobserved(held_against_python)
    return first


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


@dataclass(frozen=True)
class _Python:
    """What a call of a compiled module returns as the Python that it was made from, by the names of its results.

    Attributes:
        exact: in float64.
        written: as it is, and with its inputs moved by a unit in the last place.
    """

    exact: dict[str, Tensor]
    written: list[dict[str, Tensor]]


def _python(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Python | None:
    """The same call, made as Python, nothing being left changed; None where it can't be made, or not in float64."""

    def called(inputs: dict[str, Any]) -> Any:
        with kept_state(module):
            return _called(module, inputs)

    try:
        with torch.no_grad():
            inputs = copy_inputs({**{str(place): value for place, value in enumerate(args)}, **kwargs})
            promotion, given = Promotion(), copy_inputs(inputs)
            with promotion:
                output = called(given)
            if not promotion.exact:
                return None
            exact = {name: promotion.value(value) for name, value in results_of(output).items()}
            moved = (_moved(inputs, seed) for seed in range(MOVES))
            with Uncompiled().block():
                return _Python(exact, [_floating(called(given)) for given in (copy_inputs(inputs), *moved)])
    except Exception as error:  # noqa: BLE001 - a call that can't be made again shows nothing
        reraise_out_of_memory(error)
        return None


def _times(made: dict[str, Tensor], python: _Python, *, flips: bool) -> float:
    """How much farther what a compiled module made is from float64 than what its Python makes, in the worst of its results.

    It is told by the mean square of all elements, or of a typical token where some flip.
    """
    times = 0.0
    for name, compiled in made.items():
        others = [written.get(name) for written in python.written]
        right = python.exact.get(name)
        if right is None or any(other is None or other.shape != right.shape for other in (compiled, *others)):
            continue
        if not compiled.numel() or not all(
            all_finite(value) for value in (compiled, right, *others) if value is not None
        ):
            continue
        size = _typical if flips else _size
        unit = torch.finfo(compiled.dtype).eps / 4 * size(right)
        rounding = max(unit, *(size(other.double() - right) for other in others if other is not None))
        if rounding:
            times = max(times, size(compiled.double() - right) / rounding)
    return times


def _called(module: nn.Module, inputs: dict[str, Any]) -> Any:
    """What a module returns for the inputs of a call, which it may change."""
    args = [value for name, value in inputs.items() if name.isdigit()]
    return module(*args, **{name: value for name, value in inputs.items() if not name.isdigit()})


def _moved(inputs: dict[str, Any], seed: int) -> dict[str, Any]:
    """Copies of inputs, of which floating-point tensors are moved by a unit in the last place, up or down by chance."""
    generator = torch.Generator().manual_seed(seed)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        up = torch.randint(0, 2, value.shape, generator=generator).to(value.device, torch.bool)
        infinity = torch.full_like(value, torch.inf)
        towards = torch.where(up, torch.nextafter(value, infinity), torch.nextafter(value, -infinity))
        return torch.where(torch.isfinite(towards), towards, value)

    return {name: moved(value) for name, value in copy_inputs(inputs).items()}


def _floating(output: Any) -> dict[str, Tensor]:
    return {
        name: value.detach().clone()
        for name, value in results_of(output).items()
        if value.is_floating_point()
    }


def _size(value: Tensor) -> float:
    return float(value.double().pow(2).mean().sqrt())


def _typical(value: Tensor) -> float:
    """The size of a row of the last dimension that half of them do not exceed."""
    return float(value.double().pow(2).mean(-1).median().sqrt()) if value.dim() else _size(value)
