"""What a trace says of what ran, and where: the models, and the settings that results depend on."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from forkpoint.runs.modules import walk
from forkpoint.support.precision import float32_matmul_precision


def models(roots: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """Of each model its class, its configuration, and the path that its modules' paths begin with."""
    paths = [{id(module): path for path, module in walk(root)} for root in roots]
    descriptions: list[dict[str, Any]] = []
    tops = 0
    for number, root in enumerate(roots):
        prefix = next((p[id(root)] for i, p in enumerate(paths) if i != number and id(root) in p), None)
        if prefix is None:
            prefix = f"{type(root).__name__}#{tops}" if tops else ""
            tops += 1
        parameter = next(root.parameters(), None)
        config = getattr(root, "config", None)
        plain = {} if config is None or not hasattr(config, "to_dict") else config.to_dict()
        descriptions.append(
            {
                "class": type(root).__qualname__, "prefix": prefix,
                "dtype": str(parameter.dtype).removeprefix("torch.") if parameter is not None else None,
                "device": str(parameter.device) if parameter is not None else "cpu",
                "attention": getattr(config, "_attn_implementation", None),
                "configuration": {str(k): v if isinstance(v, (int, float, str, bool)) else repr(v) for k, v in plain.items()},
            }
        )  # fmt: skip
    return descriptions


def settings() -> dict[str, Any]:
    """Settings that results depend on, whatever the device."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": float32_matmul_precision(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "autocast": autocast(),
    }


def autocast() -> str | None:
    """The autocasts that are on here, with their dtypes: `cpu bfloat16`; None where there is none."""
    devices = ["cpu", *([] if (one := torch.accelerator.current_accelerator()) is None else [one.type])]
    on = [
        f"{device} {str(torch.get_autocast_dtype(device)).removeprefix('torch.')}"
        for device in devices
        if torch.is_autocast_enabled(device)
    ]
    return ", ".join(on) or None


def gpu() -> dict[str, str]:
    """The GPU, if this process uses one: to ask would start CUDA, and then no fork of the process could use it."""
    return {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_initialized() else {}
