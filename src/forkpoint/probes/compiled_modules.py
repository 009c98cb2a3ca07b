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
class CompiledCall:
    """One call of a compiled module in a run.

    Attributes:
        path, module: which, in the run's model.
        inputs: copies of its arguments from before the call; positional ones are named by their numbers.
        made: copies of the floating-point tensors that it returned.
    """

    path: str
    module: nn.Module
    inputs: dict[str, Any]
    made: dict[str, Tensor]


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

    A module whose call can't be made again, or draws random numbers, is left out.

    Args:
        flips: whether rounding decides some tokens otherwise, which moves these far: then it is most of them that count.
    """
    for name, traced in (("A", session.a), ("B", session.b)):
        if traced.draws or not traced.repeats:
            continue
        for call in _calls(traced):
            times = _times(call, flips=flips)
            if times > BEYOND:
                return Miscompiled(name, call.path, times)
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


def _calls(traced: Traced) -> list[CompiledCall]:
    """The calls of compiled modules that a run makes, as they are made natively."""
    model = traced.run.modules
    paths = set(traced.trace.opaque)
    if model is None or not paths:
        return []
    modules = {
        id(module): (path, module)
        for path, module in model.named_modules()
        if path in paths and _is_compiled(module)
    }
    if not modules:
        return []
    calls: list[CompiledCall] = []

    @contextmanager
    def noted() -> Generator[None]:
        caller = Caller()

        def makes(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if id(module) not in modules:
                return caller.original(module, *args, **kwargs)
            inputs = copy_inputs({**{str(place): value for place, value in enumerate(args)}, **kwargs})
            with caller.as_before():  # else Dynamo, which compiles what it meets, would meet this
                output = caller.original(module, *args, **kwargs)
            calls.append(CompiledCall(*modules[id(module)], inputs, _floating(output)))
            return output

        with caller.replaced(makes):
            yield

    traced.unobserved(noted)
    return calls


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


def _times(call: CompiledCall, *, flips: bool = False) -> float:
    """How much farther a compiled module is from float64 than its Python, in the worst of its results.

    It is told by the mean square of all elements, or of a typical token where some flip.
    """
    try:
        with torch.no_grad(), kept_state(call.module):
            given = [copy_inputs(call.inputs), *(_moved(call.inputs, seed) for seed in range(MOVES))]
            promotion, inputs = Promotion(), copy_inputs(call.inputs)
            with promotion:
                output = _called(call.module, inputs)
            if not promotion.exact:
                return 0.0
            exact = {name: promotion.value(value) for name, value in results_of(output).items()}
            with Uncompiled().block():
                written = [_floating(_called(call.module, inputs)) for inputs in given]
    except Exception as error:  # noqa: BLE001 - a call that can't be made again shows nothing
        reraise_out_of_memory(error)
        return 0.0
    times = 0.0
    for name, compiled in call.made.items():
        others = [made.get(name) for made in written]
        right = exact.get(name)
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
