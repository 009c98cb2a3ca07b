"""What figures were taken on: they mean nothing without it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import forkpoint
from forkpoint import native
from results import Json

PACKAGES = ("torch", "transformers", "numba", "triton", "torchlens")


def describe(device: torch.device) -> Json:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "compiled": native.IN_USE,
        "versions": {"python": platform.python_version(), "forkpoint": forkpoint.__version__} | _versions(),
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"torch": torch.__version__}


def _processor() -> str:
    """What Linux calls the processor; elsewhere what Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine() or "CPU"
