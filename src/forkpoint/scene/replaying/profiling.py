"""Which kernels a call runs: by name on a GPU, as the innermost ATen operators on a CPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from forkpoint.scene.format.kernels import Kernels

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
    launches = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    launches.sort(key=lambda e: e.time_range.start)
    return tuple(e.name for e in launches if not e.name.startswith(("Memcpy", "Memset")))


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
