"""Which kernels a call runs: by name on a GPU, as the innermost ATen operators on a CPU."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_PLUMBING = frozenset(
    [
        "aten::empty",
        "aten::empty_strided",
        "aten::empty_like",
        "aten::as_strided",
        "aten::view",
        "aten::reshape",
        "aten::t",
        "aten::transpose",
        "aten::expand",
        "aten::resize_",
        "aten::unsqueeze",
        "aten::squeeze",
        "aten::detach",
        "aten::slice",
        "aten::select",
        "aten::permute",
        "aten::resolve_conj",
        "aten::resolve_neg",
        "aten::_reshape_alias",
        "aten::_unsafe_view",
        "aten::unbind",
        "aten::split",
        "aten::narrow",
        "aten::alias",
        "aten::item",
        "aten::_local_scalar_dense",
        "aten::is_nonzero",
        "aten::empty_permuted",
        "aten::_has_compatible_shallow_copy_type",
    ]
)
"""Operators that make or arrange tensors and compute nothing."""


_PREPARING = frozenset(
    [
        "aten::scalar_tensor",
        "aten::to",
        "aten::_to_copy",
        "aten::copy_",
        "aten::where",
        "aten::fill_",
        "aten::zero_",
        "aten::ones",
        "aten::zeros",
        "aten::full",
        "aten::tril",
        "aten::masked_fill_",
        "aten::clone",
        "aten::contiguous",
    ]
)
"""Operators that prepare an argument, as a mask of bools is made one of numbers."""


@dataclass(frozen=True)
class Kernels:
    """What ran.

    Attributes:
        names: in the order of execution; empty where nothing is known.
        reason: why nothing is known.
    """

    names: tuple[str, ...]
    reason: str = ""


def kernels(call: Callable[[], Any], device: torch.device) -> Kernels:
    """Profile one call."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA, ProfilerActivity.CPU] if gpu else [ProfilerActivity.CPU]
    try:
        call()  # so that libraries start, and pick their kernels, outside the profile
        if gpu:
            torch.cuda.synchronize()
        with _quiet(), profile(activities=activities, acc_events=True) as profiler:
            call()
            if gpu:
                torch.cuda.synchronize()
        events = list(profiler.events() or ())
    except Exception as error:  # noqa: BLE001 - evidence that is missing must not lose the scene
        return Kernels(
            (), f"the profiler said: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        )
    names = _on_gpu(events) if gpu else _on_cpu(events)
    return Kernels(names, "" if names else "no kernel ran")


@contextmanager
def _quiet() -> Generator[None]:
    """No word on standard error that the profiler starts and stops."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = before or "99"  # read when the first profile of the process begins
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]


def _on_gpu(events: list[Any]) -> tuple[str, ...]:
    found = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    found.sort(key=lambda e: e.time_range.start)
    return tuple(e.name for e in found if not e.name.startswith(("Memcpy", "Memset")))


def _on_cpu(events: list[Any]) -> tuple[str, ...]:
    leaves = [
        e
        for e in events
        if e.name not in _PLUMBING
        and "::" in e.name
        and not any(child.name not in _PLUMBING and "::" in child.name for child in e.cpu_children)
    ]
    leaves.sort(key=lambda e: e.time_range.start)
    return tuple(e.name for e in leaves)


def short_name(name: str) -> str:
    """A kernel's name without the arguments and template parameters that C++ adds.

    >>> short_name("void at::native::vectorized_elementwise_kernel<4, at::native::AUnaryFunctor<float> >(int, long)")
    'at::native::vectorized_elementwise_kernel'
    >>> short_name("sm80_xmma_gemm_f32f32_tilesize32x32x8")
    'sm80_xmma_gemm_f32f32_tilesize32x32x8'
    """
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", plain, maxsplit=1)[0].strip() or name


def evidence(a: Kernels, b: Kernels) -> str:
    """What the kernels of two calls tell, in one sentence.

    >>> evidence(Kernels(("gemm_32x64",)), Kernels(("gemm_64x256_splitK", "splitKreduce")))
    'The two runs ran different kernels: gemm_32x64 in A; gemm_64x256_splitK, splitKreduce in B, which splits the sum.'
    >>> evidence(Kernels(("aten::bmm",)), Kernels(("aten::bmm",)))
    'Both runs ran aten::bmm.'
    """
    if not a.names or not b.names:
        return f"Which kernels ran is not known: {a.reason or b.reason or 'nothing was seen'}."
    left, right = _main(a.names, b.names), _main(b.names, a.names)
    names_a, names_b = (", ".join(dict.fromkeys(map(short_name, names))) for names in (left, right))
    if left == right:
        return f"Both runs ran {names_a}."
    if names_a == names_b:
        return f"Both runs ran {names_a}, in forms of their own."
    return f"The two runs ran different kernels: {names_a} in A{_splits(a)}; {names_b} in B{_splits(b)}."


def differ(a: Kernels, b: Kernels) -> bool | None:
    """Whether two calls ran different kernels, apart from what prepares their arguments; None if not known."""
    if not a.names or not b.names:
        return None
    return _main(a.names, b.names) != _main(b.names, a.names)


def _main(names: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """Without what only prepares the arguments, where something else is left on both sides."""
    kept = tuple(name for name in names if not _prepares(name))
    return kept if kept and not all(map(_prepares, others)) else names


def _prepares(name: str) -> bool:
    return name in _PREPARING or any(part in name for part in ("FillFunctor", "where_kernel", "copy_kernel"))


def _splits(kernels_: Kernels) -> str:
    names = " ".join(kernels_.names).lower().replace("_", "").replace("-", "")
    return ", which splits the sum" if "splitk" in names else ""
