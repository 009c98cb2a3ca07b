"""The replay probe: the first divergent op alone, in native precision and in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from forkpoint.capture.recorder import CopiedCall
from forkpoint.errors import reraise_out_of_memory
from forkpoint.explain.locate import Located, named_inputs
from forkpoint.match.distance import unit_at
from forkpoint.match.finite import is_finite
from forkpoint.promotion import Promotion
from forkpoint.result import ProbeResult


@dataclass(frozen=True)
class ReplayErrors:
    """How far each run's value of the op is from the exact result on the same inputs.

    Attributes:
        error_a, error_b: the largest error in ULP of the op's dtype at the magnitude of the result; None
            where the op can't be repeated or has no float64.
        other_call: the op was called with other arguments in the two runs, shapes apart.
        kernels_a, kernels_b: what ran below it, innermost names; empty if not known.
        apart: how far both runs' values are from each other, in the larger of their units.
    """

    error_a: float | None
    error_b: float | None
    other_call: bool
    kernels_a: tuple[str, ...]
    kernels_b: tuple[str, ...]
    result: ProbeResult
    apart: float = 0.0

    @property
    def other_kernel(self) -> bool:
        return self.kernels_a != self.kernels_b

    @property
    def error(self) -> float | None:
        """The larger error; None where one is not known, or where both do not explain how far the values are apart."""
        if self.error_a is None or self.error_b is None or self.apart > self.error_a + self.error_b + 1:
            return None
        return max(self.error_a, self.error_b)


def replay(located: Located) -> ReplayErrors:
    """Repeat each run's call of the op on its own inputs, and measure its error against float64."""
    if located.a.func is None or located.b.func is None or located.divergence.function is None:
        text = "the runs part inside a module, so there is no single op to repeat"
        other = bool(located.divergence.between)
        return ReplayErrors(None, None, other, (), (), ProbeResult("replay", "nothing", None, text))
    output = located.row.op.output
    errors = [_error(call, output) for call in (located.a, located.b)]
    other_call = _other_call(located.a, located.b)
    kernels = [kernels_of(call) for call in (located.a, located.b)]
    measured = [e for e in errors if e is not None]
    if not measured:
        text = "the op has no float64 form to be measured against"
        outcome, figure = "nothing", None
    else:
        shown = " and ".join("?" if e is None else f"{e:.3g}" for e in errors)
        text = f"alone, on its own inputs, it is off the exact result by {shown} ULP in runs A and B"
        outcome, figure = "rounding", max(measured)
    if kernels[0] != kernels[1]:
        text += f"; it ran {_short(kernels[0])} in A, {_short(kernels[1])} in B"
    return ReplayErrors(
        errors[0], errors[1], other_call, kernels[0], kernels[1], ProbeResult("replay", outcome, figure, text),
        _apart(located, output),
    )  # fmt: skip


def _apart(located: Located, output: int) -> float:
    """How far both runs' values are from each other, in units in the last place of the largest of them."""
    values = [call.outputs[output] for call in (located.a, located.b)]
    gap = located.divergence.max_abs
    if gap is None or not all(value.numel() and value.dtype.is_floating_point for value in values):
        return 0.0
    units = [unit_at(v.double().abs().nan_to_num(0.0, 0.0, 0.0).max(), v.dtype) for v in values]
    return gap / max(map(float, units))


def _short(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) or "nothing"


def call_alone(call: CopiedCall) -> Any:
    """What a recorded call returns if it is made once more, on copies of its arguments."""
    with torch.no_grad():
        return call.func(*_fresh(call.args), **_fresh(call.kwargs))


def _fresh(value: Any) -> Any:
    """Copies of tensors that a call might write to."""
    if isinstance(value, Tensor):
        return value.clone() if value.layout == torch.strided else value
    if type(value) in (tuple, list):
        return type(value)(_fresh(item) for item in value)
    if type(value) is dict:
        return {key: _fresh(item) for key, item in value.items()}
    return value


def _error(call: CopiedCall, output: int) -> float | None:
    """The largest error of a recorded output against float64 on the same inputs, in ULP of its dtype."""
    recorded = call.outputs[output]
    exact = in_float64(call, output) if recorded.dtype.is_floating_point else None
    if exact is None:
        return None
    if bool((is_finite(recorded) != is_finite(exact)).any()):
        return math.inf  # an overflow
    if not exact.numel():
        return 0.0
    unit = unit_at(exact.abs().nan_to_num(0.0, 0.0, 0.0).max(), recorded.dtype)
    gap = (recorded.double() - exact).abs().nan_to_num(0.0, 0.0, 0.0)
    return float(gap.max() / unit)


def in_float64(call: CopiedCall, output: int) -> Tensor | None:
    """An output of a call, repeated on the same inputs in float64; None where it can't be."""
    if call.func is None:
        return None
    try:
        promotion = Promotion()
        with promotion:
            result = call_alone(call)
        if not promotion.exact:
            return None
        exact = _output(promotion.values(result), output)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reraise_out_of_memory(error)
        return None
    return exact if exact is not None and exact.shape == call.outputs[output].shape else None


def _output(result: Any, output: int) -> Tensor | None:
    if isinstance(result, Tensor):
        return result.double()
    if isinstance(result, (tuple, list)) and output < len(result) and isinstance(result[output], Tensor):
        return result[output].double()
    return None


def _other_call(a: CopiedCall, b: CopiedCall) -> bool:
    """Whether two calls of an op differ in more than the sizes of their tensors."""
    if set(named_inputs(a)) != set(named_inputs(b)):
        return True

    def plain(call: CopiedCall) -> list[Any]:
        flat = [(str(i), v) for i, v in enumerate(call.args)] + sorted(
            call.kwargs.items(), key=lambda kv: kv[0]
        )
        return [(k, v) for k, v in flat if isinstance(v, (bool, str, float, torch.dtype)) or v is None]

    return plain(a) != plain(b) or [t.dtype for t in named_inputs(a).values()] != [
        t.dtype for t in named_inputs(b).values()
    ]


class _Below(TorchDispatchMode):
    """Names of the ATen ops that a call comes down to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func._schema.name)
        if name.rsplit("::", maxsplit=1)[-1] not in _TRIVIAL:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def kernels_of(call: CopiedCall) -> tuple[str, ...]:
    """Names of what ran for a call: CUDA kernels on a GPU, ATen ops elsewhere; empty if unknown."""
    if call.func is None:
        return ()
    try:
        if any(t.is_cuda for t in named_inputs(call).values()):
            return _cuda_kernels(call)
        with _Below() as below:
            call_alone(call)
        return tuple(dict.fromkeys(below.names))
    except (RuntimeError, NotImplementedError) as error:
        reraise_out_of_memory(error)
        return ()


def _cuda_kernels(call: CopiedCall) -> tuple[str, ...]:
    call_alone(call)  # once, so that libraries are loaded and their set-up is not among the kernels
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        call_alone(call)
        torch.cuda.synchronize()
    events = profile.events() or []
    names = [e.name for e in events if str(e.device_type).endswith("CUDA")]
    return tuple(dict.fromkeys(n for n in names if not n.startswith(("Mem", "void at::native::elementwise"))))


_TRIVIAL = frozenset({
    "empty", "as_strided", "view", "transpose", "reshape", "expand", "slice", "select", "t", "unsqueeze", "squeeze",
    "clone", "copy_", "empty_like", "empty_strided", "to", "_to_copy", "contiguous", "permute", "_unsafe_view", "alias",
    "fill_", "zeros", "zero_", "detach", "narrow", "resize_",
})  # fmt: skip
"""ATen ops that only move elements: the copies of `_fresh`, and what layouts ask for."""
